// Scores and weighted sums over bf16 records, in float32.
//
// Knows: the bf16 record. Does not know: tiles, rows.
//
// One chain of fused multiply-adds a score (dims in order) and one an output (tokens in order). Tokens beside a query's
// span have weight 0; tokens beside the whole unit's span are not read at all, for they may hold anything.
#pragma once
#include "attention_unit.h"

namespace lg {
namespace {

struct Bf16 {
  static constexpr int kQueryBytes = 4;  // a dim of a packed query

  static void open_record(const RecordShape&, const uint8_t* record, int32_t i, const TileScratch& s) {
    s.records[i] = record;
  }
  static RecordShape opened_shape(int32_t dim) { return record_shape(KV_BF16, dim); }
  static void finish(float*, const float*, int32_t) {}

  // Queries as [dim][R] floats.
  template <int R>
  static void pack(const uint8_t* const* queries, int32_t dim, uint8_t* packed, float* scale, int32_t*) {
    for (int r = 0; r < R; ++r) {
      scale[r] = 1.0f;
      for (int32_t i = 0; i < dim; ++i) std::memcpy(packed + 4 * (i * R + r), queries[r] + 4 * i, 4);
    }
  }

  template <int R, int S>
  static inline void score_records(const Unit& u, int32_t at) {
    F16 dot[S][R];
    each<R>([&](auto r) { each<S>([&](auto s) { dot[s][r] = f_set(0.0f); }); });
    const float* q = reinterpret_cast<const float*>(u.packed);
    for (int32_t i = 0; i < u.shape.dim; i += 2, q += 2 * R) {
      F16 first[S], second[S];
      u.ahead->some(S);
      each<S>([&](auto s) {
        const B64 pair = b_load(u.records[at + s] + 32 * i);
        first[s] = f_first_bf16(pair);
        second[s] = f_second_bf16(pair);
      });
      each<R>([&](auto r) { each<S>([&](auto s) { dot[s][r] = f_fma(first[s], f_set(q[r]), dot[s][r]); }); });
      each<R>([&](auto r) { each<S>([&](auto s) { dot[s][r] = f_fma(second[s], f_set(q[R + r]), dot[s][r]); }); });
    }
    each<S>([&](auto s) {
      each<R>([&](auto r) {
        f_store(u.scores + r * kTile + kRecord * (at + s), capped(dot[s][r], u.scale[r], u.softcap));
      });
    });
  }

  template <int R>
  static bool weigh_whole(const Unit&, const Span*, Steps&) { return false; }

  template <int R>
  static void scores(const Unit& u) {
    int32_t at = u.first;
    for (; at + kFloatSubs <= u.last; at += kFloatSubs) score_records<R, kFloatSubs>(u, at);
    for (; at < u.last; ++at) score_records<R, 1>(u, at);
  }

  template <int R>
  static inline void find_tops(const Unit& u, const Span* spans, Steps& steps) {
    const F16 lowest = f_set(-HUGE_VALF);
    F16 tops[R];
    for (int r = 0; r < R; ++r) {
      steps.used[r] = spans[r].begin < spans[r].end;
      tops[r] = lowest;
      if (steps.used[r])
        each_record(spans[r], [&](int32_t i, M16 m, auto partial) {
          F16 x = f_load(u.scores + r * kTile + kRecord * i);
          if (partial) x = f_select(m, x, lowest);
          tops[r] = f_max(x, tops[r]);
        });
      tops[r] = f_mul(tops[r], f_set(score_scale(u, r)));
    }
    raise_maxima(u, f_tops<R>(tops), steps);
  }

  template <int R>
  static void weigh(const Unit& u, const Span* spans, Steps& steps) {
    find_tops<R>(u, spans, steps);
    for (int r = 0; r < R; ++r) {
      float* scores = u.scores + r * kTile;
      const Span span = steps.used[r] ? spans[r] : Span{kRecord * u.first, kRecord * u.first};
      const F16 sum = weigh_span(scores, score_scale(u, r), steps.maxima[top_lane(r)], span);
      if (steps.used[r]) add_lanes(u.running + r * kRunning, sum, steps.keep[top_lane(r)]);
      for (int32_t i = u.first; i < span.begin / kRecord; ++i) f_store(scores + kRecord * i, f_set(0.0f));
      for (int32_t i = (span.end + kRecord - 1) / kRecord; i < u.last; ++i)
        f_store(scores + kRecord * i, f_set(0.0f));
    }
  }

  // Adds tokens [t, t + Tokens) of one record; t is even when Tokens is 2.
  template <int R, int C, int Tokens>
  static inline void add_tokens(const Unit& u, int32_t c, int32_t t, F16 (&sum)[R][C]) {
    const uint8_t* v = u.records[t / kRecord] + u.shape.values + 512 * c + 64 * (t % kRecord / 2);
    const float* p = u.scores + t;
    B64 pair[C];
    each<C>([&](auto j) { pair[j] = b_load(v + 512 * j); });
    if (Tokens == 2 || t % 2 == 0)
      each<R>([&](auto r) {
        each<C>([&](auto j) { sum[r][j] = f_fma(f_first_bf16(pair[j]), f_set(p[r * kTile]), sum[r][j]); });
      });
    if (Tokens == 2 || t % 2 == 1)
      each<R>([&](auto r) {
        const float* second = p + (Tokens == 2 ? 1 : 0);
        each<C>([&](auto j) { sum[r][j] = f_fma(f_second_bf16(pair[j]), f_set(second[r * kTile]), sum[r][j]); });
      });
  }

  template <int R, int C>
  static inline void value_vectors(const Unit& u, int32_t c, const Steps& steps, float* const* out) {
    F16 sum[R][C];
    each<R>([&](auto r) {
      each<C>([&](auto j) {
        sum[r][j] = f_mul(f_load(out[r] + 16 * (c + j)), f_set(steps.keep[top_lane(r)]));
      });
    });
    int32_t t = u.tokens.begin;
    if (t % 2) add_tokens<R, C, 1>(u, c, t++, sum);
    for (; t + 2 <= u.tokens.end; t += 2) {
      u.ahead->some(C);
      add_tokens<R, C, 2>(u, c, t, sum);
    }
    if (t < u.tokens.end) add_tokens<R, C, 1>(u, c, t, sum);
    each<R>([&](auto r) {
      if (!steps.used[r]) return;
      each<C>([&](auto j) {
        f_store(out[r] + 16 * (c + j), sum[r][j]);
      });
    });
  }

  template <int R>
  static void values(const Unit& u, const Steps& steps, float* const* out) {
    int32_t c = 0;
    for (; c + kValueVectors <= u.shape.vectors; c += kValueVectors) value_vectors<R, kValueVectors>(u, c, steps, out);
    for (; c < u.shape.vectors; ++c) value_vectors<R, 1>(u, c, steps, out);
  }
};

}  // namespace
}  // namespace lg
