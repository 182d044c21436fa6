// Scores and weighted sums over records of bytes: int8 as stored, and int4 once unpacked.
//
// Knows: the int8 record. Does not know: tiles, softmax, rows.
#pragma once
#include "attention_unit.h"

namespace lg {
namespace {

// Offset: what is added to keys in their bytes. Centres: values have a centre a token.
template <int Offset, bool Centres>
struct Bytes {
  static constexpr int kQueryBytes = 1;                          // a dim of a packed query
  static constexpr int kTop = Centres ? 254 : kMostWeight;        // four-bit values leave room at every level
  static constexpr float kWorth = 0.93f * kTop;                  // what a weight of 1 becomes; see open_factors

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

  // A token's factors are ready for all queries: what its scores are multiplied with, what a weight is worth in bytes,
  // and the height that it adds to scores. A stretch's bytes are filled by the token whose weight times value is the
  // largest, whatever its weight alone, so heights are log2 of the values' scales: read off their bits, too low by up to
  // 0.09, which kWorth leaves room for. A value that is nearly nothing is taken for somewhat more, so that weights,
  // which are kept relative to that token's, stay finite.
  static inline void open_factors(const RecordShape& shape, const uint8_t* record, int32_t i, const TileScratch& s) {
    const F16 scale = f_load_bf16(record + shape.scales + 2 * kRecord);
    const F16 height = f_fma(i_to_f(f_bits(scale)), f_set(0x1p-23f), f_set(-127.0f));
    f_store(s.key_factors + kRecord * i, f_load_bf16(record + shape.scales));
    f_store(s.value_factors + kRecord * i, f_mul(scale, f_set(kWorth)));
    f_store(s.value_heights + kRecord * i, f_max(f_set(-90.0f), height));
    if (Centres) f_store(s.value_centres + kRecord * i, f_load_bf16(record + shape.scales + 4 * kRecord));
  }

  template <int R>
  static inline void raise(const Unit& u, const F16 (&tops)[R], Steps& steps) {
    raise_maxima(u, f_tops<R>(tops), steps);
    f_store(steps.scale, f_mul(f_load(steps.rise), f_set(1.0f / kWorth)));
  }

  // Weights of one record and N queries, from scores plus heights: to bytes and sums. The rounding error of each lane is
  // carried to the next record, so that many small weights beside a large one are not lost.
  struct Sums {
    F16 weights = f_set(0.0f), shifts = f_set(0.0f), error = f_set(0.0f);
  };
  template <bool Partial, int N>
  __attribute__((always_inline)) static inline void weigh_record(const Unit& u, int r, int32_t record, F16 (&p)[N],
                                                                 const F16 (&tops)[N], M16 m, Sums (&sums)[N]) {
    const int32_t at = kRecord * record;
    const F16 height = f_load(u.value_heights + at), rounder = f_set(kRounder);
    F16 factor = f_load(u.value_factors + at), shifted[N], centre;
    if (Partial) factor = f_keep(m, factor);
    each<N>([&](auto i) LG_INLINE { p[i] = f_sub(p[i], tops[i]); });
    each<N>([&](auto i) LG_INLINE { p[i] = f_sub(p[i], height); });
    f_weights(p);
    if (Centres) centre = f_load(u.value_centres + at);
    each<N>([&](auto i) LG_INLINE {
      if (Partial) p[i] = f_keep(m, p[i]);
      sums[i].weights = f_add(p[i], sums[i].weights);
      if (Centres) sums[i].shifts = f_fma(p[i], Partial ? f_keep(m, centre) : centre, sums[i].shifts);
    });
    each<N>([&](auto i) LG_INLINE { p[i] = f_fma(p[i], factor, sums[i].error); });
    each<N>([&](auto i) LG_INLINE { shifted[i] = f_add(p[i], rounder); });
    each<N>([&](auto i) LG_INLINE { i_store_u8(u.bytes + (r + i) * kTile + at, f_bits(shifted[i])); });
    each<N>([&](auto i) LG_INLINE { shifted[i] = f_sub(shifted[i], rounder); });
    each<N>([&](auto i) LG_INLINE { sums[i].error = f_sub(p[i], shifted[i]); });
  }
  static inline void add_sums(const Unit& u, int r, const Steps& steps, const Sums& sums) {
    const F16 rise = f_set(steps.rise[top_lane(r)]);
    float* running = u.running + r * kRunning;
    add_lanes(running, f_mul(sums.weights, rise), steps.keep[top_lane(r)]);
    if (Centres) add_lanes(running + kShifts, f_mul(sums.shifts, rise), steps.keep[top_lane(r)]);
  }

