// Linear kernels for AVX-512 with VNNI: quantised weights by vpdpbusd, 16 outputs a vector.
//
// Knows: packed blocks (linear_layout.h), quantised rows. Does not know: threads, buffers, how a block was packed.
//
// One micro kernel serves every number of rows: per group of 32 it holds the 8 quads of 16 outputs in registers and,
// for each row, takes 8 vpdpbusd with the activation broadcast from memory, one conversion, and the float step of the
// contract. One row is read where it lies; more are regrouped into chunks of up to 12, so that addresses are constants.
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

// One row where it lies; `c` as in a chunk.
struct RowInPlace {
  RowView row;
  const int32_t* c;

  static constexpr bool kDense = true;  // reading all of hi costs less than the walk to the fine quads of one row

  inline LG_INLINE const int8_t* lo(int, int64_t g) const { return row.lo + kGroup * g; }
  inline LG_INLINE const int8_t* hi(int, int64_t g) const { return row.hi + kGroup * g; }
  inline LG_INLINE const float* d(int, int64_t g) const { return row.d + g; }
  inline LG_INLINE const float* s(int, int64_t g) const { return row.s + g; }
  inline LG_INLINE const int32_t* offset(int, int64_t g) const { return c + 2 * g; }
};

// R rows regrouped, see chunk_group_bytes.
template <int KIND, int R>
struct RowsInChunk {
  static constexpr bool kDense = KIND == W_Q6_K;
  const uint8_t* chunk;

