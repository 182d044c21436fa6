// Linear kernels for AVX-512 with VNNI: quantised weights by vpdpbusd, 16 outputs a vector.
//
// Knows: packed blocks (linear_layout.h), quantised rows. Does not know: threads, buffers, how a block was packed.
//
// One micro kernel serves every number of rows: per group of 32 it holds the 8 quads of 16 outputs in registers and,
// for each row, takes 8 vpdpbusd with the activation broadcast from memory, one conversion, and the float step of the
// contract. Few rows read the packed block directly; more rows share a panel unpacked once.
#include "linear_layout.h"
#include "linear_rows.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "linear_avx512_float.h"
#include "vec_avx512.h"

namespace lg {
namespace {

constexpr int kDirectRows = 4;  // up to here a row's record is used where it lies

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

// Reads groups of one packed block, front to back.
template <int KIND>
struct Packed {
  static constexpr int kKind = KIND;
  const uint8_t* block;

  inline LG_INLINE void read(int64_t g, Group& out) const {
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
};

// A panel: what `Packed` gives, unpacked and written down once for many rows.
template <int KIND>
struct Panel {
  static constexpr int kKind = KIND;
  const uint8_t* at;

  inline LG_INLINE void read(int64_t g, Group& out) const {
    const uint8_t* p = at + g * panel_group_bytes(KIND);
    each<8>([&](auto v) LG_INLINE { out.w[v] = _mm512_load_si512(p + 64 * v); });
    out.d = _mm512_load_ps(p + 512);
    if constexpr (has_min(KIND) || KIND == W_Q6_K) out.m = _mm512_load_ps(p + 576);
    if constexpr (KIND == W_Q6_K) out.sc = _mm512_load_ps(p + 640);
  }
};

template <int KIND>
void unpack_panel(const uint8_t* block, int64_t K, uint8_t* panel) {
  const Packed<KIND> source{block};
  for (int64_t g = 0; g < K / kGroup; ++g, panel += panel_group_bytes(KIND)) {
    Group x;
    source.read(g, x);
    each<8>([&](auto v) LG_INLINE { _mm512_store_si512(panel + 64 * v, x.w[v]); });
    _mm512_store_ps(panel + 512, x.d);
    if constexpr (has_min(KIND) || KIND == W_Q6_K) _mm512_store_ps(panel + 576, x.m);
    if constexpr (KIND == W_Q6_K) _mm512_store_ps(panel + 640, x.sc);
  }
}

// R rows where they lie, one record each; c as in a chunk, G pairs a row.
struct RowsInPlace {
  const uint8_t* record;
  int64_t stride, K;
  const int32_t* c;

  inline LG_INLINE const uint8_t* q(int r, int64_t g) const { return record + r * stride + 32 * g; }
  inline LG_INLINE const float* d(int r, int64_t g) const {
    return reinterpret_cast<const float*>(record + r * stride + K) + g;
  }
  inline LG_INLINE const float* s(int r, int64_t g) const { return d(r, g) + K / kGroup; }
  inline LG_INLINE const int32_t* offset(int r, int64_t g) const { return c + 2 * (r * (K / kGroup) + g); }
};

// R rows regrouped, see chunk_group_bytes.
template <int R>
struct RowsInChunk {
  const uint8_t* chunk;

  inline LG_INLINE const uint8_t* group(int64_t g) const { return chunk + g * chunk_group_bytes(R); }
  inline LG_INLINE const uint8_t* q(int r, int64_t g) const { return group(g) + 32 * r; }
  inline LG_INLINE const float* d(int r, int64_t g) const { return reinterpret_cast<const float*>(group(g) + 32 * R) + r; }
  inline LG_INLINE const float* s(int r, int64_t g) const { return reinterpret_cast<const float*>(group(g) + 36 * R) + r; }
  inline LG_INLINE const int32_t* offset(int r, int64_t g) const {
    return reinterpret_cast<const int32_t*>(group(g) + 40 * R) + 2 * r;
  }
};

// The compiler splits this into a broadcast and a multiply; written out it is one instruction.
inline LG_INLINE void dot4(__m512i& acc, __m512i w, const uint8_t* a) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*reinterpret_cast<const int32_t*>(a)));
}

template <int FROM, int TO>
inline LG_INLINE __m512i dot(__m512i acc, const __m512i (&w)[8], const uint8_t* a) {
  each<TO - FROM>([&](auto V) LG_INLINE {
    constexpr int v = FROM + V;
    dot4(acc, w[v], a + 4 * v);
  });
  return acc;
}

