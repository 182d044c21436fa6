// Activations over sixteen lanes, for the rows' own kernels and the linear layers' epilogues: the same bits in both.
// Include after one of the lanes_*.h headers.
//
// Knows: EP_* names, polynomials. Does not know: instructions, rows.
// Relative error about 1e-6 while the exponential's argument is below 10; a rounding of it is worth more beyond.
#pragma once
#include "kernels.h"
#include "lanes_math.h"

namespace lg {
namespace {

// x / (1 + e^-t)
static inline F16 times_sigmoid(F16 x, F16 t) { return f_div(x, f_add(f_set(1.0f), f_exp(f_sub(f_set(0.0f), t)))); }

// x / 2 * (1 + tanh u) = x * sigmoid(2u), 2u = 2 sqrt(2 / pi) (x + 0.044715 x^3)
static inline F16 gelu_tanh(F16 x) {
  return times_sigmoid(x, f_mul(x, f_fma(f_mul(x, x), f_set(0.0713548162726f), f_set(1.5957691216f))));
}

// x * Phi(x). The tail Phi(-a) is e^(-a^2 / 2) R(1 / (1 + 0.3 a)), R a fit of degree 8 on [0, 13] with a relative error
// of 6e-8, so that far negative values keep their accuracy too.
static inline F16 gelu(F16 x) {
  constexpr float kR[] = {-0.16864341497421265f, 0.22757773101329803f, -0.07526519149541855f, 0.1416754573583603f,
                          0.09505122900009155f,  0.12182585895061493f, 0.11950100213289261f,  6.38289020571392e-06f};
  const F16 one = f_set(1.0f), a = f_abs(x);
  const F16 t = f_div(one, f_fma(a, f_set(0.3f), one));
  F16 r = f_set(0.0382709801197052f);
  for (const float c : kR) r = f_fma(r, t, f_set(c));
  const F16 tail = f_mul(r, f_exp(f_mul(f_mul(a, a), f_set(-0.5f))));
  return f_mul(x, f_select(f_less(x, f_set(0.0f)), tail, f_sub(one, tail)));
}

// The epilogue's activation, or x where it has none.
static inline F16 activation(F16 x, int32_t epilogue) {
  switch (epilogue) {
    case EP_GATED_SILU:
    case EP_SILU:
      return times_sigmoid(x, x);
    case EP_GATED_GELU_TANH:
    case EP_GELU_TANH:
      return gelu_tanh(x);
    case EP_GATED_GELU:
    case EP_GELU:
      return gelu(x);
    default:
      return x;
  }
}

}  // namespace
}  // namespace lg
