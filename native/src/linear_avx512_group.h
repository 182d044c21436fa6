// A group of a packed block in AVX-512 registers, and the integer products that its rows take from it.
//
// Knows: packed blocks (linear_layout.h), vpdpbusd. Does not know: how many rows there are, where sums are kept.
#pragma once
#include "linear_avx512_rows.h"
#include "linear_layout.h"

namespace lg {

// The linear of that level, which serves few rows, rows left over and float weights at the level above too.
void linear_avx512(const PackedLinear* w, const uint8_t* act, int64_t act_stride, int32_t M, int32_t begin, int32_t end,
                   float* out, int64_t out_stride, int32_t epilogue, uint8_t* scratch);

namespace {

struct Group {
  __m512i w[8];
  __m512 d;   // scale
  __m512 m;   // minimum; for Q6_K the scale of the second half
  __m512 sc;  // Q6_K: the scale of the first half
};

inline LG_INLINE __m512 halves16(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline LG_INLINE __m512i load(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline LG_INLINE __m128i load16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
inline LG_INLINE __m512 bytes_to_float(__m128i v) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(v)); }

inline LG_INLINE void prefetch(const uint8_t* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch(reinterpret_cast<const char*>(p + i), _MM_HINT_T0);
}

inline LG_INLINE void unpack_nibbles(const uint8_t* p, __m512i (&w)[8]) {
  const __m512i mask = _mm512_set1_epi8(15);
  each<4>([&](auto J) LG_INLINE {
    constexpr int j = J;
    __m512i x = load(p + 64 * j);
    asm("" : "+v"(x));  // the compiler would load it twice, and few rows wait for loads
    w[2 * j] = _mm512_and_si512(x, mask);
    w[2 * j + 1] = _mm512_and_si512(_mm512_srli_epi16(x, 4), mask);
  });
}

// a | (b & c)
inline LG_INLINE __m512i or_and(__m512i a, __m512i b, __m512i c) { return _mm512_ternarylogic_epi32(a, b, c, 0xf8); }

inline LG_INLINE void add_bit_plane(const uint8_t* p, __m512i (&w)[8]) {
  const __m512i bit = _mm512_set1_epi8(16), plane = load(p);
  each<8>([&](auto V) LG_INLINE {
    constexpr int v = V;
    const __m512i x =
        v <= 4 ? _mm512_slli_epi16(plane, v <= 4 ? 4 - v : 0) : _mm512_srli_epi16(plane, v > 4 ? v - 4 : 0);
    w[v] = or_and(w[v], x, bit);
  });
}

inline LG_INLINE void add_two_bit_planes(const uint8_t* p, __m512i (&w)[8]) {
  const __m512i bits = _mm512_set1_epi8(48);
  each<8>([&](auto V) LG_INLINE {
    constexpr int v = V, i = v % 4;
    const __m512i plane = load(p + 64 * (v / 4));
    const __m512i x = i <= 2 ? _mm512_slli_epi16(plane, i <= 2 ? 4 - 2 * i : 0) : _mm512_srli_epi16(plane, 2);
    w[v] = or_and(w[v], x, bits);
  });
}

// Scale and minimum of group `g` of a Q4_K or Q5_K record, from its 256 bytes of scales.
inline LG_INLINE void k_scales(const uint8_t* scales, int g, Group& out) {
  const __m128i low = load16(scales + 64 + 16 * g);
  const __m128i high = _mm_srl_epi16(load16(scales + 192 + 16 * (g >> 1)), _mm_cvtsi32_si128((g & 1) * 4));
  const __m128i four = _mm_set1_epi8(15), two = _mm_set1_epi8(0x30);
  const __m128i scale = _mm_or_si128(_mm_and_si128(low, four), _mm_and_si128(_mm_slli_epi16(high, 4), two));
  const __m128i min =
      _mm_or_si128(_mm_and_si128(_mm_srli_epi16(low, 4), four), _mm_and_si128(_mm_slli_epi16(high, 2), two));
  out.d = _mm512_mul_ps(halves16(scales), bytes_to_float(scale));
  out.m = _mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(halves16(scales + 32), bytes_to_float(min)));
}

// Sends for groups to come. One row: touching the next group line by line shows the hardware's prefetcher one ascending
// stream, whatever the order of the loads; it then keeps up with a plain read. Distances of 1 KiB and more cost 10-30 %.
// Q8_0's loads are in order already, and lose by it.
template <int KIND, bool ONE_ROW>
inline LG_INLINE void send_ahead(const uint8_t* block, int64_t g) {
  constexpr int64_t share = group_bytes(KIND);
  if constexpr (!ONE_ROW) {
    send_far(block + g * share, share);
  } else if constexpr (KIND != W_Q8_0) {
    prefetch(block + (g + 1) * share, share);
  }
}

// Group g of a packed block.
template <int KIND, bool ONE_ROW = false>
inline LG_INLINE void read_group(const uint8_t* block, int64_t g, Group& out) {
  send_ahead<KIND, ONE_ROW>(block, g);
  const uint8_t* p = block + quants_at(KIND, g);
  const uint8_t* scales = block + scales_at(KIND, g);
  if constexpr (KIND == W_Q8_0) {
    each<8>([&](auto v) LG_INLINE { out.w[v] = load(p + 64 * v); });
  } else {
    unpack_nibbles(p, out.w);
  }
  if constexpr (KIND == W_Q5_0 || KIND == W_Q5_1 || KIND == W_Q5_K) add_bit_plane(p + 256, out.w);
  if constexpr (KIND == W_Q4_K || KIND == W_Q5_K) {
    k_scales(scales, static_cast<int>(g & 7), out);
  } else {
    out.d = halves16(scales);
    if constexpr (has_min(KIND)) out.m = halves16(scales + 32);
  }
  if constexpr (KIND == W_Q6_K) {
    add_two_bit_planes(p + 256, out.w);
    out.sc = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16(scales + 32 + 32 * (g & 7))));
    out.m = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16(scales + 48 + 32 * (g & 7))));
  }
}

// The compiler splits this into a broadcast and a multiply; written out it is one instruction.
inline LG_INLINE void dot4(__m512i& acc, __m512i w, const int8_t* a) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*reinterpret_cast<const int32_t*>(a)));
}

template <int FROM, int TO>
inline LG_INLINE __m512i dot(__m512i acc, const __m512i (&w)[8], const int8_t* a) {
  each<TO - FROM>([&](auto V) LG_INLINE {
    constexpr int v = FROM + V;
    dot4(acc, w[v], a + 4 * v);
  });
  return acc;
}

// A group's quads and, for Q6_K, its two scales in memory, where a row finds those of its fine quads.
struct alignas(64) Spill {
  uint8_t quads[512];
  float scales[2][kLanes];
};

// One fine quad's share of a dot, in units of 256.
template <class Row>
inline LG_INLINE __m512i fine_dot(__m512i acc, const uint8_t* quads, const Row& row, int i) {
  dot4(acc, _mm512_loadu_si512(quads + row.at[i]), row.hi[i]);
  return acc;
}

// Quads [FROM, TO) times lo, less the kind's offset times q; `minus` says of which half.
template <int KIND, int FROM, int TO>
inline LG_INLINE __m512i coarse_dot(const Group& x, const QGroup& row, int minus) {
  __m512i start = _mm512_setzero_si512();
  if constexpr (offset_bits(KIND) >= 0)
    start = _mm512_slli_epi32(_mm512_set1_epi32(row.minus[minus]), offset_bits(KIND) & 31);
  return dot<FROM, TO>(start, x.w, row.lo);
}

}  // namespace
}  // namespace lg
