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

// What will be read next, sent for line by line between arithmetic, into the second cache: a tile would flood the first.
//
// Lines are sent for by few instructions each of which walks on from line to line. Where pages lie one behind the other
// the processor's own prefetcher then takes the walk up, and keeps more lines on their way than a program can; it does
// not when the same lines are sent for by many instructions in turn, or into the first cache.
class Ahead {
 public:
  // scattered: pages do not follow each other in memory, so nothing but this fetches them.
  void start(bool scattered) { allowed_ = scattered ? kFar : kNear; }
  void add(const uint8_t* begin, int64_t bytes) {
    if (count_ > next_ && runs_[count_ - 1].end == begin) {
      runs_[count_ - 1].end += bytes;
    } else if (count_ == next_ && at_ < end_ && end_ == begin) {
      end_ += bytes;
    } else {
      if (count_ == kMost) drop_done();
      if (count_ < kMost) runs_[count_++] = {begin, begin + bytes};
    }
  }
  // As many lines more as the arithmetic is about to read.
  void allow(int32_t lines) {
    burst();
    allowed_ += lines;
  }
  void some(int32_t lines) {
    if (allowed_ <= 0 || (at_ >= end_ && !advance())) return;
    allowed_ -= lines;
    do {
      __builtin_prefetch(at_, 0, 2);
      at_ += 64;
      __asm__ volatile("" : "+r"(at_));  // stays a loop
    } while (--lines);
  }
  void burst() {
    while (allowed_ > 0 && (at_ < end_ || advance())) some(4);
  }

 private:
  static constexpr int32_t kNear = 264, kFar = 512;  // lines ahead of the arithmetic
  static constexpr int kMost = 4 * kRecords;
  struct Run {
    const uint8_t *begin, *end;
  };
  bool advance() {
    if (next_ == count_) return false;
    at_ = runs_[next_].begin;
    end_ = runs_[next_++].end;
    return true;
  }
  void drop_done() {
    for (int i = next_; i < count_; ++i) runs_[i - next_] = runs_[i];
    count_ -= next_;
    next_ = 0;
  }
  const uint8_t *at_ = nullptr, *end_ = nullptr;
  int32_t allowed_ = 0;
  int next_ = 0, count_ = 0;
  Run runs_[kMost];
};

// fn(0) .. fn(N - 1) with the index known to the compiler, so that arrays of lanes stay in registers.
template <int I>
struct Index {
  constexpr operator int() const { return I; }
};
template <int N, int I = 0, class Fn>
__attribute__((always_inline)) static inline void each(Fn&& fn) {
  if constexpr (I < N) {
    fn(Index<I>{});
    each<N, I + 1>(fn);
  }
}

// Calls fn(record, mask, partial) over the records of a span; `partial` is known to the compiler.
template <class Fn>
__attribute__((always_inline)) static inline void each_record(Span span, Fn&& fn) {
  const M16 all = m_range(0, 16);
  int32_t i = span.begin / kRecord;
  if (span.begin % kRecord && span.begin < span.end) {
    fn(i, m_range(span.begin - kRecord * i, span.end - kRecord * i), Index<1>{});
    ++i;
  }
  for (; kRecord * (i + 1) <= span.end; ++i) fn(i, all, Index<0>{});
  if (kRecord * i < span.end) fn(i, m_range(0, span.end - kRecord * i), Index<1>{});
}

static inline float span_max(const float* scores, Span span) {
  const F16 lowest = f_set(-HUGE_VALF);
  F16 top[2] = {lowest, lowest};  // by turns: one chain would wait for itself
  each_record(span, [&](int32_t i, M16 m, auto partial) {
    F16 s = f_load(scores + kRecord * i);
    if (partial) s = f_select(m, s, lowest);
    const F16 next = f_max(s, top[1]);
    top[1] = top[0];
    top[0] = next;
  });
  return f_top(f_max(top[0], top[1]));
}

// Lane by lane, so that lanes are added up once a tile.
struct Weights {
  F16 sum;      // of the weights
  F16 shift;    // of minimum * weight
  float top;    // the largest of factor * weight
};

// scores -> factor * 2^(scale * score - max), in place. factors: null for 1; minima: null for 0.
template <bool Factors, bool Minima>
static inline Weights weigh_span(float* scores, float scale, float max, const float* factors, const float* minima,
                                 Span span) {
  const F16 minus = f_set(max == -HUGE_VALF ? 0.0f : -max), by = f_set(scale);
  F16 sum = f_set(0.0f), top = f_set(0.0f), shift = f_set(0.0f);
  each_record(span, [&](int32_t i, M16 m, auto partial) {
    F16 p = f_weight(f_fma(f_load(scores + kRecord * i), by, minus));
    if (partial) p = f_keep(m, p);
    sum = f_add(p, sum);
    if (Minima) {
      const F16 low = f_load(minima + kRecord * i);
      shift = f_fma(p, partial ? f_keep(m, low) : low, shift);
    }
    if (Factors) {
      p = f_mul(p, f_load(factors + kRecord * i));
      if (partial) p = f_keep(m, p);
      top = f_max(p, top);
    }
    f_store(scores + kRecord * i, p);
  });
  return {sum, shift, Factors ? f_top(top) : 0.0f};
}

template <int Top>
static inline float weight_inverse(float top) {
  return top > 1e-30f ? Top / top : top == top ? 0.0f : top;
}

// Weights to bytes of 0..Top + 1, the largest becoming Top. The rounding error of each lane is carried to the next
// record, so that many small weights beside a large one are not lost. Returns what one step is worth. Bytes of
// the records [first, last) outside the span become 0.
template <int Top>
static inline float to_weight_bytes(const float* weights, float top, Span span, int32_t first, int32_t last,
                                    uint8_t* bytes) {
  const F16 inverse = f_set(weight_inverse<Top>(top)), rounder = f_set(kRounder);
  for (int32_t i = first; i < span.begin / kRecord; ++i) i_store_u8(bytes + kRecord * i, i_set(0));
  F16 error = f_set(0.0f);
  int32_t i = span.begin / kRecord;
  for (; i * kRecord < span.end; ++i) {
    const F16 exact = f_fma(f_load(weights + kRecord * i), inverse, error);
    const F16 shifted = f_add(exact, rounder);
    error = f_sub(exact, f_sub(shifted, rounder));
    i_store_u8(bytes + kRecord * i, f_bits(shifted));
  }
  for (; i < last; ++i) i_store_u8(bytes + kRecord * i, i_set(0));
  return top * (1.0f / Top);
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
