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
  const float* value_minima;
  float* scores;                  // [query][kTile]
  uint8_t* bytes;                 // [query][kTile]
  float* running;                 // [query][kRunning]
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
  float* value_factors;
  float* value_minima;
  uint8_t* unpacked;
};

// A query's tile so far, in its `running` floats: sums of sixteen lanes, shifts of sixteen lanes, the maximum.
constexpr int kShifts = 16, kMaximum = 32;

// What adds a stretch to one query's tile: result = result * keep + scale * what was summed.
struct Step {
  float scale, keep, max;
  bool used;  // the query attends to some of the stretch; otherwise nothing of it changes
};

// The maxima so far, and what is left of earlier sums under them. tops: each query's highest score of the stretch.
template <int R>
static inline void raise_maxima(const Unit& u, const float* tops, Step* steps) {
  alignas(64) float fall[16] = {};
  for (int r = 0; r < R; ++r) {
    if (!steps[r].used) continue;
    float& top = u.running[r * kRunning + kMaximum];
    const float here = tops[r] * score_scale(u, r), raised = here > top ? here : top;
    fall[r] = top == -HUGE_VALF ? top : top - raised;
    steps[r].max = top = raised;
  }
  f_store(fall, f_exp2(f_load(fall)));
  for (int r = 0; r < R; ++r) steps[r].keep = fall[r];
}

template <int R>
static inline void find_maxima(const Unit& u, const Span* spans, Step* steps) {
  float tops[R];
  for (int r = 0; r < R; ++r) {
    steps[r].used = spans[r].begin < spans[r].end;
    tops[r] = span_max(u.scores + r * kTile, spans[r]);
  }
  raise_maxima<R>(u, tops, steps);
}

static inline void add_lanes(float* lanes, F16 more, float keep) {
  f_store(lanes, f_fma(f_load(lanes), f_set(keep), more));
}

static inline void start_tile(float* record, float* running, int32_t dim) {
  clear_record(record, dim);
  for (int i = 0; i < kMaximum; ++i) running[i] = 0.0f;
  running[kMaximum] = -HUGE_VALF;
}

}  // namespace
}  // namespace lg