  inline LG_INLINE const uint8_t* group(int64_t g) const { return chunk + g * chunk_group_bytes(KIND, R); }
  inline LG_INLINE const int8_t* bytes(int64_t g) const { return reinterpret_cast<const int8_t*>(group(g)); }
  inline LG_INLINE const int8_t* lo(int r, int64_t g) const { return bytes(g) + 32 * r; }
  inline LG_INLINE const int8_t* hi(int r, int64_t g) const { return bytes(g) + 48 * R + 32 * r; }
  inline LG_INLINE const int32_t* at(int r, int64_t g) const { return reinterpret_cast<const int32_t*>(group(g) + 48 * R) + 2 * r; }
  inline LG_INLINE const int8_t* fine(int r, int64_t g) const { return bytes(g) + 56 * R + 8 * r; }
  inline LG_INLINE const float* d(int r, int64_t g) const { return reinterpret_cast<const float*>(group(g) + 32 * R) + r; }
  inline LG_INLINE const float* s(int r, int64_t g) const { return reinterpret_cast<const float*>(group(g) + 36 * R) + r; }
  inline LG_INLINE const int32_t* offset(int r, int64_t g) const {
    return reinterpret_cast<const int32_t*>(group(g) + 40 * R) + 2 * r;
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

// sum(w * (hi * 256 + lo)) over quads [FROM, TO), every quad with both bytes.
template <int FROM, int TO>
inline LG_INLINE __m512i dot_dense(__m512i acc, const __m512i (&w)[8], const int8_t* lo, const int8_t* hi) {
  const __m512i high = dot<FROM, TO>(_mm512_setzero_si512(), w, hi);
  return _mm512_add_epi32(dot<FROM, TO>(acc, w, lo), _mm512_slli_epi32(high, 8));
}

// float(int32 dot of the group); for Q6_K the two halves times their integer scales. `quads` are x.w in memory.
template <int KIND, class Rows>
inline LG_INLINE __m512 group_dot(const Group& x, const uint8_t* quads, const Rows& rows, int r, int64_t g) {
  if constexpr (KIND == W_Q6_K) {
    const __m512i first = dot_dense<0, 4>(_mm512_set1_epi32(rows.offset(r, g)[0]), x.w, rows.lo(r, g), rows.hi(r, g));
    const __m512i second = dot_dense<4, 8>(_mm512_set1_epi32(rows.offset(r, g)[1]), x.w, rows.lo(r, g), rows.hi(r, g));
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(second), x.m, _mm512_mul_ps(_mm512_cvtepi32_ps(first), x.sc));
  } else {
    const __m512i start = offset_bits(KIND) >= 0 ? _mm512_set1_epi32(rows.offset(r, g)[0]) : _mm512_setzero_si512();
    if constexpr (Rows::kDense) {
      return _mm512_cvtepi32_ps(dot_dense<0, 8>(start, x.w, rows.lo(r, g), rows.hi(r, g)));
    } else {
      __m512i high = _mm512_setzero_si512();
      dot4(high, load(quads + rows.at(r, g)[0]), rows.fine(r, g));
      dot4(high, load(quads + rows.at(r, g)[1]), rows.fine(r, g) + 4);
      const __m512i low = dot<0, 8>(start, x.w, rows.lo(r, g));
      return _mm512_cvtepi32_ps(_mm512_add_epi32(low, _mm512_slli_epi32(high, 8)));
    }
  }
}

// tile[r][16] = the contract's chain over all groups, for R rows and the 16 outputs of one block.
template <int KIND, int R, class Rows>
inline LG_INLINE void micro(const uint8_t* block, int64_t K, const Rows& rows, float* tile) {
  __m512 acc[R];
  each<R>([&](auto r) LG_INLINE { acc[r] = _mm512_setzero_ps(); });
  for (int64_t g = 0; g < K / kGroup; ++g) {
    Group x;
    read_group<KIND>(block, g, x);
    alignas(64) uint8_t quads[Rows::kDense ? 64 : 512];
    if constexpr (!Rows::kDense) each<8>([&](auto v) LG_INLINE { _mm512_store_si512(quads + 64 * v, x.w[v]); });
    each<R>([&](auto r) LG_INLINE {
      const __m512 scale = _mm512_mul_ps(x.d, _mm512_set1_ps(*rows.d(r, g)));
      acc[r] = _mm512_fmadd_ps(group_dot<KIND>(x, quads, rows, r, g), scale, acc[r]);
      if constexpr (has_min(KIND)) acc[r] = _mm512_fmadd_ps(x.m, _mm512_set1_ps(*rows.s(r, g)), acc[r]);
    });
  }
  each<R>([&](auto r) LG_INLINE { _mm512_store_ps(tile + 16 * r, acc[r]); });
}

template <int KIND>
void one_row(const uint8_t* block, int64_t K, const RowInPlace& row, float* tile) {
  micro<KIND, 1>(block, K, row, tile);
}

template <int KIND, int R>
void rows_of_chunk(const uint8_t* block, int64_t K, const uint8_t* chunk, float* tile) {
  micro<KIND, R>(block, K, RowsInChunk<KIND, R>{chunk}, tile);
}

// One function for each number of rows in a chunk.
template <int KIND>
struct ChunkTable {
  using Fn = void (*)(const uint8_t* block, int64_t K, const uint8_t* chunk, float* tile);
  Fn of_rows[kMaxRows + 1] = {};

  constexpr ChunkTable() {
    each<kMaxRows>([&](auto r) { of_rows[r + 1] = rows_of_chunk<KIND, r + 1>; });
  }
};

// Sums of the first and the second 16 of 32 bytes.
struct HalfSums {
  int32_t first, second;
};
inline LG_INLINE HalfSums half_sums(const int8_t* bytes) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
  __m256i sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), x);
  sums = _mm256_hadd_epi32(sums, sums);
  sums = _mm256_hadd_epi32(sums, sums);
  return {_mm256_extract_epi32(sums, 0), _mm256_extract_epi32(sums, 4)};
}

// -offset * sum(q) of a group of a row: one number, or for Q6_K one for each half of 16.
template <int KIND>
inline LG_INLINE void put_offsets(const RowView& row, int64_t g, int32_t* out) {
  if constexpr (KIND == W_Q6_K) {
    const HalfSums lo = half_sums(row.lo + kGroup * g), hi = half_sums(row.hi + kGroup * g);
    out[0] = -(lo.first + 256 * hi.first) * (1 << offset_bits(KIND));
    out[1] = -(lo.second + 256 * hi.second) * (1 << offset_bits(KIND));
  } else if constexpr (offset_bits(KIND) >= 0) {
    out[0] = -(row.isum[g] * (1 << offset_bits(KIND)));
  }
}