// float(int32 dot of the group); for Q6_K the two halves times their integer scales, below 2^24, so exact in float.
template <int KIND, class Rows>
inline LG_INLINE __m512 group_dot(const Group& x, const Rows& rows, int r, int64_t g) {
  const uint8_t* a = rows.q(r, g);
  if constexpr (KIND == W_Q6_K) {
    const __m512i first = dot<0, 4>(_mm512_set1_epi32(rows.offset(r, g)[0]), x.w, a);
    const __m512i second = dot<4, 8>(_mm512_set1_epi32(rows.offset(r, g)[1]), x.w, a);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(second), x.m, _mm512_mul_ps(_mm512_cvtepi32_ps(first), x.sc));
  } else if constexpr (offset_bits(KIND) >= 0) {
    return _mm512_cvtepi32_ps(dot<0, 8>(_mm512_set1_epi32(rows.offset(r, g)[0]), x.w, a));
  } else {
    return _mm512_cvtepi32_ps(dot<0, 8>(_mm512_setzero_si512(), x.w, a));
  }
}

// tile[r][16] = the contract's chain over all groups, for R rows and the 16 outputs of one block.
template <int R, class Weights, class Rows>
inline LG_INLINE void micro(const Weights& weights, const Rows& rows, int64_t groups, float* tile) {
  constexpr int KIND = Weights::kKind;
  __m512 acc[R];
  each<R>([&](auto r) LG_INLINE { acc[r] = _mm512_setzero_ps(); });
  for (int64_t g = 0; g < groups; ++g) {
    Group x;
    weights.read(g, x);
    each<R>([&](auto r) LG_INLINE {
      const __m512 scale = _mm512_mul_ps(x.d, _mm512_set1_ps(*rows.d(r, g)));
      acc[r] = _mm512_fmadd_ps(group_dot<KIND>(x, rows, r, g), scale, acc[r]);
      if constexpr (has_min(KIND)) acc[r] = _mm512_fmadd_ps(x.m, _mm512_set1_ps(*rows.s(r, g)), acc[r]);
    });
  }
  each<R>([&](auto r) LG_INLINE { _mm512_store_ps(tile + 16 * r, acc[r]); });
}

template <int KIND, int R>
void rows_direct(const uint8_t* block, const RowsInPlace& rows, float* tile) {
  micro<R>(Packed<KIND>{block}, rows, rows.K / kGroup, tile);
}

template <int KIND, int R>
void rows_packed(const uint8_t* block, int64_t K, const uint8_t* chunk, float* tile) {
  micro<R>(Packed<KIND>{block}, RowsInChunk<R>{chunk}, K / kGroup, tile);
}

template <int KIND, int R>
void rows_panel(const uint8_t* panel, int64_t K, const uint8_t* chunk, float* tile) {
  micro<R>(Panel<KIND>{panel}, RowsInChunk<R>{chunk}, K / kGroup, tile);
}

using ChunkFn = void (*)(const uint8_t* weights, int64_t K, const uint8_t* chunk, float* tile);

template <int KIND, bool PANEL>
ChunkFn chunk_fn(int R) {
#define LG_ROWS(n) (PANEL ? rows_panel<KIND, n> : rows_packed<KIND, n>)
  constexpr ChunkFn table[kMaxRows] = {LG_ROWS(1), LG_ROWS(2), LG_ROWS(3), LG_ROWS(4),  LG_ROWS(5),  LG_ROWS(6),
                                       LG_ROWS(7), LG_ROWS(8), LG_ROWS(9), LG_ROWS(10), LG_ROWS(11), LG_ROWS(12)};
#undef LG_ROWS
  return table[R - 1];
}

// -offset * sum(q) of a row: one number a group, or two for halves of 16.
template <int KIND>
inline LG_INLINE void offsets(const uint8_t* q, int32_t isum, int32_t* out) {
  if constexpr (KIND == W_Q6_K) {
    const __m256i ones = _mm256_set1_epi8(32);
    const __m256i sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), ones, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q)));
    __m256i pair = _mm256_hadd_epi32(sums, sums);
    pair = _mm256_hadd_epi32(pair, pair);
    out[0] = -_mm256_extract_epi32(pair, 0);
    out[1] = -_mm256_extract_epi32(pair, 4);
  } else {
    constexpr int bits = offset_bits(KIND) < 0 ? 0 : offset_bits(KIND);
    out[0] = -(isum * (1 << bits));
    out[1] = 0;
  }
}

// Regroups R records for the matrix path.
template <int KIND>
void make_chunk(const uint8_t* act, int64_t stride, int R, int64_t K, uint8_t* chunk) {
  for (int r = 0; r < R; ++r) {
    const uint8_t* record = act + r * stride;
    const RowView row = row_view(record, K);
    for (int64_t g = 0; g < K / kGroup; ++g) {
      uint8_t* out = chunk + g * chunk_group_bytes(R);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32 * r), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(record + 32 * g)));
      reinterpret_cast<float*>(out + 32 * R)[r] = row.d[g];
      reinterpret_cast<float*>(out + 36 * R)[r] = row.s[g];
      offsets<KIND>(record + 32 * g, row.isum[g], reinterpret_cast<int32_t*>(out + 40 * R) + 2 * r);
    }
  }
}

