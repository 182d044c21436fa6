// Sixteen lanes of float32 or int32 on AVX2 + FMA + F16C: two registers each.
//
// Knows: the instructions of this level. Does not know: what the lanes mean.
// The three lanes_*.h headers offer the same names, so that rows_impl.h and attention_impl.h are written once.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace lg {
namespace {

struct F16 {
  __m256 a, b;
};
struct I16 {
  __m256i a, b;
};
struct M16 {
  __m256i a, b;
};

static inline F16 f_set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline F16 f_load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void f_store(float* p, F16 x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}

// Lanes lo <= i < hi; the bounds may lie outside 0..16.
static inline M16 m_range(int64_t lo, int64_t hi) {
  const int32_t l = lo < 0 ? 0 : lo > 16 ? 16 : static_cast<int32_t>(lo);
  const int32_t h = hi < 0 ? 0 : hi > 16 ? 16 : static_cast<int32_t>(hi);
  const __m256i below = _mm256_set1_epi32(l - 1), end = _mm256_set1_epi32(h);
  const __m256i ia = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), ib = _mm256_add_epi32(ia, _mm256_set1_epi32(8));
  return {_mm256_and_si256(_mm256_cmpgt_epi32(ia, below), _mm256_cmpgt_epi32(end, ia)),
          _mm256_and_si256(_mm256_cmpgt_epi32(ib, below), _mm256_cmpgt_epi32(end, ib))};
}
static inline F16 f_load_part(const float* p, M16 m) {
  return {_mm256_maskload_ps(p, m.a), _mm256_maskload_ps(p + 8, m.b)};
}
static inline void f_store_part(float* p, F16 x, M16 m) {
  _mm256_maskstore_ps(p, m.a, x.a);
  _mm256_maskstore_ps(p + 8, m.b, x.b);
}
static inline F16 f_select(M16 m, F16 yes, F16 no) {
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_castsi256_ps(m.a)),
          _mm256_blendv_ps(no.b, yes.b, _mm256_castsi256_ps(m.b))};
}
static inline I16 i_select(M16 m, I16 yes, I16 no) {
  return {_mm256_blendv_epi8(no.a, yes.a, m.a), _mm256_blendv_epi8(no.b, yes.b, m.b)};
}
static inline M16 f_greater(F16 x, F16 y) {
  return {_mm256_castps_si256(_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ)),
          _mm256_castps_si256(_mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ))};
}
static inline M16 f_less(F16 x, F16 y) { return f_greater(y, x); }
static inline bool f_any_nan(F16 x, F16 y) {
  const __m256 a = _mm256_cmp_ps(x.a, y.a, _CMP_UNORD_Q), b = _mm256_cmp_ps(x.b, y.b, _CMP_UNORD_Q);
  return _mm256_movemask_ps(_mm256_or_ps(a, b)) != 0;
}

