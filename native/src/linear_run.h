// The walk over blocks and rows, and the epilogue of a finished tile; what a tile is made of is each level's.
// Include after one of the lanes_*.h headers.
//
// Knows: blocks, rows, pairs of gate and up. Does not know: instructions, formats.
#pragma once
#include "lanes_activate.h"
#include "linear_layout.h"

namespace lg {
namespace {

// Bias, epilogue and store of a tile: [rows][16], and when gated `up` beside it. `index` counts output blocks; `out` is
// the tile's first row. An element's result does not depend on its lane.
inline void store_tile(const PackedLinear& w, const float* tile, const float* up, int rows, int64_t index,
                       int32_t epilogue, float* out, int64_t out_stride) {
  const M16 lanes = m_range(0, (w.gated ? w.rows / 2 : w.rows) - index * kLanes);
  const float* bias = w.bias ? w.bias + index * kLanes * (w.gated ? 2 : 1) : nullptr;
  out += index * kLanes;
  for (int r = 0; r < rows; ++r, out += out_stride) {
    F16 y = f_load(tile + r * kLanes);
    if (bias) y = f_add(y, f_load(bias));
    y = activation(y, epilogue);
    if (w.gated) {
      const F16 other = f_load(up + r * kLanes);
      y = f_mul(y, bias ? f_add(other, f_load(bias + kLanes)) : other);
    } else if (epilogue == EP_ADD) {
      y = f_add(f_load_part(out, lanes), y);
    }
    f_store_part(out, y, lanes);
  }
}

// Rows of a tile. On AVX-512 12 sums, 8 quads and two scales are 22 of the 32 registers. Every count has its functions;
// under the sanitizers, where each takes seconds to compile, a few must do.
#if defined(__SANITIZE_ADDRESS__)
constexpr int kRows = 3;
#else
constexpr int kRows = 12;
#endif

// tile[rows][16] of one block, the row count being the function's own.
using TileFn = void (*)(const uint8_t* block, int64_t K, const uint8_t* act, int64_t act_stride, float* tile);

// A kind's functions by number of rows.
struct TileTable {
  TileFn of_rows[kRows + 1];
};

// Bytes of rows that one sweep over the weights serves: half of a small L2.
constexpr int64_t kSweepBytes = 512 << 10;

// Rows of a sweep: whole tiles, two at least.
inline int sweep_rows(int64_t row_bytes) {
  const int64_t tiles = kSweepBytes / row_bytes / kRows;
  return static_cast<int>(tiles < 2 ? 2 * kRows : tiles > 64 ? 64 * kRows : tiles * kRows);
}

// Rows are cut into equal tiles, so that 13 rows run as 7 + 6. Each tile unpacks a block's weights anew: the vector
// pipes that do it are idle otherwise, and a panel unpacked once, twice as large, was slower to read.
inline void run_linear(const TileTable& table, const PackedLinear& w, const uint8_t* act, int64_t act_stride, int M,
                       int64_t begin, int64_t end, float* out, int64_t out_stride, int32_t epilogue) {
  const int parts = w.gated ? 2 : 1, sweep = sweep_rows(act_stride);
  const int64_t bytes = block_bytes(w.kind, w.cols);
  alignas(64) float tile[2 * kRows * kLanes];
  for (int row = 0; row < M; row += sweep) {
    const int rows = sweep < M - row ? sweep : M - row, tiles = (rows + kRows - 1) / kRows,
              step = (rows + tiles - 1) / tiles;
    for (int64_t i = begin; i < end; ++i) {
      for (int r = row; r < row + rows; r += step) {
        const int n = step < row + rows - r ? step : row + rows - r;
        for (int p = 0; p < parts; ++p) {
          table.of_rows[n](w.data + (parts * i + p) * bytes, w.cols, act + r * act_stride, act_stride,
                           tile + p * n * kLanes);
        }
        store_tile(w, tile, tile + n * kLanes, n, i, epilogue, out + r * out_stride, out_stride);
      }
    }
  }
}

// The same place of R rows, moving on by STEP bytes. Three rows share a pointer (x86 adds a register and twice a
// register for nothing), so that 12 rows need five registers; the compiler left alone makes twelve pointers and keeps
// most of them on the stack.
template <class T, int STEP, int R>
struct Rows {
  static constexpr int kBases = (R + 2) / 3;
  const uint8_t* base[kBases];
  int64_t stride;

  inline LG_INLINE Rows(const uint8_t* act, int64_t act_stride) : stride(act_stride) {
    each<kBases>([&](auto i) LG_INLINE { base[i] = act + 3 * i * act_stride; });
  }
  inline LG_INLINE void next() {
    each<kBases>([&](auto i) LG_INLINE {
      base[i] += STEP;
      asm("" : "+r"(base[i]));
    });
    asm("" : "+r"(stride));
  }
  inline LG_INLINE const T* operator[](int r) const { return reinterpret_cast<const T*>(base[r / 3] + r % 3 * stride); }
};

}  // namespace
}  // namespace lg
