// Sixteen lanes of float32 or int32 on AVX-512: one register each.
//
// Knows: the instructions of this level. Does not know: what the lanes mean.
// The three lanes_*.h headers offer the same names, so that rows_impl.h and attention_impl.h are written once.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace lg {
namespace {

struct F16 {
  __m512 v;
};
struct I16 {
  __m512i v;
};
struct M16 {
  __mmask16 m;
};

static inline F16 f_set(float x) { return {_mm512_set1_ps(x)}; }
static inline F16 f_load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void f_store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }

// Lanes lo <= i < hi; the bounds may lie outside 0..16.
static inline M16 m_range(int64_t lo, int64_t hi) {
  const uint32_t below_hi = hi >= 16 ? 0xffffu : hi <= 0 ? 0u : (1u << hi) - 1u;
  const uint32_t below_lo = lo >= 16 ? 0xffffu : lo <= 0 ? 0u : (1u << lo) - 1u;
  return {static_cast<__mmask16>(below_hi & ~below_lo)};
}
static inline F16 f_load_part(const float* p, M16 m) { return {_mm512_maskz_loadu_ps(m.m, p)}; }
static inline void f_store_part(float* p, F16 a, M16 m) { _mm512_mask_storeu_ps(p, m.m, a.v); }
static inline F16 f_select(M16 m, F16 yes, F16 no) { return {_mm512_mask_blend_ps(m.m, no.v, yes.v)}; }
static inline I16 i_select(M16 m, I16 yes, I16 no) { return {_mm512_mask_blend_epi32(m.m, no.v, yes.v)}; }
static inline M16 f_greater(F16 a, F16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
static inline M16 f_less(F16 a, F16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
static inline bool f_any_nan(F16 a, F16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_UNORD_Q) != 0; }

static inline F16 f_add(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline F16 f_sub(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline F16 f_mul(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline F16 f_div(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline F16 f_fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// a > b ? a : b and a < b ? a : b: a NaN in either operand gives b.
static inline F16 f_max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline F16 f_min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline F16 f_abs(F16 a) { return {_mm512_abs_ps(a.v)}; }
static inline F16 f_round(F16 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// a * 2^n for whole n.
static inline F16 f_scale2(F16 a, F16 n) { return {_mm512_scalef_ps(a.v, n.v)}; }

// a + 2^23 * n read as whole numbers, where u = 1.5 * 2^23 + n: multiplies a by 2^n. Lanes outside m become 0.
static inline F16 f_shift_exponent(M16 m, F16 a, F16 u) {
  return {_mm512_castsi512_ps(_mm512_maskz_add_epi32(m.m, _mm512_castps_si512(a.v),
                                                     _mm512_slli_epi32(_mm512_castps_si512(u.v), 23)))};
}
static inline M16 f_not_less(F16 a, F16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_NLT_UQ)}; }
static inline F16 f_keep(M16 m, F16 a) { return {_mm512_maskz_mov_ps(m.m, a.v)}; }  // 0 outside m

// Lane i becomes lane i ^ Width.
template <int Width>
static inline F16 f_swap(F16 a) {
  if (Width == 8) return {_mm512_shuffle_f32x4(a.v, a.v, 0x4e)};
  if (Width == 4) return {_mm512_shuffle_f32x4(a.v, a.v, 0xb1)};
  return {_mm512_permute_ps(a.v, Width == 2 ? 0x4e : 0xb1)};
}

static inline I16 i_set(int32_t x) { return {_mm512_set1_epi32(x)}; }
static inline I16 i_add(I16 a, I16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
static inline F16 i_to_f(I16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
static inline I16 f_bits(F16 a) { return {_mm512_castps_si512(a.v)}; }
static inline I16 f_to_i(F16 a) { return {_mm512_cvtps_epi32(a.v)}; }  // nearest, ties to even
static inline I16 i_load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
static inline void i_store(int32_t* p, I16 a) { _mm512_storeu_si512(p, a.v); }
static inline void i_store_u8(uint8_t* p, I16 a) {  // the low byte of each lane
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
static inline F16 f_load_bf16(const uint8_t* p) {
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}

// 64 bytes: sixteen groups of four.
struct B64 {
  __m512i v;
};
static inline B64 b_load(const uint8_t* p) {
  B64 r = {_mm512_loadu_si512(p)};
  __asm__("" : "+v"(r.v));  // one load, one register: GCC would load again for each use
  return r;
}
static inline B64 b_repeat(const void* four) {
  int32_t x;
  __builtin_memcpy(&x, four, 4);
  return {_mm512_set1_epi32(x)};
}
static inline B64 b_low_nibbles(B64 a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
static inline B64 b_high_nibbles(B64 a) {
  return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))};
}
// Each byte, of 0 to 15, becomes its place's in the table.
static inline B64 b_lookup(const int8_t (&table)[16], B64 x) {
  const __m512i t = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm512_shuffle_epi8(t, x.v)};
}
static inline void b_store(uint8_t* p, B64 a) { _mm512_storeu_si512(p, a.v); }
// Two more bits, bits 4 and 5, from `upper` shifted left by Shift (right if negative).
template <int Shift>
static inline B64 b_join(B64 nibbles, B64 upper) {
  const __m512i at = Shift >= 0 ? _mm512_slli_epi16(upper.v, Shift & 7) : _mm512_srli_epi16(upper.v, -Shift & 7);
  return {_mm512_or_si512(nibbles.v, _mm512_and_si512(at, _mm512_set1_epi8(0x30)))};
}
// 64 bytes of bf16 as sixteen pairs: the first of each pair, the second of each.
static inline F16 f_first_bf16(B64 a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(a.v, 16))}; }
static inline F16 f_second_bf16(B64 a) {
  return {_mm512_castsi512_ps(_mm512_and_si512(a.v, _mm512_set1_epi32(-65536)))};
}
// Each lane gains the dot product of its four unsigned and four signed bytes.
// (By name, not by intrinsic: GCC 12 copies the sum before each intrinsic and spills whole blocks of sums.)
static inline I16 i_dot(I16 sum, B64 u, B64 s) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(u.v), "v"(s.v));
  return sum;
}
// The same for u stored with 128 added; kOffsetStays says that 128 * (sum of s) is still in the result.
constexpr bool kOffsetStays = true;
static inline I16 i_dot_offset(I16 sum, B64 u, B64 s) { return i_dot(sum, u, s); }
constexpr int kMostWeight = 254;  // the largest quantised weight, less one: any byte times any value fits i_dot
constexpr int kMaxUnit = 6;      // queries computed together
constexpr int kSubs = 4;         // records of keys computed together
constexpr int kFloatSubs = 3;    // the same for float keys, which need registers to widen
constexpr int kValueVectors = 4;  // sixteens of value dims computed together

// Lanes meet 8 apart, then 4, 2, 1: the same order at every level.
static inline float f_sum(F16 a) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
static inline float f_top(F16 a) {
  const __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

static inline __m512 top_pair(__m512 a, __m512 b) {
  return _mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}
static inline __m512 top_four(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512d ab = _mm512_castps_pd(top_pair(a, b)), cd = _mm512_castps_pd(top_pair(c, d));
  return _mm512_max_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
}
// The highest lane of each of N <= 8, that of the i-th in lane top_lane(i): all at once they share most of the work.
static constexpr int top_lane(int i) { return i < 4 ? i : i + 4; }
template <int N>
static inline F16 f_tops(const F16 (&x)[N]) {
  const auto at = [&](int i) { return x[i < N ? i : N - 1].v; };
  const __m512 low = top_four(at(0), at(1), at(2), at(3));
  const __m512 high = N <= 4 ? low : top_four(at(4), at(5), at(6), at(7));
  const __m512 half = _mm512_max_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
  return {_mm512_max_ps(half, _mm512_shuffle_f32x4(half, half, 0xb1))};
}

}  // namespace
}  // namespace lg
