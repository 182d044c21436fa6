// Linear kernels for float32, float16 and bfloat16 weights on AVX-512: two chains of FMAs an output.
//
// Knows: packed float blocks, float rows. Does not know: quantised formats, threads.
// Even and odd k are apart because one chain alone, at one FMA's latency a k, is slower than memory.
#pragma once
#include <immintrin.h>

#include "linear_run.h"

namespace lg {
namespace {

// Weights of k and k + 1 (k even) from where they lie.
template <int KIND>
inline LG_INLINE void float_pair(const uint8_t* p, __m512& even, __m512& odd) {
  if constexpr (KIND == W_F32) {
    even = _mm512_loadu_ps(p);
    odd = _mm512_loadu_ps(p + 64);
  } else if constexpr (KIND == W_F16) {
    even = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    odd = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32)));
  } else {
    const __m512i x = _mm512_loadu_si512(p);
    even = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000))));
  }
}

template <int KIND, int R>
void float_tile(const uint8_t* block, int64_t K, const uint8_t* act, int64_t act_stride, float* tile) {
  Rows<float, 8, R> rows(act, act_stride);
  __m512 even[R], odd[R];
  each<R>([&](auto r) LG_INLINE { even[r] = odd[r] = _mm512_setzero_ps(); });
  __m512 w0, w1;
  for (int64_t k = 0; k + 1 < K; k += 2, block += kLayouts[KIND].bytes, rows.next()) {
    if constexpr (R > 1) send_far(block, kLayouts[KIND].bytes);
    float_pair<KIND>(block, w0, w1);
    each<R>([&](auto r) LG_INLINE {
      even[r] = _mm512_fmadd_ps(w0, _mm512_set1_ps(rows[r][0]), even[r]);
      odd[r] = _mm512_fmadd_ps(w1, _mm512_set1_ps(rows[r][1]), odd[r]);
    });
  }
  if (K % 2) {  // the other half of the pair is padding
    float_pair<KIND>(block, w0, w1);
    each<R>([&](auto r) LG_INLINE { even[r] = _mm512_fmadd_ps(w0, _mm512_set1_ps(rows[r][0]), even[r]); });
  }
  each<R>([&](auto r) LG_INLINE { _mm512_store_ps(tile + 16 * r, _mm512_add_ps(even[r], odd[r])); });
}

}  // namespace
}  // namespace lg
