// One query's scores of one tile to weights, and merging of tiles.
//
// Knows: exponentials, maxima, rounding. Does not know: how keys and values are kept.
//
// Scores and maxima are in units of log 2. Lanes of masked tokens become weight 0 whatever they held, so it makes no
// difference which records around the query's own span were computed along.
#pragma once
#include "attention_layout.h"
#include "lanes_math.h"

namespace lg {
namespace {

struct Span {
  int32_t begin, end;  // tokens of the tile that a query attends to
};

struct TileTop {
  float max, sum;
};

// Calls fn(record, mask, is_partial) over the records of a span.
template <class Fn>
static inline void each_record(Span span, Fn fn) {
  const M16 all = m_range(0, 16);
  for (int32_t i = span.begin / kRecord; i * kRecord < span.end; ++i) {
    const int32_t at = i * kRecord;
    if (at >= span.begin && at + kRecord <= span.end)
      fn(i, all, false);
    else
      fn(i, m_range(span.begin - at, span.end - at), true);
  }
}

static inline float span_max(const float* scores, Span span) {
  F16 top = f_set(-HUGE_VALF);
  each_record(span, [&](int32_t i, M16 m, bool partial) {
    F16 s = f_load(scores + kRecord * i);
    if (partial) s = f_select(m, s, f_set(-HUGE_VALF));
    top = f_max(s, top);
  });
  return f_top(top);
}

// scores -> exp2(score - max), and times(record, weights) of it, in place.
template <class Fn>
static inline TileTop exponentials(float* scores, Span span, Fn times) {
  TileTop r;
  r.max = span_max(scores, span);
  const F16 base = f_set(r.max == -HUGE_VALF ? 0.0f : r.max), zero = f_set(0.0f);
  F16 sum = zero;
  each_record(span, [&](int32_t i, M16 m, bool partial) {
    F16 p = f_exp2(f_sub(f_load(scores + kRecord * i), base));
    if (partial) p = f_select(m, p, zero);
    sum = f_add(p, sum);
    F16 w = times(i, p);
    if (partial) w = f_select(m, w, zero);
    f_store(scores + kRecord * i, w);
  });
  r.sum = f_sum(sum);
  return r;
}

// Weights to bytes of 0..kTopWeight + 1, the largest becoming kTopWeight; the rounding error of each lane is carried
// to the next record, so that many small weights beside a large one are not lost. Returns the value of one step.
// Bytes of the records [first, last) outside the span become 0.
static inline float to_weight_bytes(const float* weights, float top, Span span, int32_t first, int32_t last,
                                    uint8_t* bytes) {
  const F16 inverse = f_set(top > 1e-30f ? kTopWeight / top : top == top ? 0.0f : top);
  for (int32_t i = first; i < span.begin / kRecord; ++i) i_store_u8(bytes + kRecord * i, i_set(0));
  F16 error = f_set(0.0f);
  int32_t i = span.begin / kRecord;
  for (; i * kRecord < span.end; ++i) {
    const F16 exact = f_fma(f_load(weights + kRecord * i), inverse, error);
    const F16 whole = f_round(exact);
    error = f_sub(exact, whole);
    i_store_u8(bytes + kRecord * i, f_to_i(whole));
  }
  for (; i < last; ++i) i_store_u8(bytes + kRecord * i, i_set(0));
  return top * (1.0f / kTopWeight);
}

// to = to merged with from; both are records of (max, sum, dim values).
static inline void merge_record(float* to, const float* from, int32_t dim) {
  if (from[0] == -HUGE_VALF && from[1] == 0.0f) return;  // a tile that the row does not touch
  const float top = to[0] > from[0] ? to[0] : from[0];
  float scales[2] = {to[0] - top, from[0] - top};
  for (float& s : scales) {
    alignas(64) float lanes[16];
    f_store(lanes, f_exp2(f_set(s)));
    s = lanes[0];
  }
  const F16 a = f_set(scales[0]), b = f_set(scales[1]);
  to[0] = top;
  alignas(64) float sums[16];
  f_store(sums, f_fma(f_set(from[1]), b, f_mul(f_set(to[1]), a)));
  to[1] = sums[0];
  for (int32_t i = 0; i < dim; i += 16) {
    const M16 m = m_range(0, dim - i);
    f_store_part(to + 2 + i, f_fma(f_load_part(from + 2 + i, m), b, f_mul(f_load_part(to + 2 + i, m), a)), m);
  }
}

static inline void clear_record(float* record, int32_t dim) {
  record[0] = -HUGE_VALF;
  for (int32_t i = 1; i < 2 + dim; ++i) record[i] = 0.0f;
}

static inline void normalise(const float* record, int32_t dim, float* out) {
  const F16 inverse = f_set(1.0f / record[1]);
  for (int32_t i = 0; i < dim; i += 16) {
    const M16 m = m_range(0, dim - i);
    f_store_part(out + i, f_mul(f_load_part(record + 2 + i, m), inverse), m);
  }
}

}  // namespace
}  // namespace lg
