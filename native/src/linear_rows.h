// What every level shares besides the layout: number conversions and the scale of a group of activations.
//
// Knows: bit patterns, the record of a quantised row. Does not know: packed weights, instructions.
#pragma once
#include <cstdint>
#include <cstring>

#include "linear_layout.h"

namespace lg {

// Row of a table as the file holds it, to float, times scale. Defined in linear_pack.cpp, compiled for the baseline.
void table_row(int32_t kind, const uint8_t* row, int64_t cols, float scale, float* out);

namespace {

inline float bits_to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float bf16_to_float(uint16_t h) { return bits_to_float(static_cast<uint32_t>(h) << 16); }

// Exact, subnormals included; infinities and NaNs stay what they are.
inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t rest = static_cast<uint32_t>(h & 0x7fffu) << 13;
  // 2^112 moves the exponent's bias from 15 to 127; a subnormal is handled by the same exact product.
  const uint32_t finite = float_to_bits(bits_to_float(rest) * 0x1p112f);
  return bits_to_float(sign | (rest >= 0x0f800000u ? rest | 0x7f800000u : finite));
}

// How a group of 32 activations is scaled. `factor` 0 says that all q are 0.
struct GroupScale {
  float factor, d;
};

// A quad's key: the bits of its largest |x|, compared as integers so that a NaN wins over an infinity, and that over
// numbers, with the quad's number in the three lowest.
inline uint32_t quad_key(uint32_t most, int quad) { return (most & ~7u) | static_cast<uint32_t>(quad); }

// From the largest key, and the largest of the six quads that are not fine; rounded up so that nothing overflows.
// A group with a NaN or an infinity gets q = 0 and d = NaN: every output of the row becomes NaN, and nothing crashes.
inline GroupScale group_scale(uint32_t first, uint32_t third) {
  if ((first | 7u) >= 0x7f800000u) return {0.0f, bits_to_float(0x7fc00000u)};
  const float amax = bits_to_float(first | 7u), rest = bits_to_float(third | 7u);
  if (amax < kTinyAmax) return {0.0f, 0.0f};
  const float coarse = rest / 127.0f, fine = amax / 32512.0f;
  const float d = coarse > fine ? coarse : fine;
  return {1.0f / d, d};
}

// Everything of a group but its lo and hi; `first` and `second` are the sums of its halves.
inline void put_group(QGroup& group, float d, int32_t first, int32_t second, uint32_t first_key, uint32_t second_key) {
  group.d = d;
  group.s = d * static_cast<float>(first + second);
  group.minus[0] = -(first + second);
  group.minus[1] = -first;
  group.minus[2] = -second;
  group.at[0] = static_cast<uint16_t>((first_key & 7u) * 64);
  group.at[1] = static_cast<uint16_t>((second_key & 7u) * 64);
}

// The line behind an even number of groups.
inline void zero_padding(QGroup* groups, int64_t count) {
  if (count % 2 == 0) std::memset(static_cast<void*>(groups + count), 0, sizeof(QGroup));
}

}  // namespace
}  // namespace lg
