// Linear kernels for AMX tiles, for quantised weights and at least a tile of rows: integer products by tiles, the
// contract's float step by AVX-512, the same bits as linear_avx512.
//
// Knows: packed blocks, quantised rows, a class of tiles (tiles.h). Does not know: whether the tiles are real.
//
// A group of 32 needs its own int32 sum, so a product is only 32 deep and its sums go through memory (the first cache) to
// the vector registers that hold 16 rows' floats: the float step, not the tiles, sets the pace. Two products a group:
// the low bytes of q, and the high ones, which are zero outside the two fine quads. For Q6_K, whose halves of 16 have
// scales of their own, the two products are the halves', and the fine quads are vpdpbusd's.
//
// Rows are gathered once a call into tiles' order. Weights are unpacked a few groups of two blocks at a time, next to
// where they are used, and serve all gathered rows before the next few.
#pragma once
#include <cstddef>

#include "lanes_avx512.h"
#include "linear_avx512_group.h"
#include "linear_run.h"
#include "tiles.h"

namespace lg {
namespace {

constexpr int kTileRows = 16;
constexpr int kTogether = 2;  // blocks that meet a row tile while it is in the first cache: gate and up, or neighbours
constexpr int kChunk = 8;     // groups of weights unpacked at a time
constexpr int kTileFloats = kTileRows * kLanes;
constexpr int kLeastTileRows = 7;  // rows left over that a tile of their own serves faster than registers, as estimated

// 16 rows of one group. `fine` of a row: the high bytes of its 32 values, or for Q6_K its FineQuads.
struct alignas(64) RowGroup {
  int8_t lo[kTileRows][kGroup];
  uint8_t fine[kTileRows][kGroup];
  float d[kTileRows], s[kTileRows];
};
static_assert(sizeof(RowGroup) == kAmxRowGroupBytes, "what linear_scratch_bytes counts with");

struct FineQuads {
  int8_t hi[2][4];
  uint16_t at[2];
  int32_t minus[2];  // of the halves, times 32
};
static_assert(offsetof(QGroup, at) - offsetof(QGroup, hi) == 8 && offsetof(FineQuads, minus) == 12, "copied together");

// A group of a block: quads less their offset (Q6_K's: with it), the scale, and the two of Group::sc and Group::m.
struct alignas(64) WeightGroup {
  uint8_t quads[512];
  float d[kLanes], scales[2][kLanes];
};

// The caller's scratch, cut up.
struct AmxScratch {
  RowGroup* rows;        // [tiles][groups]
  float* sums;           // [tiles][kTogether][16][16]
  WeightGroup* weights;  // [kTogether][kChunk]
  int32_t* products;     // [2][2][16][16]
};
static_assert(sizeof(WeightGroup) * kTogether * kChunk + 4 * 4 * kTileFloats <= kAmxFixedBytes, "as counted");
static_assert(4 * kTogether * kTileFloats == kAmxTileSumBytes, "as counted");

inline AmxScratch cut_amx_scratch(uint8_t* p, int64_t K) {
  const int64_t tiles = amx_sweep_tiles(K);
  AmxScratch s;
  s.rows = reinterpret_cast<RowGroup*>(p);
  s.sums = reinterpret_cast<float*>(s.rows + tiles * (K / kGroup));
  s.weights = reinterpret_cast<WeightGroup*>(s.sums + tiles * kTogether * kTileFloats);
  s.products = reinterpret_cast<int32_t*>(s.weights + kTogether * kChunk);
  return s;
}

// Tiles 0-3 hold sums, two for each of two groups in flight; 4 and 5 rows, 6 and 7 quads.
template <int KIND>
TileConfig tile_config() {
  constexpr int k = KIND == W_Q6_K ? kGroup / 2 : kGroup;
  TileConfig config = {};
  config.palette = 1;
  for (int t = 0; t < 8; ++t) {
    config.rows[t] = static_cast<uint8_t>(t < 6 ? kTileRows : k / 4);
    config.row_bytes[t] = t == 4 || t == 5 ? k : 4 * kLanes;
  }
  return config;
}

template <int KIND>
inline LG_INLINE void put_row(const QGroup& row, int r, RowGroup& to) {
  const __m256i zero = _mm256_setzero_si256();
  _mm256_store_si256(reinterpret_cast<__m256i*>(to.lo[r]), _mm256_load_si256(reinterpret_cast<const __m256i*>(row.lo)));
  if constexpr (KIND == W_Q6_K) {
    const int32_t minus[2] = {row.minus[1] * 32, row.minus[2] * 32};
    std::memcpy(to.fine[r], row.hi, 12);  // hi and at
    std::memcpy(to.fine[r] + 12, minus, 8);
  } else {
    _mm256_store_si256(reinterpret_cast<__m256i*>(to.fine[r]), zero);
    for (int i = 0; i < 2; ++i) std::memcpy(to.fine[r] + row.at[i] / 16, row.hi[i], 4);
  }
  to.d[r] = row.d;
  to.s[r] = row.s;
}

// Up to 16 rows in tiles' order; missing rows are zeros, since Q6_K follows what they point to.
template <int KIND>
void gather_rows(const uint8_t* act, int64_t act_stride, int rows, int64_t groups, RowGroup* to) {
  if (rows < kTileRows) std::memset(static_cast<void*>(to), 0, static_cast<size_t>(groups) * sizeof(RowGroup));
  for (int r = 0; r < rows; ++r) {
    const QGroup* row = reinterpret_cast<const QGroup*>(act + r * act_stride);
    for (int64_t g = 0; g < groups; ++g) put_row<KIND>(row[g], r, to[g]);
  }
}

template <int KIND>
void unpack_weights(const uint8_t* block, int64_t from, int count, WeightGroup* to) {
  for (int g = 0; g < count; ++g) {
    Group x;
    read_group<KIND>(block, from + g, x);
    const __m512i offset = _mm512_set1_epi8(offset_bits(KIND) < 0 || KIND == W_Q6_K
                                                ? 0
                                                : static_cast<char>(1 << (offset_bits(KIND) & 7)));
    each<8>([&](auto v) LG_INLINE { _mm512_store_si512(to[g].quads + 64 * v, _mm512_sub_epi8(x.w[v], offset)); });
    _mm512_store_ps(to[g].d, x.d);
    if constexpr (KIND == W_Q6_K) _mm512_store_ps(to[g].scales[0], x.sc);
    if constexpr (KIND == W_Q6_K || has_min(KIND)) _mm512_store_ps(to[g].scales[1], x.m);
  }
}

// The two products of a group, to memory.
template <int KIND, int C, class Tiles>
inline LG_INLINE void multiply_group(Tiles& tiles, const WeightGroup& w, const RowGroup& rows, int32_t* products) {
  tiles.template load<4>(rows.lo, kGroup);
  tiles.template load<6>(w.quads, 4 * kLanes);
  tiles.template zero<C>();
  tiles.template multiply<C, 4, 6>();
  tiles.template zero<C + 1>();
  if constexpr (KIND == W_Q6_K) {
    tiles.template load<5>(rows.lo[0] + kGroup / 2, kGroup);
    tiles.template load<7>(w.quads + 256, 4 * kLanes);
    tiles.template multiply<C + 1, 5, 7>();
  } else {
    tiles.template load<5>(rows.fine, kGroup);
    tiles.template multiply<C + 1, 5, 6>();
  }
  tiles.template store<C>(products, 4 * kLanes);
  tiles.template store<C + 1>(products + kTileFloats, 4 * kLanes);
}

inline LG_INLINE __m512i products_of(const int32_t* products, int r) {
  return _mm512_load_si512(products + r * kLanes);
}

// group_dot of linear_avx512.cpp for row r, operation for operation.
template <int KIND>
inline LG_INLINE __m512 tile_dot(const WeightGroup& w, const RowGroup& rows, const int32_t* products, int r) {
  const __m512i one = products_of(products, r), two = products_of(products + kTileFloats, r);
  if constexpr (KIND != W_Q6_K) {
    return _mm512_cvtepi32_ps(_mm512_add_epi32(one, _mm512_slli_epi32(two, 8)));
  } else {
    const FineQuads& row = *reinterpret_cast<const FineQuads*>(rows.fine[r]);
    const __m512i zero = _mm512_setzero_si512();
    const auto scale = [&](int i) LG_INLINE { return _mm512_load_ps(w.scales[row.at[i] >> 8]); };
    const auto less = [&](__m512i sum, int h) LG_INLINE {
      return _mm512_cvtepi32_ps(_mm512_add_epi32(sum, _mm512_set1_epi32(row.minus[h])));
    };
    const __m512 fine = _mm512_mul_ps(_mm512_cvtepi32_ps(fine_dot(zero, w.quads, row, 0)), scale(0));
    const __m512 fines = _mm512_fmadd_ps(_mm512_cvtepi32_ps(fine_dot(zero, w.quads, row, 1)), scale(1), fine);
    const __m512 first = _mm512_mul_ps(less(one, 0), _mm512_load_ps(w.scales[0]));
    const __m512 both = _mm512_fmadd_ps(less(two, 1), _mm512_load_ps(w.scales[1]), first);
    return _mm512_fmadd_ps(fines, bc(256.0f), both);
  }
}

// `count` groups more of 16 rows and 16 outputs; the tiles are a group ahead of the floats.
template <int KIND, class Tiles>
void add_groups(Tiles& tiles, const WeightGroup* w, const RowGroup* rows, int count, bool first, int32_t* products,
                float* sums) {
  __m512 acc[kTileRows];
  each<kTileRows>([&](auto r) LG_INLINE {
    acc[r] = first ? _mm512_setzero_ps() : _mm512_load_ps(sums + r * kLanes);
  });
  multiply_group<KIND, 0>(tiles, w[0], rows[0], products);
  for (int g = 0; g < count; ++g) {
    const int32_t* ready = products + g % 2 * 2 * kTileFloats;
    if (g + 1 < count) {
      if (g % 2 == 0) {
        multiply_group<KIND, 2>(tiles, w[g + 1], rows[g + 1], products + 2 * kTileFloats);
      } else {
        multiply_group<KIND, 0>(tiles, w[g + 1], rows[g + 1], products);
      }
    }
    const __m512 d = _mm512_load_ps(w[g].d);
    each<kTileRows>([&](auto r) LG_INLINE {
      const __m512 scale = _mm512_mul_ps(d, bc(rows[g].d[r]));
      acc[r] = _mm512_fmadd_ps(tile_dot<KIND>(w[g], rows[g], ready, r), scale, acc[r]);
      if constexpr (has_min(KIND)) acc[r] = _mm512_fmadd_ps(_mm512_load_ps(w[g].scales[1]), bc(rows[g].s[r]), acc[r]);
    });
  }
  each<kTileRows>([&](auto r) LG_INLINE { _mm512_store_ps(sums + r * kLanes, acc[r]); });
}

// The sums of `blocks` neighbouring blocks and all gathered rows.
template <int KIND, class Tiles>
void multiply_blocks(Tiles& tiles, const uint8_t* block, int blocks, int64_t K, int row_tiles, const AmxScratch& s) {
  const int64_t groups = K / kGroup, bytes = block_bytes(KIND, K);
  for (int64_t g = 0; g < groups; g += kChunk) {
    const int count = static_cast<int>(groups - g < kChunk ? groups - g : kChunk);
    for (int b = 0; b < blocks; ++b) unpack_weights<KIND>(block + b * bytes, g, count, s.weights + b * kChunk);
    for (int t = 0; t < row_tiles; ++t) {
      for (int b = 0; b < blocks; ++b) {
        add_groups<KIND>(tiles, s.weights + b * kChunk, s.rows + t * groups + g, count, g == 0, s.products,
                         s.sums + (t * kTogether + b) * kTileFloats);
      }
    }
  }
}

template <class Tiles>
class TilesInUse {
 public:
  TilesInUse(Tiles& tiles, const TileConfig& config) : tiles_(tiles) { tiles.configure(config); }
  ~TilesInUse() { tiles_.release(); }  // a thread that leaves tiles behind is slower to switch and to let sleep
  TilesInUse(const TilesInUse&) = delete;