// Regroups R records.
template <int KIND>
void make_chunk(const uint8_t* act, int64_t stride, int R, int64_t K, uint8_t* chunk) {
  for (int r = 0; r < R; ++r) {
    const RowView row = row_view(act + r * stride, K);
    for (int64_t g = 0; g < K / kGroup; ++g) {
      uint8_t* out = chunk + g * chunk_group_bytes(KIND, R);
      std::memcpy(out + 32 * r, row.lo + kGroup * g, kGroup);
      reinterpret_cast<float*>(out + 32 * R)[r] = row.d[g];
      reinterpret_cast<float*>(out + 36 * R)[r] = row.s[g];
      put_offsets<KIND>(row, g, reinterpret_cast<int32_t*>(out + 40 * R) + 2 * r);
      if constexpr (KIND == W_Q6_K) {
        std::memcpy(out + 48 * R + 32 * r, row.hi + kGroup * g, kGroup);
      } else {
        for (int i = 0; i < 2; ++i) {
          const int quad = row.fine[g] >> (8 * i) & 7;
          reinterpret_cast<int32_t*>(out + 48 * R)[2 * r + i] = 64 * quad;
          std::memcpy(out + 56 * R + 8 * r + 4 * i, row.hi + kGroup * g + 4 * quad, 4);
        }
      }
    }
  }
}

// One call of `linear` for a quantised kind.
template <int KIND>
struct Run {
  const PackedLinear& w;
  const uint8_t* act;
  int64_t act_stride;
  float* out;
  int64_t out_stride;
  int32_t epilogue;
  uint8_t* scratch;

  const uint8_t* block(int64_t b) const { return w.data + b * block_bytes(KIND, w.cols); }
  int parts() const { return w.gated ? 2 : 1; }

  void one(int64_t begin, int64_t end) const {
    int32_t* c = reinterpret_cast<int32_t*>(scratch);
    const RowView row = row_view(act, w.cols);
    for (int64_t g = 0; g < w.cols / kGroup; ++g) put_offsets<KIND>(row, g, c + 2 * g);
    alignas(64) float tile[2 * kLanes];
    for (int64_t i = begin; i < end; ++i) {
      for (int p = 0; p < parts(); ++p) one_row<KIND>(block(parts() * i + p), w.cols, RowInPlace{row, c}, tile + p * kLanes);
      store_tile(w, tile, 1, i, epilogue, out, out_stride);
    }
  }

  // Rows [row, row + M), all of whose chunks fit the scratch. A block's weights are unpacked again for each chunk: the
  // vector pipes that do it are idle otherwise, and an unpacked panel twice as large was slower to read.
  void many(int row, int M, int64_t begin, int64_t end) const {
    constexpr ChunkTable<KIND> table;
    const int R = chunk_rows(M);
    const int64_t chunk_bytes = align_up(w.cols / kGroup * chunk_group_bytes(KIND, R));
    for (int r = 0; r < M; r += R) {
      make_chunk<KIND>(act + (row + r) * act_stride, act_stride, R < M - r ? R : M - r, w.cols, scratch + r / R * chunk_bytes);
    }
    alignas(64) float tile[2 * kMaxRows * kLanes];
    for (int64_t i = begin; i < end; ++i) {
      for (int r = 0; r < M; r += R) {
        const int n = R < M - r ? R : M - r;
        for (int p = 0; p < parts(); ++p) {
          table.of_rows[n](block(parts() * i + p), w.cols, scratch + r / R * chunk_bytes, tile + p * n * kLanes);
        }
        store_tile(w, tile, n, i, epilogue, out + (row + r) * out_stride, out_stride);
      }
    }
  }
};

template <int KIND>
void run_linear(const PackedLinear& w, const uint8_t* act, int64_t act_stride, int M, int64_t begin, int64_t end, float* out,
                int64_t out_stride, int32_t epilogue, uint8_t* scratch) {
  const Run<KIND> run{w, act, act_stride, out, out_stride, epilogue, scratch};
  const int step = tile_rows(w.cols);
  if (M == 1) return run.one(begin, end);
  for (int row = 0; row < M; row += step) run.many(row, step < M - row ? step : M - row, begin, end);
}

