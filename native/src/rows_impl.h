// Row kernels, written once over sixteen lanes: norms, rope, residual, activations, soft cap, argmax.
// Each level's rows_*.cpp includes its lanes_*.h and then this file.
//
// Knows: the arithmetic of one row. Does not know: instructions, buffers, models.
//
// A value never depends on its place: short rows and tails go through the same lanes with the rest masked.
#pragma once
#include "kernels.h"
#include "lanes_activate.h"
#include "lanes_math.h"

namespace lg {
namespace {

// Calls fn(i, mask) for each sixteen of [0, n); mask leaves out the lanes past n.
template <class Fn>
static inline void each16(int64_t n, Fn fn) {
  const M16 all = m_range(0, 16);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) fn(i, all);
  if (i < n) fn(i, m_range(0, n - i));
}

// Sum over [0, n) of term(i, mask): four running sums of sixteen lanes taken in turn, then lanes.
template <class Fn>
static inline float sum16(int64_t n, Fn term) {
  F16 s[4] = {f_set(0.0f), f_set(0.0f), f_set(0.0f), f_set(0.0f)};
  const M16 all = m_range(0, 16);
  int64_t i = 0;
  for (; i + 64 <= n; i += 64)
    for (int j = 0; j < 4; ++j) s[j] = term(i + 16 * j, all, s[j]);
  for (int j = 0; i < n; i += 16, ++j) s[j] = term(i, m_range(0, n - i), s[j]);
  return f_sum(f_add(f_add(s[0], s[1]), f_add(s[2], s[3])));
}

void rms_norm(const float* x, const float* w, int64_t D, float eps, float* y) {
  const float squares = sum16(D, [=](int64_t i, M16 m, F16 s) {
    const F16 v = f_load_part(x + i, m);
    return f_fma(v, v, s);
  });
  const F16 r = f_set(1.0f / std::sqrt(squares / static_cast<float>(D) + eps));
  each16(D, [=](int64_t i, M16 m) {
    f_store_part(y + i, f_mul(f_mul(f_load_part(x + i, m), r), f_load_part(w + i, m)), m);
  });
}

void layer_norm(const float* x, const float* w, const float* b, int64_t D, float eps, float* y) {
  const float mean = sum16(D, [=](int64_t i, M16 m, F16 s) { return f_add(s, f_load_part(x + i, m)); }) /
                     static_cast<float>(D);
  const F16 mu = f_set(mean), zero = f_set(0.0f);
  const float squares = sum16(D, [=](int64_t i, M16 m, F16 s) {
    const F16 d = f_select(m, f_sub(f_load_part(x + i, m), mu), zero);
    return f_fma(d, d, s);
  });
  const F16 r = f_set(1.0f / std::sqrt(squares / static_cast<float>(D) + eps));
  each16(D, [=](int64_t i, M16 m) {
    const F16 d = f_mul(f_sub(f_load_part(x + i, m), mu), r);
    const F16 shift = b ? f_load_part(b + i, m) : zero;
    f_store_part(y + i, f_fma(d, f_load_part(w + i, m), shift), m);
  });
}

void rope(float* head, int64_t half, const float* cos, const float* sin) {
  each16(half, [=](int64_t i, M16 m) {
    const F16 a = f_load_part(head + i, m), b = f_load_part(head + half + i, m);
    const F16 c = f_load_part(cos + i, m), s = f_load_part(sin + i, m);
    const F16 minus = f_sub(f_set(0.0f), s);
    f_store_part(head + i, f_fma(b, minus, f_mul(a, c)), m);
    f_store_part(head + half + i, f_fma(a, s, f_mul(b, c)), m);
  });
}

void add(float* x, const float* y, int64_t n) {
  each16(n, [=](int64_t i, M16 m) { f_store_part(x + i, f_add(f_load_part(x + i, m), f_load_part(y + i, m)), m); });
}

template <class Fn>
static inline void map_in_place(float* x, int64_t n, Fn fn) {
  each16(n, [=](int64_t i, M16 m) { f_store_part(x + i, fn(f_load_part(x + i, m)), m); });
}

void activate(float* x, int64_t n, int32_t epilogue) {
  map_in_place(x, n, [=](F16 v) { return activation(v, epilogue); });
}

void softcap(float* x, int64_t n, float cap) {
  const F16 c = f_set(cap), inverse = f_set(1.0f / cap);
  map_in_place(x, n, [=](F16 v) { return f_mul(c, f_tanh(f_mul(v, inverse))); });
}

// The best of each run of 1024 first, and only the winning run is searched for the index.
int64_t argmax(const float* x, int64_t n, float* best) {
  constexpr int64_t kRun = 1024;
  const F16 lowest = f_set(-HUGE_VALF);
  float top = -HUGE_VALF;
  int64_t at = 0;
  for (int64_t begin = 0; begin < n; begin += kRun) {
    const int64_t size = n - begin < kRun ? n - begin : kRun;
    F16 m[4] = {lowest, lowest, lowest, lowest};
    bool nan = false;
    int64_t i = 0;
    for (; i + 64 <= size; i += 64) {
      F16 v[4];
      for (int j = 0; j < 4; ++j) v[j] = f_load(x + begin + i + 16 * j);
      for (int j = 0; j < 4; ++j) m[j] = f_max(v[j], m[j]);
      nan |= f_any_nan(v[0], v[1]) | f_any_nan(v[2], v[3]);
    }
    for (; i < size; i += 16) {
      const M16 part = m_range(0, size - i);
      const F16 v = f_select(part, f_load_part(x + begin + i, part), lowest);
      m[0] = f_max(v, m[0]);
      nan |= f_any_nan(v, v);
    }
    if (nan) return -1;
    const float run = f_top(f_max(f_max(m[0], m[1]), f_max(m[2], m[3])));
    if (run > top) {
      top = run;
      at = begin;
    }
  }
  while (at < n && x[at] != top) ++at;
  if (best) *best = top;
  return at < n ? at : -1;
}

void weigh(const float* logits, int64_t n, float top, float inverse_temperature, float* weights, float* run_sums,
           float* run_tops) {
  const F16 largest = f_set(top), scale = f_set(inverse_temperature * kLog2e), zero = f_set(0.0f);
  for (int64_t run = 0; run * kRun < n; ++run) {
    F16 sum = zero, most = zero;
    for (int64_t i = run * kRun; i < (run + 1) * kRun && i < n; i += 16) {
      const M16 part = m_range(0, n - i);
      const F16 w = f_exp2(f_mul(f_sub(f_load_part(logits + i, part), largest), scale));
      f_store_part(weights + i, w, part);
      sum = f_add(sum, f_select(part, w, zero));
      most = f_max(f_select(part, w, zero), most);
    }
    run_sums[run] = f_sum(sum);
    run_tops[run] = f_top(most);
  }
}

void fill_rows(Kernels* k) {
  k->weigh = weigh;
  k->rms_norm = rms_norm;
  k->layer_norm = layer_norm;
  k->rope = rope;
  k->add = add;
  k->activate = activate;
  k->softcap = softcap;
  k->argmax = argmax;
}

}  // namespace
}  // namespace lg
