// Exponentials over sixteen lanes. Include after one of the lanes_*.h headers.
//
// Knows: polynomials. Does not know: instructions.
#pragma once
#include "unroll.h"

namespace lg {
namespace {

// 2^t with a relative error under 2e-7; below 2^-126 exactly 0, from 2^128 on infinity, NaN stays NaN.
static inline F16 f_exp2(F16 t) {
  const M16 tiny = f_less(t, f_set(-126.0f));
  t = f_min(f_set(128.0f), t);
  const F16 n = f_round(t);
  const F16 f = f_sub(t, n);
  F16 r = f_fma(f, f_set(0x1.5bba14p-10f), f_set(0x1.3cea88p-7f));  // minimax for 2^f on [-0.5, 0.5] with 2^0 = 1
  r = f_fma(f, r, f_set(0x1.c6b752p-5f));
  r = f_fma(f, r, f_set(0x1.ebf9bcp-3f));
  r = f_fma(f, r, f_set(0x1.62e42ap-1f));
  r = f_fma(f, r, f_set(1.0f));
  return f_select(tiny, f_set(0.0f), f_scale2(r, n));
}

// Adding this to |x| < 2^22 rounds to the nearest whole number, which then stands in the low bits.
constexpr float kRounder = 0x1.8p+23f;

// 2^t, with a relative error under 3e-6; below 2^-125 exactly 0, NaN stays NaN; t below 127. Cheaper than f_exp2.
// Several at once, step by step: one alone would wait for itself.
template <int N>
__attribute__((always_inline)) static inline void f_weights(F16 (&t)[N]) {
  F16 u[N], f[N], r[N];
  each<N>([&](auto i) LG_INLINE { u[i] = f_add(t[i], f_set(kRounder)); });
  each<N>([&](auto i) LG_INLINE { f[i] = f_sub(u[i], f_set(kRounder)); });
  each<N>([&](auto i) LG_INLINE { f[i] = f_sub(t[i], f[i]); });
  each<N>([&](auto i) LG_INLINE { r[i] = f_fma(f[i], f_set(0x1.3a02ccp-7f), f_set(0x1.c9fc46p-5f)); });
  each<N>([&](auto i) LG_INLINE { r[i] = f_fma(f[i], r[i], f_set(0x1.ec0378p-3f)); });
  each<N>([&](auto i) LG_INLINE { r[i] = f_fma(f[i], r[i], f_set(0x1.62e12cp-1f)); });
  each<N>([&](auto i) LG_INLINE { r[i] = f_fma(f[i], r[i], f_set(1.0f)); });
  each<N>([&](auto i) LG_INLINE { t[i] = f_shift_exponent(f_not_less(t[i], f_set(-125.0f)), r[i], u[i]); });
}

static inline F16 f_weight(F16 t) {
  F16 one[1] = {t};
  f_weights(one);
  return one[0];
}

constexpr float kLog2e = 0x1.715476p+0f;

static inline F16 f_exp(F16 x) { return f_exp2(f_mul(x, f_set(kLog2e))); }

// 1 / (1 + e^-x)
static inline F16 f_sigmoid(F16 x) {
  const F16 one = f_set(1.0f);
  return f_div(one, f_add(one, f_exp(f_sub(f_set(0.0f), x))));
}

// tanh x = (e^2x - 1) / (e^2x + 1); 1e-7 absolute.
static inline F16 f_tanh(F16 x) {
  const F16 one = f_set(1.0f);
  x = f_max(f_set(-20.0f), f_min(f_set(20.0f), x));
  const F16 e = f_exp(f_add(x, x));
  return f_div(f_sub(e, one), f_add(e, one));
}

}  // namespace
}  // namespace lg
