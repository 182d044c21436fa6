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
// bf16 of x, rounded towards minus infinity.
static inline uint16_t bf16_down(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return 0x7fc0u;
  return static_cast<uint16_t>((bits >> 31 ? bits + 0xffffu : bits) >> 16);
}
static inline float bf16_value(uint16_t h) {
  const uint32_t bits = static_cast<uint32_t>(h) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
static inline void put_u16(uint8_t* p, uint16_t x) { std::memcpy(p, &x, 2); }

// Unnormalised Hadamard transform of each block: additions only, one order. x and spare hold dim floats each; the
// result is in the one returned.
static inline float* rotate(float* x, float* spare, int32_t dim) {
  const int32_t block = rotation_block(dim), half = block / 2;
  for (int32_t width = 1; width < block; width *= 2) {
    for (int32_t b = 0; b < dim; b += block)
      for (int32_t i = 0; i < half; ++i) {
        spare[b + 2 * i] = x[b + i] + x[b + half + i];
        spare[b + 2 * i + 1] = x[b + i] - x[b + half + i];
      }
    float* t = x;
    x = spare;
    spare = t;
  }
  return x;
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

struct ByteScale {
  uint16_t stored;
  float inverse;
};
static inline ByteScale byte_scale(float top) {
  if (top < kSmallest) return {0, 0.0f};
  const uint16_t stored = bf16_up(top * (1.0f / 127.0f));
  return {stored, top == top ? 1.0f / bf16_value(stored) : 0.0f};
}

static inline void write_int8(const RecordShape& s, uint8_t* record, int32_t t, const float* k, const float* v) {
  alignas(64) int8_t bytes[kMaxDim];
  const ByteScale ks = byte_scale(largest(k, s.dim));
  to_bytes(k, ks.inverse, s.dim, bytes);
  for (int32_t i = 0; i < s.dim; i += 4) {
    uint32_t four;
    std::memcpy(&four, bytes + i, 4);
    four ^= 0x80808080u;
    std::memcpy(record + 16 * i + 4 * t, &four, 4);
  }
  const ByteScale vs = byte_scale(largest(v, s.dim));
  to_bytes(v, vs.inverse, s.dim, bytes);
  for (int32_t i = s.dim; i < 16 * s.vectors; ++i) bytes[i] = 0;
  uint8_t* values = record + s.values + 64 * (t / 4) + t % 4;
  for (int32_t c = 0; c < s.vectors; ++c)
    for (int32_t i = 0; i < 16; ++i) values[256 * c + 4 * i] = static_cast<uint8_t>(bytes[16 * c + i]);
  put_u16(record + s.scales + 2 * t, ks.stored);
  put_u16(record + s.scales + 2 * (kRecord + t), vs.stored);
}

void kv_write(const KvLayout* kv, uint8_t* page, int32_t head, int32_t offset, const float* k, const float* v) {
  const RecordShape s = record_shape(kv->kind, kv->dim);
  uint8_t* record = page + head * kv->head_bytes + offset / kRecord * s.bytes;
  const int32_t t = offset % kRecord;
  alignas(64) float a[kMaxDim], b[kMaxDim];
  std::memcpy(a, k, sizeof(float) * static_cast<size_t>(s.dim));
  if (kv->kind == KV_INT8) write_int8(s, record, t, rotate(a, b, s.dim), v);
}

void prepare_q(const KvLayout* kv, const float* q, float scale, uint8_t* out) {
  alignas(64) float a[kMaxDim], b[kMaxDim];
  std::memcpy(a, q, sizeof(float) * static_cast<size_t>(kv->dim));
  const float* x = rotate(a, b, kv->dim);
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
