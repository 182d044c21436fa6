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

// Calls fn(record, mask, partial) over the records of a span; `partial` is known to the compiler.
template <class Fn>
__attribute__((always_inline)) static inline void each_record(Span span, Fn&& fn) {
  const M16 all = m_range(0, 16);
  int32_t i = span.begin / kRecord;
  if (span.begin % kRecord && span.begin < span.end) {
    fn(i, m_range(span.begin - kRecord * i, span.end - kRecord * i), Int<1>{});
    ++i;
  }
  for (; kRecord * (i + 1) <= span.end; ++i) fn(i, all, Int<0>{});
  if (kRecord * i < span.end) fn(i, m_range(0, span.end - kRecord * i), Int<1>{});
}

// 2^(scale * score - max) in place, for the records of a span; 0 for their tokens outside it. Returns the sum, lane by
// lane, so that lanes are added up once a tile.
static inline F16 weigh_span(float* scores, float scale, float max, Span span) {
  const F16 minus = f_set(max == -HUGE_VALF ? 0.0f : -max), by = f_set(scale);
  F16 sum = f_set(0.0f);
  each_record(span, [&](int32_t i, M16 m, auto partial) {
    F16 p = f_weight(f_fma(f_load(scores + kRecord * i), by, minus));
    if (partial) p = f_keep(m, p);
    sum = f_add(p, sum);
    f_store(scores + kRecord * i, p);
  });
  return sum;
}

constexpr int kMergeQueries = 16;  // at once, a lane each

// to[i] = to[i] merged with from[i], for count <= kMergeQueries records.
static inline void merge_records(float* const* to, const float* const* from, int32_t count, int32_t dim) {
  const int64_t end = round_up(dim, 16);
  alignas(64) float tops[2][16] = {}, sums[2][16] = {}, scales[2][16];
  for (int32_t i = 0; i < count; ++i) {
    tops[0][i] = to[i][end], sums[0][i] = to[i][end + 1];
    tops[1][i] = from[i][end], sums[1][i] = from[i][end + 1];
  }
  const F16 a = f_load(tops[0]), b = f_load(tops[1]), top = f_max(a, b), low = f_min(a, b), one = f_set(1.0f);
  const F16 apart = f_exp2(f_select(f_less(low, top), f_sub(low, top), f_set(0.0f)));  // of two -inf: 1
  const F16 keep = f_select(f_less(a, b), apart, one), scale = f_select(f_less(b, a), apart, one);
  f_store(scales[0], keep);
  f_store(scales[1], scale);
  f_store(tops[0], top);
  f_store(sums[0], f_fma(f_load(sums[1]), scale, f_mul(f_load(sums[0]), keep)));
  for (int32_t i = 0; i < count; ++i) {
    const F16 x = f_set(scales[0][i]), y = f_set(scales[1][i]);
    for (int32_t j = 0; j < end; j += 16)
      f_store(to[i] + j, f_fma(f_load(from[i] + j), y, f_mul(f_load(to[i] + j), x)));
    to[i][end] = tops[0][i];
    to[i][end + 1] = sums[0][i];
  }
}

static inline void clear_record(float* record, int32_t dim) {
  const int32_t end = static_cast<int32_t>(round_up(dim, 16));
  for (int32_t i = 0; i < end; i += 16) f_store(record + i, f_set(0.0f));
  record[end] = -HUGE_VALF;
  record[end + 1] = 0.0f;
}

static inline void normalise(const float* record, int32_t dim, float* out) {
  const F16 inverse = f_set(1.0f / record[round_up(dim, 16) + 1]);
  for (int32_t i = 0; i < dim; i += 16) f_store_part(out + i, f_mul(f_load(record + i), inverse), m_range(0, dim - i));
}

}  // namespace
}  // namespace lg