  // What scores and weigh do, to the bit, without a detour through memory.
  template <int R>
  static bool weigh_whole(const Unit& u, const Span* spans, Steps& steps) {
    if constexpr (kSubs < kStretch) return false;
    if (u.softcap != 0.0f) return false;
    for (int r = 0; r < R; ++r)
      if (spans[r].begin != kRecord * u.first || spans[r].end != kRecord * (u.first + kStretch)) return false;
    I16 dot[kStretch][R];
    F16 raised[kStretch][R], tops[R];
    dot_records<R, kStretch>(u, u.first, dot);
    each<kStretch>([&](auto s) {
      const F16 key = f_load(u.key_factors + kRecord * (u.first + s));
      const F16 height = f_load(u.value_heights + kRecord * (u.first + s));
      each<R>([&](auto r) { raised[s][r] = f_fma(f_mul(i_to_f(dot[s][r]), key), f_set(score_scale(u, r)), height); });
    });
    each<R>([&](auto r) {
      steps.used[r] = true;
      tops[r] = f_max(f_max(raised[0][r], raised[1][r]), f_max(raised[2][r], raised[3][r]));
    });
    raise<R>(u, tops, steps);
    Sums sums[R];
    each<R>([&](auto r) { tops[r] = f_set(steps.tops[top_lane(r)]); });
    each<kStretch>([&](auto s) { weigh_record<false>(u, 0, u.first + s, raised[s], tops, m_range(0, 16), sums); });
    each<R>([&](auto r) { add_sums(u, r, steps, sums[r]); });
    return true;
  }

  template <int R>
  static void weigh(const Unit& u, const Span* spans, Steps& steps) {
    const F16 lowest = f_set(-HUGE_VALF);
    F16 tops[R];
    const auto raised = [&](int r, int32_t i) {
      return f_fma(f_load(u.scores + r * kTile + kRecord * i), f_set(score_scale(u, r)), f_load(u.value_heights + kRecord * i));
    };
    for (int r = 0; r < R; ++r) {
      steps.used[r] = spans[r].begin < spans[r].end;
      tops[r] = lowest;
      if (!steps.used[r]) continue;
      each_record(spans[r], [&](int32_t i, M16 m, auto partial) {
        const F16 x = raised(r, i);
        tops[r] = f_max(partial ? f_select(m, x, lowest) : x, tops[r]);
      });
    }
    raise<R>(u, tops, steps);
    for (int r = 0; r < R; ++r) {
      const Span span = steps.used[r] ? spans[r] : Span{kRecord * u.first, kRecord * u.first};
      uint8_t* bytes = u.bytes + r * kTile;
      for (int32_t i = u.first; i < span.begin / kRecord; ++i) i_store_u8(bytes + kRecord * i, i_set(0));
      for (int32_t i = (span.end + kRecord - 1) / kRecord; i < u.last; ++i) i_store_u8(bytes + kRecord * i, i_set(0));
      if (!steps.used[r]) continue;
      const F16 top[1] = {f_set(steps.tops[top_lane(r)])};
      Sums sums[1];
      each_record(span, [&](int32_t i, M16 m, auto partial) {
        F16 p[1] = {raised(r, i)};
        weigh_record<decltype(partial)::value != 0>(u, r, i, p, top, m, sums);
      });
      add_sums(u, r, steps, sums[0]);
    }
  }

  template <int R, int C>
  static inline void value_vectors(const Unit& u, int32_t c, const Steps& steps, float* const* out) {
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
      if (!steps.used[r]) return;
      const F16 scale = f_set(steps.scale[top_lane(r)]), keep = f_set(steps.keep[top_lane(r)]);
      each<C>([&](auto j) {
        float* to = out[r] + 16 * (c + j);
        f_store(to, f_fma(i_to_f(sum[r][j]), scale, f_mul(f_load(to), keep)));
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

// The store's records are used as they lie.
struct Int8 : Bytes<128, false> {
  static void open_record(const RecordShape& shape, const uint8_t* record, int32_t i, const TileScratch& s) {
    s.records[i] = record;
    open_factors(shape, record, i, s);
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
    open_factors(shape, record, i, s);
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
        b_store(to_values + j, b_lookup(kLevels, b_low_nibbles(both)));
        if (c + 1 < shape.vectors) b_store(to_values + 256 + j, b_lookup(kLevels, b_high_nibbles(both)));
      }
  }
  static RecordShape opened_shape(int32_t dim) { return record_shape(KV_INT8, dim); }

  static void finish(float* out, const float* running, int32_t dim) {
    const F16 shift = f_set(f_sum(f_load(running + kShifts)));
    for (int32_t i = 0; i < dim; i += 16) f_store(out + i, f_add(f_load(out + i), shift));
    rotate_back(out, dim);
  }
};

}  // namespace
}  // namespace lg
