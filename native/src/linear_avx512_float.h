// Linear kernels for float32, float16 and bfloat16 weights on AVX-512: one chain of FMAs an output, over k in order.
//
// Knows: packed float blocks, float rows. Does not know: quantised formats, threads.
// Several blocks run side by side so that the chains of few rows hide the latency of the FMA.
#pragma once
#include <immintrin.h>

#include "linear_layout.h"
#include "vec_avx512.h"

namespace lg {
namespace {

constexpr int64_t kFloatPrefetch = 4096;

template <int KIND>
inline LG_INLINE __m512 float_weights(const uint8_t* p) {
  if constexpr (KIND == W_F32) return _mm512_loadu_ps(p);
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  if constexpr (KIND == W_F16) return _mm512_cvtph_ps(x);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

// tile[b][r][16] for NB consecutive blocks and R rows.
template <int KIND, int NB, int R>
void float_tile(const uint8_t* block, int64_t K, const float* x, int64_t stride, float* tile) {
  constexpr int step = kLayouts[KIND].bytes;
  const int64_t block_stride = block_bytes(KIND, K);
  __m512 acc[NB * R];
  each<NB * R>([&](auto i) LG_INLINE { acc[i] = _mm512_setzero_ps(); });
  for (int64_t k = 0; k < K; ++k) {
    __m512 w[NB];
    // Past the end of its block a stream goes on NB blocks later.
    const int64_t ahead = k * step + kFloatPrefetch < block_stride ? kFloatPrefetch : kFloatPrefetch + (NB - 1) * block_stride;
    each<NB>([&](auto b) LG_INLINE {
      const uint8_t* p = block + b * block_stride + k * step;
      if constexpr (R <= 4) _mm_prefetch(reinterpret_cast<const char*>(p + ahead), _MM_HINT_T0);
      w[b] = float_weights<KIND>(p);
    });
    each<R>([&](auto r) LG_INLINE {
      const __m512 a = _mm512_set1_ps(x[r * stride + k]);
      each<NB>([&](auto b) LG_INLINE { acc[b * R + r] = _mm512_fmadd_ps(w[b], a, acc[b * R + r]); });
    });
  }
  each<NB * R>([&](auto i) LG_INLINE { _mm512_store_ps(tile + 16 * i, acc[i]); });
}

// One function for each number of rows and of blocks side by side; 4 blocks for 1 or 2 rows only.
template <int KIND>
struct FloatTable {
  using Fn = void (*)(const uint8_t* block, int64_t K, const float* x, int64_t stride, float* tile);
  Fn one[kMaxRows + 1] = {}, two[kMaxRows + 1] = {}, four[3] = {};

  constexpr FloatTable() {
    each<kMaxRows>([&](auto r) {
      one[r + 1] = float_tile<KIND, 1, r + 1>;
      two[r + 1] = float_tile<KIND, 2, r + 1>;
    });
    each<2>([&](auto r) { four[r + 1] = float_tile<KIND, 4, r + 1>; });
  }
};

// Rows [row, row + n) of output blocks [begin, end); pairs when gated.
template <int KIND>
void float_chunk(const PackedLinear& w, const float* x, int64_t stride, int n, int64_t begin, int64_t end, float* out,
                 int64_t out_stride, int32_t epilogue) {
  constexpr FloatTable<KIND> table;
  const int parts = w.gated ? 2 : 1, widest = n <= 2 ? 4 : 2;
  alignas(64) float tile[2 * kMaxRows * kLanes];
  for (int64_t b = begin * parts; b < end * parts;) {
    int count = widest;
    while (count > end * parts - b) count /= 2;
    (count == 4 ? table.four : count == 2 ? table.two : table.one)[n](w.data + b * block_bytes(KIND, w.cols), w.cols, x, stride, tile);
    for (int i = 0; i < count; i += parts) store_tile(w, tile + i * n * kLanes, n, (b + i) / parts, epilogue, out, out_stride);
    b += count;
  }
}

template <int KIND>
void run_float(const PackedLinear& w, const uint8_t* act, int64_t act_stride, int M, int64_t begin, int64_t end, float* out,
               int64_t out_stride, int32_t epilogue, uint8_t*) {
  const float* x = reinterpret_cast<const float*>(act);
  const int64_t stride = act_stride / 4;
  const int step = tile_rows(w.cols), unit = w.gated ? 1 : 2;
  for (int row = 0; row < M; row += step) {
    const int rows = step < M - row ? step : M - row, R = chunk_rows(rows);
    // A few blocks at a time serve all rows of the tile, so that weights come from memory once.
    const int64_t span = rows <= R ? end - begin : unit;
    for (int64_t b = begin; b < end; b += span) {
      const int64_t last = b + span < end ? b + span : end;
      for (int r = row; r < row + rows; r += R) {
        const int n = R < row + rows - r ? R : row + rows - r;
        float_chunk<KIND>(w, x + r * stride, stride, n, b, last, out + r * out_stride, out_stride, epilogue);
      }
    }
  }
}

}  // namespace
}  // namespace lg
