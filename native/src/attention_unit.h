// What one pass over a stretch of a tile computes with: the queries taken together and the records.
//
// Knows: where things lie in scratch. Does not know: how scores and sums are computed.
//
// A kind of store (Int8, Int4, Bf16) offers
//   open_record  a record of the tile to what the kind computes from
//   pack         prepared queries of a unit, interleaved
//   weigh_whole  what scores and weigh do, to the bit, if the unit attends to a whole stretch; else returns false
//   scores       all scores of the stretch
//   weigh        scores to weights; maxima and sums so far of each query
//   values       weighted sums of the values, added to what they are so far
//   finish       a tile's result, in place
#pragma once
#include "attention_softmax.h"
#include "attention_store.h"

namespace lg {
namespace {

// Up to kMaxUnit queries that are computed together over one tile.
struct Unit {
  const uint8_t* const* records;  // of the tile; only [first, last), those of the stretch, may be read
  int32_t first, last;
  Span tokens;                    // of the tile: all of the stretch that any query of the unit attends to
  RecordShape shape;
  float softcap;
  const uint8_t* packed;          // the queries, interleaved
  const float* scale;             // a query: dot product to score
  const int32_t* sum;             // a query: sum of its bytes
  const float* key_factors;       // a token of the tile
  const float* value_factors;
  const float* value_heights;
  const float* value_centres;
  float* scores;                  // [query][kTile]
  uint8_t* bytes;                 // [query][kTile]
  float* running;                 // [query][kRunning]
  float* maxima;                  // a lane a query
  Ahead* ahead;
};

// Where the model caps its scores, they are finished here; otherwise the scale is left to weigh_span.
__attribute__((always_inline)) static inline F16 capped(F16 x, float scale, float softcap) {
  if (softcap == 0.0f) return x;
  return f_mul(f_tanh(f_mul(x, f_set(scale / softcap))), f_set(kLog2e * softcap));
}
static inline float score_scale(const Unit& u, int r) { return u.softcap == 0.0f ? u.scale[r] * kLog2e : 1.0f; }

// A tile's records made ready for computing, and where to put them.
struct TileScratch {
  const uint8_t** records;
  float* key_factors;
  float* value_factors;   // of bytes of weights
  float* value_heights;   // log2 of the scales, nearly
  float* value_centres;
  uint8_t* unpacked;
};

// A query's tile so far, in its `running` floats: sums of sixteen lanes, shifts of sixteen lanes. Its maximum is a lane
// of its unit's `maxima`.
constexpr int kShifts = 16;

// What adds a stretch to the unit's tiles: result = result * keep + scale * what was summed. A lane a query.
struct Steps {
  alignas(64) float tops[16];   // the highest of the stretch
  alignas(64) float maxima[16]; // the highest so far
  alignas(64) float keep[16];   // what earlier sums are worth now
  alignas(64) float rise[16];   // 2^(tops - maxima)
  alignas(64) float scale[16];
  bool used[kScratchUnit];      // the query attends to some of the stretch; otherwise nothing of it changes
};

static inline void raise_maxima(const Unit& u, F16 tops, Steps& steps) {
  const F16 before = f_load(u.maxima), now = f_max(tops, before), one = f_set(1.0f);
  const M16 higher = f_greater(tops, before);
  const F16 apart = f_exp2(f_sub(f_set(0.0f), f_abs(f_sub(tops, before))));
  f_store(steps.tops, tops);
  f_store(steps.maxima, now);
  f_store(u.maxima, now);
  f_store(steps.keep, f_select(higher, apart, one));
  f_store(steps.rise, f_select(higher, one, apart));
}

static inline void add_lanes(float* lanes, F16 more, float keep) {
  f_store(lanes, f_fma(f_load(lanes), f_set(keep), more));
}

static inline void start_tile(float* record, float* running, int32_t dim) {
  clear_record(record, dim);
  for (int i = 0; i < kRunning; i += 16) f_store(running + i, f_set(0.0f));
}

}  // namespace
}  // namespace lg
