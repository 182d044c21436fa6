// Linear kernels for AVX-512 with VNNI: quantised weights by vpdpbusd, 16 outputs a vector.
//
// Knows: packed blocks (linear_layout.h), quantised rows. Does not know: threads, buffers, how a block was packed.
//
// One micro kernel serves every number of rows: per group of 32 it holds the 8 quads of 16 outputs in registers and,
// for each row, takes 8 vpdpbusd with the activation broadcast from memory, one conversion, and the float step of the
// contract.
#include "linear_layout.h"
#include "linear_rows.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "linear_avx512_float.h"
#include "vec_avx512.h"

namespace lg {
namespace {

struct Group {
  __m512i w[8];
  __m512 d;        // scale
  __m512 m;        // minimum; for Q6_K the scale of the second half
  __m512 sc;       // Q6_K: the scale of the first half
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
    const __m512i x = load(p + 64 * j);
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
    const __m512i x = v <= 4 ? _mm512_slli_epi16(plane, v <= 4 ? 4 - v : 0) : _mm512_srli_epi16(plane, v > 4 ? v - 4 : 0);
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
  const __m128i min = _mm_or_si128(_mm_and_si128(_mm_srli_epi16(low, 4), four), _mm_and_si128(_mm_slli_epi16(high, 2), two));
  out.d = _mm512_mul_ps(halves16(scales), bytes_to_float(scale));
  out.m = _mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(halves16(scales + 32), bytes_to_float(min)));
}

// Group g of a packed block.
template <int KIND>
inline LG_INLINE void read_group(const uint8_t* block, int64_t g, Group& out) {
  // Touching the next group line by line shows the hardware's prefetcher one ascending stream, whatever the order of
  // the loads below; it then keeps up with a plain read. Distances of 1 KiB and more cost 10-30 % here. Q8_0's loads
  // are in order already, and lose by it.
  constexpr int64_t share = kLayouts[KIND].bytes / (kLayouts[KIND].span / kGroup);
  if constexpr (KIND != W_Q8_0) prefetch(block + (g + 1) * share, share);
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

// Group g of R rows. Three rows share a pointer (x86 adds a register and twice a register for nothing), so that 12 rows
// need five registers; the compiler left alone would make twelve pointers and keep most of them on the stack.
template <int R>
struct Rows {
  static constexpr int kBases = (R + 2) / 3;
  const uint8_t* base[kBases];
  int64_t stride;

  inline LG_INLINE Rows(const uint8_t* act, int64_t act_stride) : stride(act_stride) {
    each<kBases>([&](auto i) LG_INLINE { base[i] = act + 3 * i * act_stride; });
  }
  inline LG_INLINE void next() {
    each<kBases>([&](auto i) LG_INLINE {
      base[i] += sizeof(QGroup);
      asm("" : "+r"(base[i]));
    });
    asm("" : "+r"(stride));
  }
  inline LG_INLINE const QGroup& operator[](int r) const {
    return *reinterpret_cast<const QGroup*>(base[r / 3] + r % 3 * stride);
  }
};

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

// Quads 4h .. 4h + 3 times a row, less the kind's offset, as int32.
template <int KIND, int H>
inline LG_INLINE __m512i half_dot(const Group& x, const QGroup& row) {
  if constexpr (offset_bits(KIND) < 0) return dot<4 * H, 4 * H + 4>(_mm512_setzero_si512(), x.w, row.q);
  return dot<4 * H, 4 * H + 4>(_mm512_slli_epi32(_mm512_set1_epi32(row.minus[H]), offset_bits(KIND) & 31), x.w, row.q);
}

// float(int32 dot of the group); for Q6_K the two halves times their integer scales, below 2^24, so exact in float.
template <int KIND>
inline LG_INLINE __m512 group_dot(const Group& x, const QGroup& row) {
  if constexpr (offset_bits(KIND) < 0) return _mm512_cvtepi32_ps(dot<0, 8>(_mm512_setzero_si512(), x.w, row.q));
  const __m512i first = half_dot<KIND, 0>(x, row), second = half_dot<KIND, 1>(x, row);
  if constexpr (KIND != W_Q6_K) return _mm512_cvtepi32_ps(_mm512_add_epi32(first, second));
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(second), x.m, _mm512_mul_ps(_mm512_cvtepi32_ps(first), x.sc));
}

// tile[r][16] = the contract's chain over all groups, for R rows and the 16 outputs of one block.
template <int KIND, int R>
void quantized_tile(const uint8_t* block, int64_t K, const uint8_t* act, int64_t act_stride, float* tile) {
  Rows<R> rows(act, act_stride);
  __m512 acc[R];
  each<R>([&](auto r) LG_INLINE { acc[r] = _mm512_setzero_ps(); });
  for (int64_t g = 0; g < K / kGroup; ++g, rows.next()) {
    Group x;
    read_group<KIND>(block, g, x);
    each<R>([&](auto r) LG_INLINE {
      const QGroup& row = rows[r];
      const __m512 scale = _mm512_mul_ps(x.d, _mm512_set1_ps(row.d));
      acc[r] = _mm512_fmadd_ps(group_dot<KIND>(x, row), scale, acc[r]);
      if constexpr (has_min(KIND)) acc[r] = _mm512_fmadd_ps(x.m, _mm512_set1_ps(row.s), acc[r]);
    });
  }
  each<R>([&](auto r) LG_INLINE { _mm512_store_ps(tile + 16 * r, acc[r]); });
}

// One function for each number of rows.
template <int KIND>
struct TileTable {
  using Fn = void (*)(const uint8_t* block, int64_t K, const uint8_t* act, int64_t act_stride, float* tile);
  Fn of_rows[kMaxRows + 1] = {};

