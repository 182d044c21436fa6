// Loops over registers.
//
// Knows: compile-time indices. Does not know: what is done with them.
#pragma once

namespace lg {
namespace {

template <int N>
struct Int {
  static constexpr int value = N;
  constexpr operator int() const { return N; }
};

// fn(0) .. fn(N - 1) with the index known to the compiler: unrolled before it decides what lives in registers.
template <int I, int N, class F>
constexpr inline __attribute__((always_inline)) void each_from(F& f) {
  if constexpr (I < N) {
    f(Int<I>{});
    each_from<I + 1, N>(f);
  }
}
template <int N, class F>
constexpr inline __attribute__((always_inline)) void each(F&& f) {
  each_from<0, N>(f);
}
#define LG_INLINE __attribute__((always_inline))

}  // namespace
}  // namespace lg
