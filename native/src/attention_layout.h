// Where the bytes of keys, values and prepared queries lie, and how scratch is cut up.
//
// Knows: offsets. Does not know: instructions, softmax. Shared by all levels, so that a store written at one level
// could be read at another.
//
// The unit of storage is a record: sixteen consecutive tokens of one head. A page holds, head after head, page_size / 16
// records. Inside a record (E = dim, V = dim rounded up to 16):
//   int8  keys    [E / 4][16 tokens][4 dims]         bytes, q + 128
//         values  [V / 16][4][16 dims][4 tokens]     signed bytes
//         scales  key[16], value[16]                 bf16, rounded up so that no value is clipped
//   int4  keys    [E / 8][16 tokens][4 dims]         low nibble: dims 8i + 0..3, high nibble: dims 8i + 4..7
//         values  [V / 16][2][16 dims][4 tokens]     low nibble: tokens 8i + 0..3, high nibble: tokens 8i + 4..7
//         key scale[16], key minimum[16], value scale[16], value minimum[16]     bf16
//   bf16  keys    [E / 2][16 tokens][2 dims]
//         values  [V / 16][8][16 dims][2 tokens]
//
// Keys of the integer kinds are kept rotated by a Hadamard matrix (blocks of the largest power of two that divides
// dim), and so are queries: products keep their value, and no single large channel eats the eight bits of all others.
#pragma once
#include "kernels.h"

namespace lg {
namespace {

constexpr int kRecord = 16;                      // tokens of a record
constexpr int kRecords = kTile / kRecord;        // records of a tile
constexpr int kQueryHead = kAlign;               // bytes before the values of a prepared integer query
constexpr int kBlockQueries = 96;                // queries that share a walk over the tiles
constexpr int kScratchUnit = 8;                  // no level computes more queries together

struct RecordShape {
  int32_t dim, vectors;                          // vectors: sixteens of value dims
  int64_t values, scales, bytes;                 // offsets of values and scales; size of the record
};

static inline RecordShape record_shape(int32_t kind, int32_t dim) {
  RecordShape s;
  s.dim = dim;
  s.vectors = static_cast<int32_t>(round_up(dim, 16) / 16);
  const int64_t bits = kind == KV_BF16 ? 16 : kind == KV_INT8 ? 8 : 4;
  s.values = kRecord * dim * bits / 8;
  s.scales = s.values + int64_t{kRecord} * s.vectors * 16 * bits / 8;
  const int64_t scale_bytes = kind == KV_BF16 ? 0 : kind == KV_INT8 ? 2 * 2 * kRecord : 4 * 2 * kRecord;
  s.bytes = round_up(s.scales + scale_bytes, kAlign);
  return s;
}

// A prepared integer query starts with this; its dim signed bytes follow at kQueryHead.
struct QueryHead {
  float scale;   // of the bytes, times the softmax scale
  int32_t sum;   // of the bytes
};

static inline int64_t query_bytes(int32_t kind, int32_t dim) {
  return kind == KV_BF16 ? round_up(4 * dim, kAlign) : kQueryHead + round_up(dim, kAlign);
}

static inline int32_t rotation_block(int32_t dim) { return dim & -dim; }

static inline int32_t block_rows(int32_t group) { return group >= kBlockQueries ? 1 : kBlockQueries / group; }

// Offsets into the scratch of one attend() call.
struct ScratchPlan {
  int64_t scores, bytes, factors, tile, state, packed, scale, sum, end;
};

static inline ScratchPlan scratch_plan(int32_t dim, int32_t group) {
  const int64_t queries = int64_t{block_rows(group)} * group, record = partial_floats(dim) * 4;
  ScratchPlan s;
  s.scores = 0;
  s.bytes = s.scores + kScratchUnit * kTile * 4;
  s.factors = s.bytes + kScratchUnit * kTile;
  s.tile = s.factors + 2 * kTile * 4;
  s.state = s.tile + kScratchUnit * record;
  s.packed = s.state + queries * record;
  s.scale = s.packed + round_up(queries * dim * 4, kAlign);
  s.sum = s.scale + round_up(queries * 4, kAlign);
  s.end = s.sum + round_up(queries * 4, kAlign);
  return s;
}

}  // namespace
}  // namespace lg