// One call of `linear`, for a kind.
template <int KIND>
struct Run {
  const PackedLinear& w;
  const uint8_t* act;
  int64_t act_stride;
  float* out;
  int64_t out_stride;
  int32_t epilogue;
  uint8_t* scratch;

  int64_t K() const { return w.cols; }
  const uint8_t* block(int64_t b) const { return w.data + b * block_bytes(KIND, K()); }

  // `index` counts output blocks: pairs when gated.
  void finish(float* tile, int rows, int64_t row, int64_t index) const {
    store_tile(w, tile, rows, index, epilogue, out + row * out_stride, out_stride);
  }

  void few(int M, int64_t begin, int64_t end) const {
    const int64_t groups = K() / kGroup;
    int32_t* c = reinterpret_cast<int32_t*>(scratch);
    if constexpr (offset_bits(KIND) >= 0) {
      for (int r = 0; r < M; ++r) {
        const RowView row = row_view(act + r * act_stride, K());
        for (int64_t g = 0; g < groups; ++g) offsets<KIND>(act + r * act_stride + 32 * g, row.isum[g], c + 2 * (r * groups + g));
      }
    }
    const RowsInPlace rows{act, act_stride, K(), c};
    constexpr void (*table[kDirectRows])(const uint8_t*, const RowsInPlace&, float*) = {
        rows_direct<KIND, 1>, rows_direct<KIND, 2>, rows_direct<KIND, 3>, rows_direct<KIND, 4>};
    alignas(64) float tile[2 * kDirectRows * kLanes];
    const int parts = w.gated ? 2 : 1;
    for (int64_t i = begin; i < end; ++i) {
      for (int p = 0; p < parts; ++p) table[M - 1](block(parts * i + p), rows, tile + p * M * kLanes);
      finish(tile, M, 0, i);
    }
  }

  void many(int row0, int M, int64_t begin, int64_t end) const {
    const int R = chunk_rows(M);
    const int64_t groups = K() / kGroup, chunk_bytes = align_up(groups * chunk_group_bytes(R));
    const int64_t panel_bytes = align_up(groups * panel_group_bytes(KIND));
    uint8_t* chunks = scratch + 2 * panel_bytes;
    for (int r = 0; r < M; r += R) {
      make_chunk<KIND>(act + (row0 + r) * act_stride, act_stride, R < M - r ? R : M - r, K(), chunks + r / R * chunk_bytes);
    }
    const bool panel = M > R;
    const int parts = w.gated ? 2 : 1;
    alignas(64) float tile[2 * kMaxRows * kLanes];
    for (int64_t i = begin; i < end; ++i) {
      if (panel) {
        for (int p = 0; p < parts; ++p) unpack_panel<KIND>(block(parts * i + p), K(), scratch + p * panel_bytes);
      }
      for (int r = 0; r < M; r += R) {
        const int n = R < M - r ? R : M - r;
        const ChunkFn run = panel ? chunk_fn<KIND, true>(n) : chunk_fn<KIND, false>(n);
        for (int p = 0; p < parts; ++p) {
          run(panel ? scratch + p * panel_bytes : block(parts * i + p), K(), chunks + r / R * chunk_bytes, tile + p * n * kLanes);
        }
        finish(tile, n, row0 + r, i);
      }
    }
  }
};

template <int KIND>
void run_linear(const PackedLinear& w, const uint8_t* act, int64_t act_stride, int M, int64_t begin, int64_t end, float* out,
                int64_t out_stride, int32_t epilogue, uint8_t* scratch) {
  const Run<KIND> run{w, act, act_stride, out, out_stride, epilogue, scratch};
  if (M <= kDirectRows) {
    run.few(M, begin, end);
    return;
  }
  const int step = tile_rows(w.cols);
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

void quantize_row(const float* x, int64_t K, uint8_t* record) {
  const int64_t G = K / kGroup;
  float* d = reinterpret_cast<float*>(record + K);
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int64_t g = 0; g < G; ++g) {
    const __m512 low = _mm512_loadu_ps(x + 32 * g), high = _mm512_loadu_ps(x + 32 * g + 16);
    const __m512i most = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(low), magnitude),
                                          _mm512_and_si512(_mm512_castps_si512(high), magnitude));
    const GroupScale scale = group_scale(_mm512_reduce_max_epu32(most));
    const __m512 factor = _mm512_set1_ps(scale.factor);
    __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(low, factor)), b = _mm512_cvtps_epi32(_mm512_mul_ps(high, factor));
    if (scale.factor == 0.0f) a = b = _mm512_setzero_si512();
    _mm_storeu_si128(reinterpret_cast<__m128i*>(record + 32 * g), _mm512_cvtepi32_epi8(a));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(record + 32 * g + 16), _mm512_cvtepi32_epi8(b));
    put_group_scale(d, G, g, scale.d, _mm512_reduce_add_epi32(_mm512_add_epi32(a, b)));
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
