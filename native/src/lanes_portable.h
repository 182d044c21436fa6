// Sixteen lanes of float32 or int32 in plain C++: arrays, left to the compiler.
//
// Knows: nothing of the machine. Does not know: what the lanes mean.
// The three lanes_*.h headers offer the same names, so that rows_impl.h and attention_impl.h are written once.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace lg {
namespace {

struct F16 {
  float v[16];
};
struct I16 {
  int32_t v[16];
};
struct M16 {
  int32_t v[16];  // 0 or -1
};

template <class Fn>
static inline F16 f_lanes(Fn fn) {
  F16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = fn(i);
  return r;
}

static inline F16 f_set(float x) {
  return f_lanes([=](int) { return x; });
}
static inline F16 f_load(const float* p) {
  F16 r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
static inline void f_store(float* p, F16 x) { std::memcpy(p, x.v, sizeof x.v); }

// Lanes lo <= i < hi; the bounds may lie outside 0..16.
static inline M16 m_range(int64_t lo, int64_t hi) {
  M16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = i >= lo && i < hi ? -1 : 0;
  return r;
}
static inline F16 f_load_part(const float* p, M16 m) {
  return f_lanes([&](int i) { return m.v[i] ? p[i] : 0.0f; });
}
static inline void f_store_part(float* p, F16 x, M16 m) {
  for (int i = 0; i < 16; ++i)
    if (m.v[i]) p[i] = x.v[i];
}
static inline F16 f_select(M16 m, F16 yes, F16 no) {
  return f_lanes([&](int i) { return m.v[i] ? yes.v[i] : no.v[i]; });
}
static inline I16 i_select(M16 m, I16 yes, I16 no) {
  I16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = m.v[i] ? yes.v[i] : no.v[i];
  return r;
}
static inline M16 f_less(F16 x, F16 y) {
  M16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = x.v[i] < y.v[i] ? -1 : 0;
  return r;
}
static inline M16 f_greater(F16 x, F16 y) { return f_less(y, x); }
static inline bool f_any_nan(F16 x, F16 y) {
  int32_t n = 0;
  for (int i = 0; i < 16; ++i) n |= (x.v[i] != x.v[i]) | (y.v[i] != y.v[i]);
  return n != 0;
}

static inline F16 f_add(F16 x, F16 y) {
  return f_lanes([&](int i) { return x.v[i] + y.v[i]; });
}
static inline F16 f_sub(F16 x, F16 y) {
  return f_lanes([&](int i) { return x.v[i] - y.v[i]; });
}
static inline F16 f_mul(F16 x, F16 y) {
  return f_lanes([&](int i) { return x.v[i] * y.v[i]; });
}
static inline F16 f_div(F16 x, F16 y) {
  return f_lanes([&](int i) { return x.v[i] / y.v[i]; });
}
static inline F16 f_fma(F16 x, F16 y, F16 z) {  // rounded twice: no fused instruction is assumed here
  return f_lanes([&](int i) {
    const float p = x.v[i] * y.v[i];
    return p + z.v[i];
  });
}
// x > y ? x : y and x < y ? x : y: a NaN in either operand gives y.
static inline F16 f_max(F16 x, F16 y) {
  return f_lanes([&](int i) { return x.v[i] > y.v[i] ? x.v[i] : y.v[i]; });
}
static inline F16 f_min(F16 x, F16 y) {
  return f_lanes([&](int i) { return x.v[i] < y.v[i] ? x.v[i] : y.v[i]; });
}
static inline F16 f_abs(F16 x) {
  return f_lanes([&](int i) { return std::fabs(x.v[i]); });
}
// Adding and taking away 1.5 * 2^23 rounds to the nearest whole number, ties to even, for |x| < 2^22.
static inline float round_small(float x) {
  const float big = 12582912.0f;
  return (x + big) - big;
}
static inline F16 f_round(F16 x) {
  return f_lanes([&](int i) { return round_small(x.v[i]); });
}
// x * 2^n for whole n in -126..128 (128 gives infinity).
static inline F16 f_scale2(F16 x, F16 n) {
  F16 r;
  for (int i = 0; i < 16; ++i) {
    const float big = 12582912.0f;
    const float shifted = n.v[i] + big;
    uint32_t bits;
    std::memcpy(&bits, &shifted, 4);
    bits = (bits - 0x4b400000u + 127u) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    r.v[i] = x.v[i] * scale;
  }
  return r;
}

// x + 2^23 * n read as whole numbers, where u = 1.5 * 2^23 + n: multiplies x by 2^n. Lanes outside m become 0.
static inline F16 f_shift_exponent(M16 m, F16 x, F16 u) {
  uint32_t a[16], b[16];
  std::memcpy(a, x.v, sizeof a);
  std::memcpy(b, u.v, sizeof b);
  for (int i = 0; i < 16; ++i) a[i] = (a[i] + (b[i] << 23)) & static_cast<uint32_t>(m.v[i]);
  std::memcpy(x.v, a, sizeof a);
  return x;
}
static inline M16 f_not_less(F16 x, F16 y) {
  M16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = x.v[i] < y.v[i] ? 0 : -1;
  return r;
}
static inline F16 f_keep(M16 m, F16 x) {  // 0 outside m
  return f_lanes([&](int i) { return m.v[i] ? x.v[i] : 0.0f; });
}

// Lane i becomes lane i ^ Width.
template <int Width>
static inline F16 f_swap(F16 x) {
  return f_lanes([&](int i) { return x.v[i ^ Width]; });
}

static inline I16 i_set(int32_t x) {
  I16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = x;
  return r;
}
static inline I16 i_add(I16 x, I16 y) {
  for (int i = 0; i < 16; ++i) x.v[i] += y.v[i];
  return x;
}
static inline F16 i_to_f(I16 x) {
  return f_lanes([&](int i) { return static_cast<float>(x.v[i]); });
}
static inline I16 f_bits(F16 x) {
  I16 r;
  std::memcpy(r.v, x.v, sizeof r.v);
  return r;
}
static inline I16 f_to_i(F16 x) {  // nearest, ties to even, for |x| < 2^22; any other value gives some value
  I16 r;
  for (int i = 0; i < 16; ++i) {
    const float shifted = x.v[i] + 12582912.0f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, 4);
    r.v[i] = static_cast<int32_t>(bits - 0x4b400000u);
  }
  return r;
}
static inline I16 i_load(const int32_t* p) {
  I16 r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
static inline void i_store(int32_t* p, I16 x) { std::memcpy(p, x.v, sizeof x.v); }
static inline void i_store_u8(uint8_t* p, I16 x) {  // the low byte of each lane
  for (int i = 0; i < 16; ++i) p[i] = static_cast<uint8_t>(x.v[i]);
}
static inline F16 f_load_bf16(const uint8_t* p) {
  F16 r;
  for (int i = 0; i < 16; ++i) {
    uint16_t half;
    std::memcpy(&half, p + 2 * i, 2);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    std::memcpy(&r.v[i], &bits, 4);
  }
  return r;
}

// 64 bytes: sixteen groups of four.
struct B64 {
  uint8_t v[64];
};
static inline B64 b_load(const uint8_t* p) {
  B64 r;
  std::memcpy(r.v, p, 64);
  return r;
}
static inline B64 b_repeat(const void* four) {
  B64 r;
  for (int i = 0; i < 64; i += 4) std::memcpy(r.v + i, four, 4);
  return r;
}
static inline B64 b_low_nibbles(B64 x) {
  for (int i = 0; i < 64; ++i) x.v[i] &= 15;
  return x;
}
static inline B64 b_high_nibbles(B64 x) {
  for (int i = 0; i < 64; ++i) x.v[i] >>= 4;
  return x;
}
// Each byte, of 0 to 15, becomes its place's in the table.
static inline B64 b_lookup(const int8_t (&table)[16], B64 x) {
  for (int i = 0; i < 64; ++i) x.v[i] = static_cast<uint8_t>(table[x.v[i]]);
  return x;
}
static inline void b_store(uint8_t* p, B64 x) { std::memcpy(p, x.v, 64); }
// Two more bits, bits 4 and 5, from `upper` shifted left by Shift (right if negative).
template <int Shift>
static inline B64 b_join(B64 nibbles, B64 upper) {
  for (int i = 0; i < 64; ++i) {
    const int at = Shift >= 0 ? upper.v[i] << (Shift & 7) : upper.v[i] >> (-Shift & 7);
    nibbles.v[i] = static_cast<uint8_t>(nibbles.v[i] | (at & 0x30));
  }
  return nibbles;
}
// 64 bytes of bf16 as sixteen pairs: the first of each pair, the second of each.
static inline F16 f_first_bf16(B64 x) {
  uint32_t bits[16];
  std::memcpy(bits, x.v, 64);
  for (uint32_t& b : bits) b <<= 16;
  F16 r;
  std::memcpy(r.v, bits, 64);
  return r;
}
static inline F16 f_second_bf16(B64 x) {
  uint32_t bits[16];
  std::memcpy(bits, x.v, 64);
  for (uint32_t& b : bits) b &= 0xffff0000u;
  F16 r;
  std::memcpy(r.v, bits, 64);
  return r;
}
// Each lane gains the dot product of its four unsigned and four signed bytes.
static inline I16 i_dot(I16 sum, B64 u, B64 s) {
  for (int i = 0; i < 16; ++i)
    for (int j = 4 * i; j < 4 * i + 4; ++j) sum.v[i] += int32_t{u.v[j]} * static_cast<int8_t>(s.v[j]);
  return sum;
}
// The same for u stored with 128 added; kOffsetStays says that 128 * (sum of s) is still in the result.
constexpr bool kOffsetStays = true;
static inline I16 i_dot_offset(I16 sum, B64 u, B64 s) { return i_dot(sum, u, s); }
constexpr int kMostWeight = 254;  // the largest quantised weight, less one
constexpr int kMaxUnit = 3;      // queries computed together
constexpr int kSubs = 1;         // records of keys computed together
constexpr int kFloatSubs = 1;    // the same for float keys, which need registers to widen
constexpr int kValueVectors = 1;  // sixteens of value dims computed together

// Lanes meet 8 apart, then 4, 2, 1: the same order at every level.
static inline float f_sum(F16 x) {
  for (int w = 8; w > 0; w /= 2)
    for (int i = 0; i < w; ++i) x.v[i] += x.v[i + w];
  return x.v[0];
}
static inline float f_top(F16 x) {
  for (int w = 8; w > 0; w /= 2)
    for (int i = 0; i < w; ++i) x.v[i] = x.v[i] > x.v[i + w] ? x.v[i] : x.v[i + w];
  return x.v[0];
}

// The highest lane of each of N <= 8, that of the i-th in lane top_lane(i).
static constexpr int top_lane(int i) { return i; }
template <int N>
static inline F16 f_tops(const F16 (&x)[N]) {
  alignas(64) float tops[16] = {};
  for (int i = 0; i < N; ++i) tops[i] = f_top(x[i]);
  return f_load(tops);
}

}  // namespace
}  // namespace lg
