// Elementwise functions over 16 floats: exp, sigmoid, the activations, and a block's epilogue.
//
// Knows: AVX-512F. Does not know: weights, rows. An element's result never depends on its lane or on its neighbours.
// Relative error of exp about 1e-7; of the activations about 1e-6 where their value is above 1e-6 of |x|.
#pragma once
#include <immintrin.h>

#include "linear_layout.h"

namespace lg {
namespace {

inline __m512 bc(float x) { return _mm512_set1_ps(x); }

// exp by n = round(x / ln 2) and a polynomial of degree 6 on the rest (own minimax fit, 2e-9 before rounding).
inline __m512 exp16(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, bc(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, bc(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, bc(-2.12194440e-4f), r);
  __m512 p = bc(0.0013843559427186847f);
  p = _mm512_fmadd_ps(p, r, bc(0.008374235592782497f));
  p = _mm512_fmadd_ps(p, r, bc(0.041668009012937546f));
  p = _mm512_fmadd_ps(p, r, bc(0.16666430234909058f));
  p = _mm512_fmadd_ps(p, r, bc(0.4999999403953552f));
  p = _mm512_fmadd_ps(p, r, bc(1.0f));
  p = _mm512_fmadd_ps(p, r, bc(1.0f));
  return _mm512_scalef_ps(p, n);
}

// x / (1 + exp(-t)): silu with t = x; gelu's tanh form with t = 2 sqrt(2 / pi) (x + 0.044715 x^3).
inline __m512 times_sigmoid(__m512 x, __m512 t) {
  const __m512 e = exp16(_mm512_sub_ps(_mm512_setzero_ps(), t));
  return _mm512_div_ps(x, _mm512_add_ps(bc(1.0f), e));
}

inline __m512 gelu_tanh16(__m512 x) {
  const __m512 inner = _mm512_fmadd_ps(_mm512_mul_ps(x, x), bc(0.0713548162726f), bc(1.5957691216057308f));
  return times_sigmoid(x, _mm512_mul_ps(x, inner));
}

// x * Phi(x). The tail Phi(-a) is exp(-a^2 / 2) R(1 / (1 + 0.3 a)), R of degree 8 (own fit on [0, 13], 6e-8).
inline __m512 gelu16(__m512 x) {
  const __m512 a = _mm512_abs_ps(x);
  const __m512 t = _mm512_div_ps(bc(1.0f), _mm512_fmadd_ps(a, bc(0.3f), bc(1.0f)));
  __m512 p = bc(0.0382709801197052f);
  p = _mm512_fmadd_ps(p, t, bc(-0.16864341497421265f));
  p = _mm512_fmadd_ps(p, t, bc(0.22757773101329803f));
  p = _mm512_fmadd_ps(p, t, bc(-0.07526519149541855f));
  p = _mm512_fmadd_ps(p, t, bc(0.1416754573583603f));
  p = _mm512_fmadd_ps(p, t, bc(0.09505122900009155f));
  p = _mm512_fmadd_ps(p, t, bc(0.12182585895061493f));
  p = _mm512_fmadd_ps(p, t, bc(0.11950100213289261f));
  p = _mm512_fmadd_ps(p, t, bc(6.38289020571392e-06f));
  const __m512 square = _mm512_mul_ps(a, a);
  const __m512 lost = _mm512_fmsub_ps(a, a, square);
  const __m512 e = exp16(_mm512_mul_ps(square, bc(-0.5f)));
  const __m512 tail = _mm512_mul_ps(_mm512_fmadd_ps(_mm512_mul_ps(lost, bc(-0.5f)), e, e), p);
  const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  return _mm512_mul_ps(x, _mm512_mask_mov_ps(_mm512_sub_ps(bc(1.0f), tail), negative, tail));
}

inline __m512 activation16(__m512 x, int32_t epilogue) {
  switch (epilogue) {
    case EP_GATED_SILU:
    case EP_SILU:
      return times_sigmoid(x, x);
    case EP_GATED_GELU_TANH:
    case EP_GELU_TANH:
      return gelu_tanh16(x);
    case EP_GATED_GELU:
    case EP_GELU:
      return gelu16(x);
    default:
      return x;
  }
}

inline __mmask16 first_lanes(int64_t n) { return n >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1u << n) - 1); }

// Bias, epilogue and store of a tile: [rows][16], or [2][rows][16] with gate and up when gated. `index` counts output
// blocks; `out` is the tile's first row.
inline void store_tile(const PackedLinear& w, const float* tile, int rows, int64_t index, int32_t epilogue, float* out,
                       int64_t out_stride) {
  const int64_t outputs = w.gated ? w.rows / 2 : w.rows;
  const __mmask16 lanes = first_lanes(outputs - index * kLanes);
  const float* bias = w.bias ? w.bias + index * kLanes * (w.gated ? 2 : 1) : nullptr;
  const __m512 bias0 = bias ? _mm512_loadu_ps(bias) : _mm512_setzero_ps();
  const __m512 bias1 = bias && w.gated ? _mm512_loadu_ps(bias + kLanes) : _mm512_setzero_ps();
  out += index * kLanes;
  for (int r = 0; r < rows; ++r, out += out_stride) {
    __m512 y = _mm512_load_ps(tile + r * kLanes);
    if (bias) y = _mm512_add_ps(y, bias0);
    y = activation16(y, epilogue);
    if (w.gated) {
      __m512 up = _mm512_load_ps(tile + (rows + r) * kLanes);
      if (bias) up = _mm512_add_ps(up, bias1);
      y = _mm512_mul_ps(y, up);
    } else if (epilogue == EP_ADD) {
      y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(lanes, out));
    }
    _mm512_mask_storeu_ps(out, lanes, y);
  }
}

}  // namespace
}  // namespace lg
