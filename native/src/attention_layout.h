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
//   int4  keys    six bits a dim, q + 32: the low four in [E / 8][16 tokens][4 dims], where the high nibble is the dim
//                 four further on; then the upper two in [ceil(E / 16)][16 tokens][4 dims], bits 2j and 2j + 1 of a
//                 byte being the dim 4j further on
//         values  [ceil(V / 32)][4][16 dims][4 tokens]     four bits; the high nibble is the dim sixteen further on
//         scales  key[16], value[16], centre[16]     bf16; value = centre + scale * kLevels[bits]
//   bf16  keys    [E / 2][16 tokens][2 dims]
//         values  [V / 16][8][16 dims][2 tokens]
//
// Keys of the integer kinds are kept rotated by a Hadamard matrix with fixed random signs (blocks of the largest power
// of two that divides dim), and so are queries: products keep their value, and no single large channel eats the bits of all others.
// Values of int4 are rotated too, and results are rotated back. Why keys have six bits under the name int4: with four,
// perplexity of the built-in model rises by 4 %, with six by 0.1 %.
#pragma once
#include "kernels.h"

namespace lg {
namespace {

constexpr int kRecord = 16;                      // tokens of a record
constexpr int kRecords = kTile / kRecord;        // records of a tile
constexpr int kStretch = 4;                      // records whose softmax is computed at once: they fit the first cache
constexpr int kQueryHead = kAlign;               // bytes before the values of a prepared integer query
constexpr int kScratchUnit = 8;                  // no level computes more queries together

// What four bits of a value stand for. A rotated head's values are spread like a normal distribution, where levels that
// are close in the middle lose less than even ones (J. Max, Quantizing for Minimum Distortion, 1960). At most 64, so that
// two products with any weight fit the 16 bits in which AVX2 adds them.
constexpr int8_t kLevels[16] = {-64, -51, -40, -31, -23, -16, -9, -3, 3, 9, 16, 23, 31, 40, 51, 64};

struct RecordShape {
  int32_t dim, vectors;                          // vectors: sixteens of value dims
  int64_t values, scales, bytes;                 // offsets of values and scales; size of the record
};

static inline RecordShape record_shape(int32_t kind, int32_t dim) {
  RecordShape s;
  s.dim = dim;
  s.vectors = static_cast<int32_t>(round_up(dim, 16) / 16);
  if (kind == KV_INT4) {
    s.values = 64 * (dim / 8) + 64 * s.vectors;
    s.scales = s.values + 256 * ((s.vectors + 1) / 2);
    s.bytes = round_up(s.scales + 3 * 2 * kRecord, kAlign);
  } else {
    const int64_t width = kind == KV_BF16 ? 2 : 1;
    s.values = kRecord * dim * width;
    s.scales = s.values + int64_t{kRecord} * 16 * s.vectors * width;
    s.bytes = kind == KV_BF16 ? s.scales : s.scales + 2 * 2 * kRecord;
  }
  return s;
}

// A prepared integer query starts with this; its dim signed bytes follow at kQueryHead. A bf16 one is dim floats.
struct QueryHead {
  float scale;   // of the bytes, times the softmax scale
  int32_t sum;   // of the bytes
};

static inline int64_t query_bytes(int32_t kind, int32_t dim) {
  return kind == KV_BF16 ? round_up(4 * dim, kAlign) : kQueryHead + round_up(dim, kAlign);
}

// Signs given to the dims before the rotation, so that no pattern a model may have learnt is one of its rows.
struct Signs {
  float of[512];
  constexpr Signs() : of() {
    uint32_t state = 0x9e3779b9u;
    for (float& x : of) {
      state = state * 1664525u + 1013904223u;
      x = state >> 31 ? -1.0f : 1.0f;
    }
  }
};
constexpr Signs kSigns;

static inline int32_t rotation_block(int32_t dim) { return dim & -dim; }

static inline int32_t block_rows(int32_t group) { return group >= kAttendQueries ? 1 : kAttendQueries / group; }

constexpr int kRunning = 32;  // floats kept a query while a tile is computed

// Offsets into the scratch of one attend() call.
struct ScratchPlan {
  int64_t scores, bytes, factors, unpacked, tile, state, packed, running, maxima, scale, sum, spans, records, end;
};

static inline ScratchPlan scratch_plan(int32_t dim, int32_t group) {
  const int64_t queries = int64_t{block_rows(group)} * group, record = partial_floats(dim) * 4;
  ScratchPlan s;
  s.scores = 0;
  s.bytes = s.scores + kScratchUnit * kTile * 4;
  s.factors = s.bytes + kScratchUnit * kTile;
  s.unpacked = s.factors + 4 * kTile * 4;
  s.tile = s.unpacked + kRecords * record_shape(KV_INT8, dim).bytes;
  s.state = s.tile + queries * record;
  s.packed = s.state + queries * record;
  s.running = s.packed + round_up(queries * dim * 4, kAlign);
  s.maxima = s.running + queries * kRunning * 4;
  s.scale = s.maxima + queries * 16 * 4;  // a unit may have one query
  s.sum = s.scale + round_up(queries * 4, kAlign);
  s.spans = s.sum + round_up(queries * 4, kAlign);
  s.records = s.spans + round_up(queries * 8, kAlign);
  s.end = s.records + round_up(queries * 8, kAlign);
  return s;
}

}  // namespace
}  // namespace lg