static inline F16 f_add(F16 x, F16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline F16 f_sub(F16 x, F16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline F16 f_mul(F16 x, F16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline F16 f_div(F16 x, F16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline F16 f_fma(F16 x, F16 y, F16 z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
// x > y ? x : y and x < y ? x : y: a NaN in either operand gives y.
static inline F16 f_max(F16 x, F16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline F16 f_min(F16 x, F16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline F16 f_abs(F16 x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
static inline F16 f_round(F16 x) {
  return {_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
static inline __m256 scale2_half(__m256 x, __m256 n) {
  const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(x, _mm256_castsi256_ps(bits));
}
// x * 2^n for whole n in -126..128 (128 gives infinity).
static inline F16 f_scale2(F16 x, F16 n) { return {scale2_half(x.a, n.a), scale2_half(x.b, n.b)}; }

static inline __m256 shift_exponent_half(__m256i m, __m256 a, __m256 u) {
  const __m256i sum = _mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_castps_si256(u), 23));
  return _mm256_castsi256_ps(_mm256_and_si256(m, sum));
}
// x + 2^23 * n read as whole numbers, where u = 1.5 * 2^23 + n: multiplies x by 2^n. Lanes outside m become 0.
static inline F16 f_shift_exponent(M16 m, F16 x, F16 u) {
  return {shift_exponent_half(m.a, x.a, u.a), shift_exponent_half(m.b, x.b, u.b)};
}
static inline M16 f_not_less(F16 x, F16 y) {
  return {_mm256_castps_si256(_mm256_cmp_ps(x.a, y.a, _CMP_NLT_UQ)),
          _mm256_castps_si256(_mm256_cmp_ps(x.b, y.b, _CMP_NLT_UQ))};
}
static inline F16 f_keep(M16 m, F16 x) {  // 0 outside m
  return {_mm256_and_ps(_mm256_castsi256_ps(m.a), x.a), _mm256_and_ps(_mm256_castsi256_ps(m.b), x.b)};
}

// Lane i becomes lane i ^ Width.
template <int Width>
static inline F16 f_swap(F16 x) {
  if (Width == 8) return {x.b, x.a};
  if (Width == 4) return {_mm256_permute2f128_ps(x.a, x.a, 1), _mm256_permute2f128_ps(x.b, x.b, 1)};
  constexpr int order = Width == 2 ? 0x4e : 0xb1;
  return {_mm256_permute_ps(x.a, order), _mm256_permute_ps(x.b, order)};
}

static inline I16 i_set(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline I16 i_add(I16 x, I16 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
static inline F16 i_to_f(I16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
static inline I16 f_bits(F16 x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
static inline I16 f_to_i(F16 x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
static inline I16 i_load(const int32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
}
static inline void i_store(int32_t* p, I16 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), x.b);
}
static inline void i_store_u8(uint8_t* p, I16 x) {  // the low byte of each lane
  const __m256i low = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                       0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i a = _mm256_shuffle_epi8(x.a, low), b = _mm256_shuffle_epi8(x.b, low);
  const __m128i ab = _mm_unpacklo_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  const __m128i cd = _mm_unpacklo_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_unpacklo_epi64(ab, cd));
}
static inline __m256 bf16_half(const uint8_t* p) {
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
static inline F16 f_load_bf16(const uint8_t* p) { return {bf16_half(p), bf16_half(p + 16)}; }

// 64 bytes: sixteen groups of four.
struct B64 {
  __m256i a, b;
};
static inline B64 b_load(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
static inline B64 b_repeat(const void* four) {
  int32_t x;
  __builtin_memcpy(&x, four, 4);
  return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
static inline B64 b_low_nibbles(B64 x) {
  const __m256i low = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low)};
}
static inline B64 b_high_nibbles(B64 x) {
  const __m256i low = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(x.a, 4), low), _mm256_and_si256(_mm256_srli_epi16(x.b, 4), low)};
}
// Each byte, of 0 to 15, becomes its place's in the table.
static inline B64 b_lookup(const int8_t (&table)[16], B64 x) {
  const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm256_shuffle_epi8(t, x.a), _mm256_shuffle_epi8(t, x.b)};
}
static inline void b_store(uint8_t* p, B64 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), x.b);
}
template <int Shift>
static inline __m256i join_half(__m256i nibbles, __m256i upper) {
  const __m256i at = Shift >= 0 ? _mm256_slli_epi16(upper, Shift & 7) : _mm256_srli_epi16(upper, -Shift & 7);
  return _mm256_or_si256(nibbles, _mm256_and_si256(at, _mm256_set1_epi8(0x30)));
}
// Two more bits, bits 4 and 5, from `upper` shifted left by Shift (right if negative).
template <int Shift>
static inline B64 b_join(B64 nibbles, B64 upper) {
  return {join_half<Shift>(nibbles.a, upper.a), join_half<Shift>(nibbles.b, upper.b)};
}
// 64 bytes of bf16 as sixteen pairs: the first of each pair, the second of each.
static inline F16 f_first_bf16(B64 x) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(x.a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(x.b, 16))};
}
static inline F16 f_second_bf16(B64 x) {
  const __m256i upper = _mm256_set1_epi32(-65536);
  return {_mm256_castsi256_ps(_mm256_and_si256(x.a, upper)), _mm256_castsi256_ps(_mm256_and_si256(x.b, upper))};
}
static inline __m256i dot_half(__m256i sum, __m256i u, __m256i s) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
}
// Each lane gains the dot product of its four unsigned and four signed bytes, if sums of two products fit 16 bits.
static inline I16 i_dot(I16 sum, B64 u, B64 s) { return {dot_half(sum.a, u.a, s.a), dot_half(sum.b, u.b, s.b)}; }
// The same for u stored with 128 added; kOffsetStays says that 128 * (sum of s) is still in the result.
constexpr bool kOffsetStays = false;
static inline __m256i dot_offset_half(__m256i sum, __m256i u, __m256i s) {
  const __m256i value = _mm256_xor_si256(u, _mm256_set1_epi8(-128));
  return dot_half(sum, _mm256_abs_epi8(value), _mm256_sign_epi8(s, value));
}
static inline I16 i_dot_offset(I16 sum, B64 u, B64 s) {
  return {dot_offset_half(sum.a, u.a, s.a), dot_offset_half(sum.b, u.b, s.b)};
}
constexpr int kMostWeight = 126;  // the largest quantised weight, less one: two products with any value fit 16 bits
constexpr int kMaxUnit = 3;      // queries computed together
constexpr int kSubs = 1;         // records of keys computed together
constexpr int kFloatSubs = 1;    // the same for float keys, which need registers to widen
constexpr int kValueVectors = 1;  // sixteens of value dims computed together

// Lanes meet 8 apart, then 4, 2, 1: the same order at every level.
static inline float f_sum(F16 x) {
  const __m256 h = _mm256_add_ps(x.a, x.b);
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
static inline float f_top(F16 x) {
  const __m256 h = _mm256_max_ps(x.a, x.b);
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

// The highest lane of each of N <= 8, that of the i-th in lane top_lane(i).
static constexpr int top_lane(int i) { return i; }
template <int N>
static inline F16 f_tops(const F16 (&x)[N]) {
  alignas(64) float tops[16] = {};
  for (int i = 0; i < N; ++i) tops[i] = f_top(x[i]);
  return f_load(tops);
}

}  // namespace
}  // namespace lg
