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
  __attribute__((always_inline)) static inline void dot_records(const Unit& u, int32_t at, I16 (&dot)[S][R]) {
    each<R>([&](auto r) {
      const I16 start = i_set(Offset == 128 && !kOffsetStays ? 0 : -Offset * u.sum[r]);
      each<S>([&](auto s) { dot[s][r] = start; });
    });
    const uint8_t* q = u.packed;
    for (int32_t i = 0; i < u.shape.dim; i += 4, q += 4 * R) {
      B64 k[S];
      u.ahead->some(S);
      each<S>([&](auto s) { k[s] = b_load(u.records[at + s] + 16 * i); });
      each<R>([&](auto r) {
        const B64 four = b_repeat(q + 4 * r);
        each<S>([&](auto s) { dot[s][r] = Offset == 128 ? i_dot_offset(dot[s][r], k[s], four) : i_dot(dot[s][r], k[s], four); });
      });
    }
  }

  template <int R, int S>
  static inline void score_records(const Unit& u, int32_t at) {
    I16 dot[S][R];
    dot_records<R, S>(u, at, dot);
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

  template <int R>
  static bool weigh_whole(const Unit& u, const Span* spans, Step* steps) {
    if constexpr (kSubs < kStretch || R > 4) return false;  // more queries would not stay in registers
    for (int r = 0; r < R; ++r)
      if (spans[r].begin != kRecord * u.first || spans[r].end != kRecord * (u.first + kStretch)) return false;
    I16 dot[kStretch][R];
    F16 x[kStretch][R];
    dot_records<R, kStretch>(u, u.first, dot);
    float tops[R];
    each<kStretch>([&](auto s) {
      const F16 scale = f_load(u.key_factors + kRecord * (u.first + s));
      each<R>([&](auto r) { x[s][r] = capped(f_mul(i_to_f(dot[s][r]), scale), u.scale[r], u.softcap); });
    });
    each<R>([&](auto r) {
      steps[r].used = true;
      tops[r] = f_top(f_max(f_max(x[0][r], x[1][r]), f_max(x[2][r], x[3][r])));
    });
    raise_maxima<R>(u, tops, steps);
    each<R>([&](auto r) { steps[r].scale = weigh_registers<R>(u, r, steps[r], x); });
    return true;
  }

  // Exactly weigh_span and to_weight_bytes for one query.
  template <int R>
  __attribute__((always_inline)) static inline float weigh_registers(const Unit& u, int r, const Step& step, F16 (&x)[kStretch][R]) {
    const F16 minus = f_set(step.max == -HUGE_VALF ? 0.0f : -step.max), by = f_set(score_scale(u, r));
    const F16 none = f_set(0.0f), rounder = f_set(kRounder);
    F16 sum = none, top = none, shift = none;
    each<kStretch>([&](auto s) {
      const int32_t at = kRecord * (u.first + s);
      F16 p = f_weight(f_fma(x[s][r], by, minus));
      sum = f_add(p, sum);
      if (Minima) shift = f_fma(p, f_load(u.value_minima + at), shift);
      p = f_mul(p, f_load(u.value_factors + at));
      top = f_max(p, top);
      x[s][r] = p;
    });
    add_lanes(u.running + r * kRunning, sum, step.keep);
    if (Minima) add_lanes(u.running + r * kRunning + kShifts, shift, step.keep);
    const float highest = f_top(top);
    const F16 inverse = f_set(weight_inverse<kTop>(highest));
    F16 error = none;
    each<kStretch>([&](auto s) {
      const F16 exact = f_fma(x[s][r], inverse, error), shifted = f_add(exact, rounder);
      error = f_sub(exact, f_sub(shifted, rounder));
      i_store_u8(u.bytes + r * kTile + kRecord * (u.first + s), f_bits(shifted));
    });
    return highest * (1.0f / kTop);
  }

  // Scores to weight bytes. One stage for all queries, then the next: within a query the stages wait for each other.
  template <int R>
  static void weigh(const Unit& u, const Span* spans, Step* steps) {
    float top[R];
    find_maxima<R>(u, spans, steps);
    for (int r = 0; r < R; ++r) {
      if (!steps[r].used) continue;
      const Weights w = weigh_span<true, Minima>(u.scores + r * kTile, score_scale(u, r), steps[r].max,
                                                 u.value_factors, u.value_minima, spans[r]);
      add_lanes(u.running + r * kRunning, w.sum, steps[r].keep);
      if (Minima) add_lanes(u.running + r * kRunning + kShifts, w.shift, steps[r].keep);
      top[r] = w.top;
    }
    for (int r = 0; r < R; ++r)
      steps[r].scale = to_weight_bytes<kTop>(u.scores + r * kTile, steps[r].used ? top[r] : 0.0f,
                                             steps[r].used ? spans[r] : Span{kRecord * u.first, kRecord * u.first},
                                             u.first, u.last, u.bytes + r * kTile);
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
        u.ahead->some(C);
        each<C>([&](auto j) { value[j] = b_load(v + 256 * j); });
        each<R>([&](auto r) {
          const B64 four = b_repeat(p + r * kTile);
          each<C>([&](auto j) { sum[r][j] = i_dot(sum[r][j], four, value[j]); });
        });
      }
    }
    each<R>([&](auto r) {
      if (!steps[r].used) return;
      const F16 scale = f_set(steps[r].scale), keep = f_set(steps[r].keep);
      each<C>([&](auto j) {
        float* to = out[r] + 16 * (c + j);
        const M16 m = m_range(0, u.shape.dim - 16 * (c + j));
        f_store_part(to, f_fma(i_to_f(sum[r][j]), scale, f_mul(f_load_part(to, m), keep)), m);
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
  static void finish(float*, const float*, int32_t) {}
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

  static void finish(float* out, const float* running, int32_t dim) {
    const F16 shift = f_set(f_sum(f_load(running + kShifts)));
    for (int32_t i = 0; i < dim; i += 16) {
      const M16 m = m_range(0, dim - i);
      f_store_part(out + i, f_add(f_load_part(out + i, m), shift), m);
    }
    rotate_back(out, dim);
  }
};

}  // namespace
}  // namespace lg
