// What one pass over a tile computes with: the queries taken together and the tile's records.
//
// Knows: where things lie in scratch. Does not know: how scores and sums are computed.
//
// A kind of store (Int8, Int4, Bf16) offers
//   open_record  a record of the tile to what the kind computes from
//   pack         prepared queries of a unit, interleaved
//   scores       all scores of the tile
//   weigh        scores to weights; (max, sum) of each query
//   values       weighted sums of the values
//   close        a finished result, in place
#pragma once
#include "attention_softmax.h"
#include "attention_store.h"

namespace lg {
namespace {

// Up to kMaxUnit queries that are computed together over one tile.
struct Unit {
  const uint8_t* const* records;  // of the tile; only [first, last) may be read
  int32_t first, last;
  Span tokens;                    // of the tile: all that any query of the unit attends to
  RecordShape shape;
  float softcap;
  const uint8_t* packed;          // the queries, interleaved
  const float* scale;             // a query: dot product to score
  const int32_t* sum;             // a query: sum of its bytes
  const float* key_factors;       // a token of the tile
  const float* value_factors;
  const float* value_minima;
  float* scores;                  // [query][kTile]
  uint8_t* bytes;                 // [query][kTile]
  Ahead* ahead;
};

// Where the model caps its scores, they are finished here; otherwise the scale is left to weigh_span.
static inline F16 capped(F16 x, float scale, float softcap) {
  if (softcap == 0.0f) return x;
  return f_mul(f_tanh(f_mul(x, f_set(scale / softcap))), f_set(kLog2e * softcap));
}
static inline float score_scale(const Unit& u, int r) { return u.softcap == 0.0f ? u.scale[r] * kLog2e : 1.0f; }

// A tile's records made ready for computing, and where to put them.
struct TileScratch {
  const uint8_t** records;
  float* key_factors;
  float* value_factors;
  float* value_minima;
  uint8_t* unpacked;
};

// What turns the integer sums of one query's tile into floats.
struct Step {
  float scale, shift;
};

}  // namespace
}  // namespace lg
