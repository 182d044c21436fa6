// Scores and weighted sums over records of bytes: int8 as stored, and int4 once unpacked.
//
// Knows: the int8 record. Does not know: tiles, softmax, rows.
#pragma once
#include "attention_unit.h"

namespace lg {
namespace {

// Offset: what is added to keys in their bytes. Minima: values have a minimum a token.
template <int Offset, bool Minima>
struct Bytes {
  static constexpr int kQueryBytes = 1;                          // a dim of a packed query
  static constexpr int kTop = Minima ? 254 : kMostWeight;        // four-bit values leave room at every level

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

  template <int R, int S>
  static inline void score_records(const Unit& u, int32_t at) {
    I16 dot[S][R];
    each<R>([&](auto r) {
      const I16 start = i_set(Offset == 128 && !kOffsetStays ? 0 : -Offset * u.sum[r]);
      each<S>([&](auto s) { dot[s][r] = start; });
    });
    const uint8_t* q = u.packed;
    for (int32_t i = 0; i < u.shape.dim; i += 4, q += 4 * R) {
      B64 k[S];
      u.ahead->some();
      each<S>([&](auto s) { k[s] = b_load(u.records[at + s] + 16 * i); });
      each<R>([&](auto r) {
        const B64 four = b_repeat(q + 4 * r);
        each<S>([&](auto s) { dot[s][r] = Offset == 128 ? i_dot_offset(dot[s][r], k[s], four) : i_dot(dot[s][r], k[s], four); });
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

  // Scores to weight bytes; fills in (max, sum) of each record. One stage for all queries, then the next: within a
  // query the stages wait for each other.
  template <int R>
  static void weigh(const Unit& u, const Span* spans, float* const* records, Step* steps) {
    float top[R];
    for (int r = 0; r < R; ++r) records[r][0] = span_max(u.scores + r * kTile, spans[r]) * score_scale(u, r);
    for (int r = 0; r < R; ++r) {
      const Weights w = weigh_span<true, Minima>(u.scores + r * kTile, score_scale(u, r), records[r][0],
                                                 u.value_factors, u.value_minima, spans[r], *u.ahead);
      records[r][1] = w.sum;
      steps[r].shift = w.shift;
      top[r] = w.top;
    }
    for (int r = 0; r < R; ++r)
      steps[r].scale =
          to_weight_bytes<kTop>(u.scores + r * kTile, top[r], spans[r], u.first, u.last, u.bytes + r * kTile);
  }

  template <int R, int C>
  static inline void value_vectors(const Unit& u, int32_t c, const Step* steps, float* const* out) {
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
        const F16 x = i_to_f(sum[r][j]), scale = f_set(steps[r].scale);
        f_store_part(out[r] + 16 * (c + j), Minima ? f_fma(x, scale, f_set(steps[r].shift)) : f_mul(x, scale),
                     m_range(0, u.shape.dim - 16 * (c + j)));
      });
    });
  }

  template <int R>
  static void values(const Unit& u, const Step* steps, float* const* out) {
    int32_t c = 0;
    for (; c + kValueVectors <= u.shape.vectors; c += kValueVectors) value_vectors<R, kValueVectors>(u, c, steps, out);
    for (; c < u.shape.vectors; ++c) value_vectors<R, 1>(u, c, steps, out);
  }
};

// The store's records are used as they lie.
struct Int8 : Bytes<128, false> {
  static void open_record(const RecordShape& shape, const uint8_t* record, int32_t i, const TileScratch& s) {
    s.records[i] = record;
    f_store(s.key_factors + kRecord * i, f_load_bf16(record + shape.scales));
    f_store(s.value_factors + kRecord * i, f_load_bf16(record + shape.scales + 2 * kRecord));
  }
  static RecordShape opened_shape(int32_t dim) { return record_shape(KV_INT8, dim); }
  static void close(float*, int32_t) {}
};

// Six-bit keys and four-bit values are unpacked a tile at a time, for all queries of a block, to bytes.
struct Int4 : Bytes<32, true> {
  static void open_record(const RecordShape& shape, const uint8_t* record, int32_t i, const TileScratch& s) {
    const RecordShape to = opened_shape(shape.dim);
    uint8_t* bytes = s.unpacked + i * to.bytes;
    s.records[i] = bytes;
    f_store(s.key_factors + kRecord * i, f_load_bf16(record + shape.scales));
    f_store(s.value_factors + kRecord * i, f_load_bf16(record + shape.scales + 2 * kRecord));
    f_store(s.value_minima + kRecord * i, f_load_bf16(record + shape.scales + 4 * kRecord));
    const uint8_t* upper = record + 64 * (shape.dim / 8);
    for (int32_t j = 0; j < shape.dim / 8; ++j) {
      const B64 low = b_load(record + 64 * j), high = b_load(upper + 64 * (j / 2));
      if (j % 2 == 0) {
        b_store(bytes + 128 * j, b_join<4>(b_low_nibbles(low), high));
        b_store(bytes + 128 * j + 64, b_join<2>(b_high_nibbles(low), high));
      } else {
        b_store(bytes + 128 * j, b_join<0>(b_low_nibbles(low), high));
        b_store(bytes + 128 * j + 64, b_join<-2>(b_high_nibbles(low), high));
      }
    }
    const uint8_t* values = record + shape.values;
    uint8_t* to_values = bytes + to.values;
    for (int32_t c = 0; c < shape.vectors; c += 2, values += 256, to_values += 512)
      for (int32_t j = 0; j < 256; j += 64) {
        const B64 both = b_load(values + j);
        b_store(to_values + j, b_low_nibbles(both));
        if (c + 1 < shape.vectors) b_store(to_values + 256 + j, b_high_nibbles(both));
      }
  }
  static RecordShape opened_shape(int32_t dim) { return record_shape(KV_INT8, dim); }

  static void close(float* out, int32_t dim) { rotate_back(out, dim); }
};

}  // namespace
}  // namespace lg