  constexpr TileTable() {
    each<kMaxRows>([&](auto r) { of_rows[r + 1] = quantized_tile<KIND, r + 1>; });
  }
};

// Each chunk of rows unpacks a block's weights anew: the vector pipes that do it are idle otherwise, and an unpacked
// panel, twice as large, was slower to read.
template <int KIND>
void run_quantized(const PackedLinear& w, const uint8_t* act, int64_t act_stride, int M, int64_t begin, int64_t end, float* out,
                   int64_t out_stride, int32_t epilogue) {
  constexpr TileTable<KIND> table;
  const int parts = w.gated ? 2 : 1, step = tile_rows(act_stride);
  const int64_t bytes = block_bytes(KIND, w.cols);
  alignas(64) float tile[2 * kMaxRows * kLanes];
  for (int row = 0; row < M; row += step) {
    const int rows = step < M - row ? step : M - row, R = chunk_rows(rows);
    for (int64_t i = begin; i < end; ++i) {
      for (int r = row; r < row + rows; r += R) {
        const int n = R < row + rows - r ? R : row + rows - r;
        for (int p = 0; p < parts; ++p) {
          table.of_rows[n](w.data + (parts * i + p) * bytes, w.cols, act + r * act_stride, act_stride, tile + p * n * kLanes);
        }
        store_tile(w, tile, n, i, epilogue, out + r * out_stride, out_stride);
      }
    }
  }
}

void linear(const PackedLinear* w, const uint8_t* act, int64_t act_stride, int32_t M, int32_t begin, int32_t end, float* out,
            int64_t out_stride, int32_t epilogue, uint8_t*) {
  constexpr decltype(&run_quantized<W_Q4_1>) table[W_KINDS] = {
      run_float<W_F32>,   run_float<W_F16>,   run_float<W_BF16>,  run_quantized<W_Q8_0>, run_quantized<W_Q4_0>, run_quantized<W_Q4_1>,
      run_quantized<W_Q5_0>, run_quantized<W_Q5_1>, run_quantized<W_Q4_K>, run_quantized<W_Q5_K>, run_quantized<W_Q6_K>};
  if (M <= 0 || begin >= end) return;
  table[w->kind](*w, act, act_stride, M, begin, end, out, out_stride, epilogue);
}

void quantize_row(const float* x, int64_t K, uint8_t* record) {
  QGroup* groups = reinterpret_cast<QGroup*>(record);
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int64_t g = 0; g < K / kGroup; ++g) {
    const __m512 low = _mm512_loadu_ps(x + 32 * g), high = _mm512_loadu_ps(x + 32 * g + 16);
    const __m512i most = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(low), magnitude),
                                          _mm512_and_si512(_mm512_castps_si512(high), magnitude));
    const GroupScale scale = group_scale(_mm512_reduce_max_epu32(most));
    const __m512 factor = _mm512_set1_ps(scale.factor);
    // A factor of 0 means zeros, also where x is a NaN.
    const __mmask16 any = scale.factor == 0.0f ? 0 : 0xffff;
    const __m512i a = _mm512_maskz_cvtps_epi32(any, _mm512_mul_ps(low, factor));
    const __m512i b = _mm512_maskz_cvtps_epi32(any, _mm512_mul_ps(high, factor));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(groups[g].q), _mm512_cvtepi32_epi8(a));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(groups[g].q + 16), _mm512_cvtepi32_epi8(b));
    put_group_scale(groups[g], scale.d, _mm512_reduce_add_epi32(a), _mm512_reduce_add_epi32(b));
  }
  zero_padding(record, K);
}

}  // namespace

void fill_linear_avx512(Kernels* k) {
  k->quantize_row = quantize_row;
  k->linear = linear;
  k->table_row = table_row;
}

}  // namespace lg

#else

namespace lg {
void fill_linear_avx512(Kernels*) {}
}  // namespace lg

#endif
