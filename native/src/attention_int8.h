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
  float* scores;                  // [query][kTile]
  uint8_t* bytes;                 // [query][kTile]
};

// Dot product to score: units of log 2, capped where the model says so.
static inline F16 finish_score(F16 x, float scale, float softcap) {
  x = f_mul(x, f_set(scale));
  if (softcap == 0.0f) return x;
  return f_mul(f_tanh(f_mul(x, f_set(1.0f / (kLog2e * softcap)))), f_set(kLog2e * softcap));
}

struct Int8 {
  static constexpr int kQueryBytes = 1;  // a dim of a packed query

  // Queries as [dim / 4][R][4 bytes].
  template <int R>
  static void pack(const uint8_t* const* queries, int32_t dim, uint8_t* packed, float* scale, int32_t* sum) {
    for (int r = 0; r < R; ++r) {
      QueryHead head;
      std::memcpy(&head, queries[r], sizeof head);
      scale[r] = head.scale * kLog2e;
      sum[r] = head.sum;
      for (int32_t i = 0; i < dim; i += 4) std::memcpy(packed + i * R + 4 * r, queries[r] + kQueryHead + i, 4);
    }
  }

  template <int R, int S>
  static inline void score_records(const Unit& u, int32_t at) {
    I16 dot[S][R];
    for (int s = 0; s < S; ++s)
      for (int r = 0; r < R; ++r) dot[s][r] = i_set(kOffsetStays ? -128 * u.sum[r] : 0);
    const uint8_t* q = u.packed;
    for (int32_t i = 0; i < u.shape.dim; i += 4, q += 4 * R) {
      B64 k[S];
      for (int s = 0; s < S; ++s) k[s] = b_load(u.records[at + s] + 16 * i);
      for (int r = 0; r < R; ++r) {
        const B64 four = b_repeat(q + 4 * r);
        for (int s = 0; s < S; ++s) dot[s][r] = i_dot_offset(dot[s][r], k[s], four);
      }
    }
    for (int s = 0; s < S; ++s) {
      const F16 scale = f_load_bf16(u.records[at + s] + u.shape.scales);
      for (int r = 0; r < R; ++r)
        f_store(u.scores + r * kTile + kRecord * (at + s),
                finish_score(f_mul(i_to_f(dot[s][r]), scale), u.scale[r], u.softcap));
    }
  }

  template <int R>
  static void scores(const Unit& u) {
    int32_t at = u.first;
    for (; at + kSubs <= u.last; at += kSubs) score_records<R, kSubs>(u, at);
    for (; at < u.last; ++at) score_records<R, 1>(u, at);
  }

  // Scores of query r to weight bytes; fills in (max, sum) and returns what one step of a product is worth.
  static float weigh(const Unit& u, int r, Span span, float* record) {
    F16 top = f_set(0.0f);
    float* scores = u.scores + r * kTile;
    const TileTop t = exponentials(scores, span, [&](int32_t i, F16 p) {
      return f_mul(p, f_load_bf16(u.records[i] + u.shape.scales + 2 * kRecord));
    });
    for (int32_t i = span.begin / kRecord; i * kRecord < span.end; ++i) top = f_max(f_load(scores + kRecord * i), top);
    record[0] = t.max;
    record[1] = t.sum;
    return to_weight_bytes(scores, f_top(top), span, u.first, u.last, u.bytes + r * kTile);
  }

  template <int R, int C>
  static inline void value_vectors(const Unit& u, int32_t c, const float* step, float* const* out) {
    I16 sum[R][C];
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < C; ++j) sum[r][j] = i_set(0);
    for (int32_t at = u.first; at < u.last; ++at) {
      const uint8_t* v = u.records[at] + u.shape.values + 256 * c;
      const uint8_t* p = u.bytes + kRecord * at;
      for (int quad = 0; quad < 4; ++quad) {
        B64 value[C];
        for (int j = 0; j < C; ++j) value[j] = b_load(v + 256 * j + 64 * quad);
        for (int r = 0; r < R; ++r) {
          const B64 four = b_repeat(p + r * kTile + 4 * quad);
          for (int j = 0; j < C; ++j) sum[r][j] = i_dot(sum[r][j], four, value[j]);
        }
      }
    }
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < C; ++j)
        f_store_part(out[r] + 16 * (c + j), f_mul(i_to_f(sum[r][j]), f_set(step[r])),
                     m_range(0, u.shape.dim - 16 * (c + j)));
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
