// Writing keys and values into pages, and preparing queries for them.
//
// Knows: rotation and quantisation of one head of one token. Does not know: softmax, threads, sequences.
#pragma once
#include <cstring>

#include "attention_layout.h"

namespace lg {
namespace {

constexpr int kMaxDim = 512;

// bf16 of a value >= 0, rounded up.
static inline uint16_t bf16_up(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>(x == x ? (bits + 0xffffu) >> 16 : 0x7fc0u);
}
static inline uint16_t bf16_nearest(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>(x == x ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : 0x7fc0u);
}
static inline float bf16_value(uint16_t h) {
  const uint32_t bits = static_cast<uint32_t>(h) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
static inline void put_u16(uint8_t* p, uint16_t x) { std::memcpy(p, &x, 2); }

template <int Width>
struct ButterflySigns {
  float of[16];
  constexpr ButterflySigns() : of() {
    for (int i = 0; i < 16; ++i) of[i] = i & Width ? -1.0f : 1.0f;
  }
};

// Lanes with the bit Width become the difference to their partner, the others the sum.
template <int Width>
static inline F16 butterfly(F16 x) {
  static constexpr ButterflySigns<Width> kUpper;
  return f_fma(x, f_load(kUpper.of), f_swap<Width>(x));
}

// Unnormalised Hadamard transform of each block, in place: additions in one order; its own inverse but for a factor of
// the block's size. x holds dim floats and zeros up to a multiple of 16.
static inline void hadamard(float* x, int32_t dim) {
  const int32_t block = rotation_block(dim), end = static_cast<int32_t>(round_up(dim, 16));
  for (int32_t i = 0; i < end; i += 16) {
    F16 v = f_load(x + i);
    v = butterfly<4>(butterfly<2>(butterfly<1>(v)));  // dims are multiples of 8
    if (block >= 16) v = butterfly<8>(v);
    f_store(x + i, v);
  }
  for (int32_t width = 16; width < block; width *= 2)
    for (int32_t i = 0; i < dim; i += 2 * width)
      for (int32_t j = i; j < i + width; j += 16) {
        const F16 a = f_load(x + j), b = f_load(x + j + width);
        f_store(x + j, f_add(a, b));
        f_store(x + j + width, f_sub(a, b));
      }
}

// to = x with each dim's sign, rotated; `to` has room for a multiple of 16.
static inline void rotate(const float* x, int32_t dim, float* to) {
  for (int32_t i = 0; i < dim; i += 16)
    f_store(to + i, f_mul(f_load_part(x + i, m_range(0, dim - i)), f_load(kSigns.of + i)));
  hadamard(to, dim);
}

// x back from a rotation, in place.
static inline void rotate_back(float* x, int32_t dim) {
  alignas(64) float a[kMaxDim];
  for (int32_t i = 0; i < dim; i += 16) f_store(a + i, f_load_part(x + i, m_range(0, dim - i)));
  hadamard(a, dim);
  const F16 scale = f_set(1.0f / static_cast<float>(rotation_block(dim)));
  for (int32_t i = 0; i < dim; i += 16)
    f_store_part(x + i, f_mul(f_mul(f_load(a + i), scale), f_load(kSigns.of + i)), m_range(0, dim - i));
}

static inline float largest(const float* x, int32_t n) {
  F16 m = f_set(0.0f), bad = f_set(0.0f);
  for (int32_t i = 0; i < n; i += 16) {
    const F16 v = f_load_part(x + i, m_range(0, n - i));
    m = f_max(f_abs(v), m);
    bad = f_fma(v, f_set(0.0f), bad);  // NaN if any is not finite
  }
  const float check = f_sum(bad);
  return check == check ? f_top(m) : check;
}

// out[i] = nearest whole number to x[i] * inverse.
static inline void to_bytes(const float* x, float inverse, int32_t n, int8_t* out) {
  alignas(64) uint8_t bytes[16];
  for (int32_t i = 0; i < n; i += 16) {
    const int32_t m = n - i < 16 ? n - i : 16;
    i_store_u8(bytes, f_to_i(f_mul(f_load_part(x + i, m_range(0, m)), f_set(inverse))));
    std::memcpy(out + i, bytes, static_cast<size_t>(m));
  }
}

// A value below this is kept as zero: its inverse would not be finite.
constexpr float kSmallest = 1e-30f;

struct Scale {
  uint16_t stored;
  float inverse;
};
// Of values up to `top` in size that become whole numbers up to `levels`.
static inline Scale scale_for(float top, float levels) {
  if (top < kSmallest) return {0, 0.0f};
  const uint16_t stored = bf16_up(top / levels);
  return {stored, top == top ? 1.0f / bf16_value(stored) : 0.0f};
}

static inline void write_int8(const RecordShape& s, uint8_t* record, int32_t t, const float* k, const float* v) {
  alignas(64) int8_t bytes[kMaxDim];
  const Scale ks = scale_for(largest(k, s.dim), 127.0f);
  to_bytes(k, ks.inverse, s.dim, bytes);
  for (int32_t i = 0; i < s.dim; i += 4) {
    uint32_t four;
    std::memcpy(&four, bytes + i, 4);
    four ^= 0x80808080u;
    std::memcpy(record + 16 * i + 4 * t, &four, 4);
  }
  const Scale vs = scale_for(largest(v, s.dim), 127.0f);
  to_bytes(v, vs.inverse, s.dim, bytes);
  for (int32_t i = s.dim; i < 16 * s.vectors; ++i) bytes[i] = 0;
  uint8_t* values = record + s.values + 64 * (t / 4) + t % 4;
  for (int32_t c = 0; c < s.vectors; ++c)
    for (int32_t i = 0; i < 16; ++i) values[256 * c + 4 * i] = static_cast<uint8_t>(bytes[16 * c + i]);
  put_u16(record + s.scales + 2 * t, ks.stored);
  put_u16(record + s.scales + 2 * (kRecord + t), vs.stored);
}

static inline uint32_t four_bytes(const int8_t* p) {
  uint32_t x;
  std::memcpy(&x, p, 4);
  return x;
}

// A token's bits share no byte with another token's, so that tokens may be written at the same time.
static inline void write_int4_key(const RecordShape& s, uint8_t* record, int32_t t, const float* k) {
  alignas(64) int8_t bytes[kMaxDim];
  const Scale scale = scale_for(largest(k, s.dim), 31.0f);
  to_bytes(k, scale.inverse, s.dim, bytes);
  for (int32_t d = 0; d < 16 * s.vectors; ++d) bytes[d] = static_cast<int8_t>(d < s.dim ? bytes[d] + 32 : 0);
  uint8_t* upper = record + 64 * (s.dim / 8);
  for (int32_t d = 0; d < s.dim; d += 8) {
    const uint32_t four = (four_bytes(bytes + d) & 0x0f0f0f0fu) | (four_bytes(bytes + d + 4) & 0x0f0f0f0fu) << 4;
    std::memcpy(record + 8 * d + 4 * t, &four, 4);
  }
  for (int32_t d = 0; d < s.dim; d += 16) {
    uint32_t four = 0;
    for (int32_t j = 0; j < 4; ++j) four |= (four_bytes(bytes + d + 4 * j) >> 4 & 0x03030303u) << (2 * j);
    std::memcpy(upper + 4 * d + 4 * t, &four, 4);
  }
  put_u16(record + s.scales + 2 * t, scale.stored);
}

// The nearest levels to x: how many steps they are away from the innermost one of their sign, and which level that is.
struct Nearest {
  F16 steps, level;
  M16 negative;
};
__attribute__((always_inline)) static inline Nearest nearest_level(F16 x) {
  const F16 size = f_abs(x), zero = f_set(0.0f);
  Nearest n = {zero, f_set(kLevels[8]), f_less(x, zero)};
  each<7>([&](auto i) {
    const M16 beyond = f_greater(size, f_set(0.5f * (kLevels[8 + i] + kLevels[9 + i])));
    n.steps = f_add(n.steps, f_keep(beyond, f_set(1.0f)));
    n.level = f_select(beyond, f_set(kLevels[9 + i]), n.level);
  });
  n.level = f_select(n.negative, f_sub(zero, n.level), n.level);
  return n;
}

// value = centre + scale * level.
struct Line {
  float scale, centre;
};

// The line of least squared error through n values, once each has the level nearest to it on the line `at`; and how much
// of the values' squared deviation from their mean it explains.
static inline Line fit_line(const float* x, int32_t n, float mean, Line at, float* explained) {
  F16 levels = f_set(0.0f), squares = levels, products = levels;
  const F16 inverse = f_set(1.0f / at.scale), centre = f_set(at.centre);
  for (int32_t i = 0; i < n; i += 16) {
    const M16 m = m_range(0, n - i);
    const F16 v = f_load_part(x + i, m), level = f_keep(m, nearest_level(f_mul(f_sub(v, centre), inverse)).level);
    levels = f_add(levels, level);
    squares = f_fma(level, level, squares);
    products = f_fma(level, v, products);
  }
  const float sum = f_sum(levels), middle = sum / static_cast<float>(n);
  const float spread = f_sum(squares) - sum * middle, shared = f_sum(products) - sum * mean;
  const float scale = shared / spread;  // the outermost values have different levels, so spread > 0
  *explained = shared * scale;
  return {scale, mean - scale * middle};
}

// The best of lines fitted from a few that reach from near the lowest to near the highest value, fitted once more. One
// such fit alone leaves a tenth more squared error, and thirty-two of them, fitted twice, take off four percent.
static inline Line best_line(const float* x, int32_t n, float mean) {
  Line best = {1.0f, 0.0f};
  float most = -1.0f, explained;
  for (int i = 0; i < 4; ++i) {
    const Line line = fit_line(x, n, mean, {1.0f - 0.07f * static_cast<float>(i), 0.0f}, &explained);
    if (explained > most) most = explained, best = line;
  }
  return fit_line(x, n, mean, best, &explained);
}

static inline void write_int4_value(const RecordShape& s, uint8_t* record, int32_t t, const float* v) {
  alignas(64) uint8_t bits[kMaxDim + 16];
  alignas(64) float x[kMaxDim];
  const F16 lowest = f_set(-HUGE_VALF), zero = f_set(0.0f);
  F16 above = lowest, below = lowest, sum = zero;
  for (int32_t d = 0; d < s.dim; d += 16) {
    const M16 m = m_range(0, s.dim - d);
    const F16 part = f_load_part(v + d, m);
    above = f_max(f_select(m, part, lowest), above);
    below = f_max(f_select(m, f_sub(zero, part), lowest), below);
  }
  const float low = -f_top(below), high = f_top(above);
  const float middle = 0.5f * low + 0.5f * high, half = 0.5f * high - 0.5f * low;
  const float check = largest(v, s.dim);  // NaN if any value is not finite
  Line line = {check == check ? 0.0f : check, check == check ? middle : check};
  if (half >= kSmallest && check == check) {
    const float unit = half / kLevels[15];  // values in such units: no sum of theirs overflows
    for (int32_t d = 0; d < s.dim; d += 16) {
      const M16 m = m_range(0, s.dim - d);
      const F16 part = f_mul(f_sub(f_load_part(v + d, m), f_set(middle)), f_set(1.0f / unit));
      f_store(x + d, part);
      sum = f_add(f_keep(m, part), sum);
    }
    line = best_line(x, s.dim, f_sum(sum) / static_cast<float>(s.dim));
    line = {line.scale * unit, middle + line.centre * unit};
  }
  const uint16_t scale = bf16_nearest(line.scale), centre = bf16_nearest(line.centre);
  const float inverse = line.scale > 0.0f ? 1.0f / bf16_value(scale) : 0.0f;
  for (int32_t d = s.dim; d < 16 * s.vectors + 16; ++d) bits[d] = 0;
  for (int32_t d = 0; d < s.dim; d += 16) {
    const M16 m = m_range(0, s.dim - d);
    const F16 at = f_mul(f_sub(f_load_part(v + d, m), f_set(bf16_value(centre))), f_set(inverse));
    const Nearest n = nearest_level(at);
    const F16 place = f_select(n.negative, f_sub(f_set(7.0f), n.steps), f_add(f_set(8.0f), n.steps));
    i_store_u8(bits + d, f_to_i(f_keep(m, place)));
  }
  uint8_t* values = record + s.values + 64 * (t / 4) + t % 4;
  for (int32_t c = 0; c < s.vectors; c += 2, values += 256)
    for (int32_t i = 0; i < 16; ++i)
      values[4 * i] = static_cast<uint8_t>(bits[16 * c + i] | bits[16 * c + 16 + i] << 4);
  put_u16(record + s.scales + 2 * (kRecord + t), scale);
  put_u16(record + s.scales + 2 * (2 * kRecord + t), centre);
}

static inline void write_bf16(const RecordShape& s, uint8_t* record, int32_t t, const float* k, const float* v) {
  for (int32_t d = 0; d < s.dim; ++d) put_u16(record + 64 * (d / 2) + 4 * t + d % 2 * 2, bf16_nearest(k[d]));
  uint8_t* values = record + s.values + 64 * (t / 2) + t % 2 * 2;
  for (int32_t d = 0; d < s.dim; ++d) put_u16(values + 512 * (d / 16) + 4 * (d % 16), bf16_nearest(v[d]));
}

void kv_write(const KvLayout* kv, uint8_t* pages, int32_t slot, int32_t head, const float* k, const float* v) {
  const RecordShape s = record_shape(kv->kind, kv->dim);
  const int32_t offset = slot & (kv->page_size - 1), t = offset % kRecord;
  uint8_t* record = pages + kv->place(slot >> kv->page_shift, head) + offset / kRecord * s.bytes;
  if (kv->kind == KV_BF16) return write_bf16(s, record, t, k, v);
  alignas(64) float rotated[kMaxDim];
  rotate(k, s.dim, rotated);
  if (kv->kind == KV_INT8) return write_int8(s, record, t, rotated, v);
  write_int4_key(s, record, t, rotated);
  rotate(v, s.dim, rotated);
  write_int4_value(s, record, t, rotated);
}

void prepare_q(const KvLayout* kv, const float* q, float scale, uint8_t* out) {
  if (kv->kind == KV_BF16) {
    for (int32_t i = 0; i < kv->dim; i += 16) {
      const M16 m = m_range(0, kv->dim - i);
      f_store_part(reinterpret_cast<float*>(out) + i, f_mul(f_load_part(q + i, m), f_set(scale)), m);
    }
    return;
  }
  alignas(64) float x[kMaxDim];
  rotate(q, kv->dim, x);
  const float top = largest(x, kv->dim);
  const float inverse = top < kSmallest ? 0.0f : 127.0f / top;
  int8_t* bytes = reinterpret_cast<int8_t*>(out + kQueryHead);
  to_bytes(x, top == top ? inverse : 0.0f, kv->dim, bytes);
  QueryHead head = {top * (1.0f / 127.0f) * scale / static_cast<float>(rotation_block(kv->dim)), 0};
  for (int32_t i = 0; i < kv->dim; ++i) head.sum += bytes[i];
  std::memcpy(out, &head, sizeof head);
}

}  // namespace
}  // namespace lg
