// Scores and weighted sums over int8 records.
//
// Knows: the int8 record. Does not know: tiles, softmax, rows.
#pragma once
#include "attention_softmax.h"
#include "attention_store.h"

namespace lg {
namespace {

// Up to kMaxUnit queries that are computed together over one tile.
struct Unit {
  const uint8_t* const* records;  // of the tile; only [first, last) may be read
  int32_t first, last;
  RecordShape shape;
  float softcap;
  const uint8_t* packed;          // the queries, interleaved
  const float* scale;             // a query: dot product to score
  const int32_t* sum;             // a query: sum of its bytes
  const float* key_factors;       // a token of the tile
  const float* value_factors;
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

struct Int8 {
  static constexpr int kQueryBytes = 1;  // a dim of a packed query

  // Queries as [dim / 4][R][4 bytes].
  template <int R>
  static void pack(const uint8_t* const* queries, int32_t dim, uint8_t* packed, float* scale, int32_t* sum) {
    for (int r = 0; r < R; ++r) {
      QueryHead head;
      std::memcpy(&head, queries[r], sizeof head);
      scale[r] = head.scale;
      sum[r] = head.sum;
      for (int32_t i = 0; i < dim; i += 4) std::memcpy(packed + i * R + 4 * r, queries[r] + kQueryHead + i, 4);
    }
  }

  // Scales of one record as floats.
  static void unpack_factors(const RecordShape& shape, const uint8_t* record, float* keys, float* values) {
    f_store(keys, f_load_bf16(record + shape.scales));
    f_store(values, f_load_bf16(record + shape.scales + 2 * kRecord));
  }

  template <int R, int S>
  static inline void score_records(const Unit& u, int32_t at) {
    I16 dot[S][R];
    each<R>([&](auto r) {
      const I16 start = i_set(kOffsetStays ? -128 * u.sum[r] : 0);
      each<S>([&](auto s) { dot[s][r] = start; });
    });
    const uint8_t* q = u.packed;
    for (int32_t i = 0; i < u.shape.dim; i += 4, q += 4 * R) {
      B64 k[S];
      u.ahead->some();
      each<S>([&](auto s) { k[s] = b_load(u.records[at + s] + 16 * i); });
      each<R>([&](auto r) {
        const B64 four = b_repeat(q + 4 * r);
        each<S>([&](auto s) { dot[s][r] = i_dot_offset(dot[s][r], k[s], four); });
      });
    }
    each<S>([&](auto s) {
      const F16 scale = f_load(u.key_factors + kRecord * (at + s));
      each<R>([&](auto r) {
        f_store(u.scores + r * kTile + kRecord * (at + s),
                capped(f_mul(i_to_f(dot[s][r]), scale), u.scale[r], u.softcap));
      });
    });
  }

  template <int R>
  static void scores(const Unit& u) {
    int32_t at = u.first;
    for (; at + kSubs <= u.last; at += kSubs) score_records<R, kSubs>(u, at);
    for (; at < u.last; ++at) score_records<R, 1>(u, at);
  }

  // Scores to weight bytes; fills in (max, sum) of each record and what one step of a product is worth. One stage for
  // all queries, then the next: within a query the stages wait for each other.
  template <int R>
  static void weigh(const Unit& u, const Span* spans, float* const* records, float* step) {
    float max[R], top[R];
    for (int r = 0; r < R; ++r) max[r] = span_max(u.scores + r * kTile, spans[r]) * score_scale(u, r);
    for (int r = 0; r < R; ++r) {
      const Weights w = weigh_span(u.scores + r * kTile, score_scale(u, r), max[r], u.value_factors, spans[r], *u.ahead);
      records[r][0] = w.max;
      records[r][1] = w.sum;
      top[r] = w.top;
    }
    for (int r = 0; r < R; ++r)
      step[r] = to_weight_bytes(u.scores + r * kTile, top[r], spans[r], u.first, u.last, u.bytes + r * kTile);
  }

  template <int R, int C>
  static inline void value_vectors(const Unit& u, int32_t c, const float* step, float* const* out) {
    I16 sum[R][C];
    each<R>([&](auto r) { each<C>([&](auto j) { sum[r][j] = i_set(0); }); });
    for (int32_t at = u.first; at < u.last; ++at) {
      const uint8_t* v = u.records[at] + u.shape.values + 256 * c;
      const uint8_t* p = u.bytes + kRecord * at;
      for (int quad = 0; quad < 4; ++quad, v += 64, p += 4) {
        B64 value[C];
        u.ahead->some();
        each<C>([&](auto j) { value[j] = b_load(v + 256 * j); });
        each<R>([&](auto r) {
          const B64 four = b_repeat(p + r * kTile);
          each<C>([&](auto j) { sum[r][j] = i_dot(sum[r][j], four, value[j]); });
        });
      }
    }
    each<R>([&](auto r) {
      each<C>([&](auto j) {
        f_store_part(out[r] + 16 * (c + j), f_mul(i_to_f(sum[r][j]), f_set(step[r])),
                     m_range(0, u.shape.dim - 16 * (c + j)));
      });
    });
  }

  template <int R>
  static void values(const Unit& u, const float* step, float* const* out) {
    int32_t c = 0;
    for (; c + kValueVectors <= u.shape.vectors; c += kValueVectors) value_vectors<R, kValueVectors>(u, c, step, out);
    for (; c < u.shape.vectors; ++c) value_vectors<R, 1>(u, c, step, out);
  }
};

}  // namespace
}  // namespace lg