 private:
  Tiles& tiles_;
};

// As linear_avx512, in steps of 16 rows.
template <int KIND, class Tiles>
void quantized_amx(const PackedLinear& w, const uint8_t* act, int64_t act_stride, int M, int begin, int end, float* out,
                   int64_t out_stride, int32_t epilogue, uint8_t* scratch) {
  const AmxScratch s = cut_amx_scratch(scratch, w.cols);
  const int64_t groups = w.cols / kGroup, bytes = block_bytes(KIND, w.cols);
  const int sweep = amx_sweep_tiles(w.cols) * kTileRows, parts = w.gated ? 2 : 1, units = kTogether / parts;
  Tiles tiles;
  const TilesInUse<Tiles> in_use(tiles, tile_config<KIND>());
  const auto rows_of = [&](int row) { return M - row < kTileRows ? M - row : kTileRows; };
  for (int from = 0; from < M; from += sweep) {
    const int to = M - from < sweep ? M : from + sweep, row_tiles = (to - from + kTileRows - 1) / kTileRows;
    for (int t = 0, row = from; t < row_tiles; ++t, row += kTileRows)
      gather_rows<KIND>(act + row * act_stride, act_stride, rows_of(row), groups, s.rows + t * groups);
    for (int i = begin; i < end; i += units) {
      const int some = units < end - i ? units : end - i;
      multiply_blocks<KIND>(tiles, w.data + parts * i * bytes, some * parts, w.cols, row_tiles, s);
      for (int t = 0, row = from; t < row_tiles; ++t, row += kTileRows) {
        const float* tile = s.sums + t * kTogether * kTileFloats;
        for (int u = 0; u < some; ++u)
          store_tile(w, tile + u * kTileFloats, tile + kTileFloats, rows_of(row), i + u, epilogue,
                     out + row * out_stride, out_stride);
      }
    }
  }
}

template <class Tiles>
void linear_amx(const PackedLinear* w, const uint8_t* act, int64_t act_stride, int32_t M, int32_t begin, int32_t end,
                float* out, int64_t out_stride, int32_t epilogue, uint8_t* scratch) {
  using Fn = void (*)(const PackedLinear&, const uint8_t*, int64_t, int, int, int, float*, int64_t, int32_t, uint8_t*);
  static constexpr Fn fns[W_KINDS] = {nullptr,
                                      nullptr,
                                      nullptr,
                                      quantized_amx<W_Q8_0, Tiles>,
                                      quantized_amx<W_Q4_0, Tiles>,
                                      quantized_amx<W_Q4_1, Tiles>,
                                      quantized_amx<W_Q5_0, Tiles>,
                                      quantized_amx<W_Q5_1, Tiles>,
                                      quantized_amx<W_Q4_K, Tiles>,
                                      quantized_amx<W_Q5_K, Tiles>,
                                      quantized_amx<W_Q6_K, Tiles>};
  const int32_t rest = M % kTileRows, few = rest < kLeastTileRows ? rest : 0;
  const int32_t many = M < kTileRows || fns[w->kind] == nullptr ? 0 : M - few;
  if (many > 0) fns[w->kind](*w, act, act_stride, many, begin, end, out, out_stride, epilogue, scratch);
  if (many < M)
    linear_avx512(w, act + many * act_stride, act_stride, M - many, begin, end, out + many * out_stride, out_stride,
                  epilogue, scratch);
}

}  // namespace
}  // namespace lg