void linear(const PackedLinear* w, const uint8_t* act, int64_t act_stride, int32_t M, int32_t begin, int32_t end, float* out,
            int64_t out_stride, int32_t epilogue, uint8_t* scratch) {
  constexpr decltype(&run_linear<W_Q4_1>) table[W_KINDS] = {
      run_float<W_F32>,   run_float<W_F16>,   run_float<W_BF16>,  run_linear<W_Q8_0>, run_linear<W_Q4_0>, run_linear<W_Q4_1>,
      run_linear<W_Q5_0>, run_linear<W_Q5_1>, run_linear<W_Q4_K>, run_linear<W_Q5_K>, run_linear<W_Q6_K>};
  if (M <= 0 || begin >= end) return;
  table[w->kind](*w, act, act_stride, M, begin, end, out, out_stride, epilogue, scratch);
}

// The largest of 8 keys, in every lane.
inline LG_INLINE __m256i largest(__m256i keys) {
  keys = _mm256_max_epu32(keys, _mm256_permute4x64_epi64(keys, 0x4e));
  keys = _mm256_max_epu32(keys, _mm256_shuffle_epi32(keys, 0x4e));
  return _mm256_max_epu32(keys, _mm256_shuffle_epi32(keys, 0xb1));
}

// Each quad's largest magnitude, in all its four lanes.
inline LG_INLINE __m512i quad_most(__m512 x) {
  const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
  const __m512i pairs = _mm512_max_epu32(magnitude, _mm512_shuffle_epi32(magnitude, static_cast<_MM_PERM_ENUM>(0x4e)));
  return _mm512_max_epu32(pairs, _mm512_shuffle_epi32(pairs, static_cast<_MM_PERM_ENUM>(0xb1)));
}

inline LG_INLINE void store_planes(__m512i q, uint8_t* lo, uint8_t* hi) {
  const __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(q, 24), 24);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(lo), _mm512_cvtepi32_epi8(low));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(hi), _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_sub_epi32(q, low), 8)));
}

void quantize_row(const float* x, int64_t K, uint8_t* record) {
  const int64_t G = K / kGroup;
  float* scales = reinterpret_cast<float*>(record + 2 * K);
  const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m256i numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (int64_t g = 0; g < G; ++g) {
    const __m512 low = _mm512_loadu_ps(x + 32 * g), high = _mm512_loadu_ps(x + 32 * g + 16);
    const __m256i most = _mm512_castsi512_si256(_mm512_permutex2var_epi32(quad_most(low), firsts, quad_most(high)));
    __m256i keys = _mm256_or_si256(_mm256_and_si256(most, _mm256_set1_epi32(~7)), numbers);
    const __m256i first = largest(keys);
    keys = _mm256_mask_mov_epi32(keys, _mm256_cmpeq_epi32_mask(keys, first), _mm256_setzero_si256());
    const __m256i second = largest(keys);
    keys = _mm256_mask_mov_epi32(keys, _mm256_cmpeq_epi32_mask(keys, second), _mm256_setzero_si256());
    const auto key = [](__m256i v) { return static_cast<uint32_t>(_mm256_cvtsi256_si32(v)); };
    const GroupScale scale = group_scale(key(first), key(largest(keys)));
    const __m512 factor = _mm512_set1_ps(scale.factor);
    __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(low, factor)), b = _mm512_cvtps_epi32(_mm512_mul_ps(high, factor));
    if (scale.factor == 0.0f) a = b = _mm512_setzero_si512();
    store_planes(a, record + 32 * g, record + K + 32 * g);
    store_planes(b, record + 32 * g + 16, record + K + 32 * g + 16);
    put_group_scale(scales, G, g, scale.d, _mm512_reduce_add_epi32(_mm512_add_epi32(a, b)), fine_quads(key(first), key(second)));
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
