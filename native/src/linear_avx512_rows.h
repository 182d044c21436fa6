// Quantising rows of activations on AVX-512.
//
// Knows: the record of a quantised row. Does not know: weights.
//
// A row is read twice: for the magnitudes of all its groups, whose divisions are then made sixteen at a time, and for
// the values. A group alone, from its loads to its stores, took nearly twice as long: latencies followed one another.
#pragma once
#include <immintrin.h>

#include "linear_rows.h"

namespace lg {
namespace {

inline LG_INLINE __m512 bc(float x) { return _mm512_set1_ps(x); }

// The number of each lane's quad, among the first 16 values of a group or the others.
inline LG_INLINE __m512i quad_numbers(int from) {
  const __m512i first = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  return _mm512_add_epi32(first, _mm512_set1_epi32(from));
}

// quad_key of 4 quads, in all four lanes of each.
inline LG_INLINE __m512i quad_keys(__m512 x, __m512i quads) {
  const __m512i keys = _mm512_ternarylogic_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x7ffffff8), quads, 0xea);
  const __m512i pairs = _mm512_max_epu32(keys, _mm512_shuffle_epi32(keys, static_cast<_MM_PERM_ENUM>(0x4e)));
  return _mm512_max_epu32(pairs, _mm512_shuffle_epi32(pairs, static_cast<_MM_PERM_ENUM>(0xb1)));
}

// The largest of 8 quads' keys, in all lanes.
inline LG_INLINE __m512i largest(__m512i a, __m512i b) {
  const __m512i m = _mm512_max_epu32(a, b), n = _mm512_max_epu32(m, _mm512_shuffle_i32x4(m, m, 0x4e));
  return _mm512_max_epu32(n, _mm512_shuffle_i32x4(n, n, 0xb1));
}

inline LG_INLINE __m512i without(__m512i keys, __m512i key) {
  return _mm512_maskz_mov_epi32(_mm512_cmpneq_epi32_mask(keys, key), keys);
}

inline LG_INLINE uint32_t lowest_lane(__m512i x) {
  return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm512_castsi512_si128(x)));
}

// Sixteen groups' scales, their keys before that.
struct alignas(64) Scales {
  uint32_t first[16], third[16];
  float factor[16], d[16];
};

// The keys that a group's scale comes from, and where its fine quads are.
inline LG_INLINE void find_fine(const float* x, QGroup& group, uint32_t* first_key, uint32_t* third_key) {
  __m512i a = quad_keys(_mm512_loadu_ps(x), quad_numbers(0)), b = quad_keys(_mm512_loadu_ps(x + 16), quad_numbers(4));
  const __m512i first = largest(a, b);
  a = without(a, first), b = without(b, first);
  const __m512i second = largest(a, b);
  *first_key = lowest_lane(first);
  *third_key = lowest_lane(largest(without(a, second), without(b, second)));
  group.at[0] = static_cast<uint16_t>((*first_key & 7u) * 64);
  group.at[1] = static_cast<uint16_t>((lowest_lane(second) & 7u) * 64);
}

// group_scale of sixteen.
inline void group_scales(Scales& s) {
  const __m512i low = _mm512_set1_epi32(7), infinite = _mm512_set1_epi32(0x7f800000);
  const __m512i first = _mm512_or_si512(_mm512_load_si512(s.first), low);
  const __m512 amax = _mm512_castsi512_ps(first),
               rest = _mm512_castsi512_ps(_mm512_or_si512(_mm512_load_si512(s.third), low));
  const __mmask16 odd = _mm512_cmpge_epu32_mask(first, infinite);
  const __mmask16 usual = _mm512_kandn(odd, _mm512_cmp_ps_mask(amax, bc(kTinyAmax), _CMP_GE_OQ));
  const __m512 d = _mm512_max_ps(_mm512_div_ps(rest, bc(127.0f)), _mm512_div_ps(amax, bc(32512.0f)));
  _mm512_store_ps(s.factor, _mm512_maskz_div_ps(usual, bc(1.0f), d));
  _mm512_store_ps(s.d, _mm512_mask_mov_ps(_mm512_maskz_mov_ps(usual, d), odd, bc(bits_to_float(0x7fc00000u))));
}

// The sums of a and of b, in the two lowest lanes.
inline LG_INLINE __m128i two_sums(__m512i a, __m512i b) {
  const __m512i pairs = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(pairs), _mm512_extracti64x4_epi64(pairs, 1));
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  return _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
}

// The upper bits of the quad at `at`, where the others' are 0 or another's.
inline LG_INLINE void store_hi(__m512i a, __m512i b, int at, int8_t* hi) {
  const __m512i quad = _mm512_set1_epi32(at / 64);
  const __m512i m = _mm512_or_si512(_mm512_maskz_mov_epi32(_mm512_cmpeq_epi32_mask(quad, quad_numbers(0)), a),
                                    _mm512_maskz_mov_epi32(_mm512_cmpeq_epi32_mask(quad, quad_numbers(4)), b));
  const __m256i half = _mm256_or_si256(_mm512_castsi512_si256(m), _mm512_extracti64x4_epi64(m, 1));
  const __m128i four = _mm_or_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  _mm_storeu_si32(hi, _mm_cvtepi32_epi8(four));
}

// q of a group whose fine quads are known.
inline LG_INLINE void put_values(const float* x, float factor, float d, QGroup& group) {
  // A factor of 0 means zeros, also where x is a NaN.
  const __mmask16 any = factor == 0.0f ? 0 : 0xffff;
  const __m512i a = _mm512_maskz_cvtps_epi32(any, _mm512_mul_ps(_mm512_loadu_ps(x), bc(factor)));
  const __m512i b = _mm512_maskz_cvtps_epi32(any, _mm512_mul_ps(_mm512_loadu_ps(x + 16), bc(factor)));
  _mm_store_si128(reinterpret_cast<__m128i*>(group.lo), _mm512_cvtepi32_epi8(a));
  _mm_store_si128(reinterpret_cast<__m128i*>(group.lo + 16), _mm512_cvtepi32_epi8(b));
  const __m512i half = _mm512_set1_epi32(128);
  const __m512i ha = _mm512_srai_epi32(_mm512_add_epi32(a, half), 8),
                hb = _mm512_srai_epi32(_mm512_add_epi32(b, half), 8);
  for (int i = 0; i < 2; ++i) store_hi(ha, hb, group.at[i], group.hi[i]);
  const __m128i sums = two_sums(a, b), all = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0xb1));
  _mm_storeu_si64(group.minus + 1, _mm_sub_epi32(_mm_setzero_si128(), sums));
  group.minus[0] = -_mm_cvtsi128_si32(all);
  group.d = d;
  group.s = d * _mm_cvtss_f32(_mm_cvtepi32_ps(all));
}

void quantize_row(const float* x, int64_t K, uint8_t* record) {
  QGroup* groups = reinterpret_cast<QGroup*>(record);
  const int64_t count = K / kGroup;
  Scales s = {};
  for (int64_t from = 0; from < count; from += 16) {
    const int some = static_cast<int>(count - from < 16 ? count - from : 16);
    for (int i = 0; i < some; ++i) find_fine(x + kGroup * (from + i), groups[from + i], s.first + i, s.third + i);
    group_scales(s);
    for (int i = 0; i < some; ++i) put_values(x + kGroup * (from + i), s.factor[i], s.d[i], groups[from + i]);
  }
  zero_padding(groups, count);
}

}  // namespace
}  // namespace lg
