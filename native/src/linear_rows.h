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
  if (rest >= 0x0f800000u) return bits_to_float(sign | rest | 0x7f800000u);
  // 2^112 moves the exponent's bias from 15 to 127; a subnormal is handled by the same exact product.
  return bits_to_float(sign | float_to_bits(bits_to_float(rest) * 0x1p112f));
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

inline int32_t fine_quads(uint32_t first, uint32_t second) { return static_cast<int32_t>((first & 7u) | (second & 7u) << 8); }

// Writes group g's four numbers; `scales` is the record's d[G], followed by s[G], isum[G] and fine[G].
inline void put_group_scale(float* scales, int64_t G, int64_t g, float d, int32_t sum, int32_t fine) {
  scales[g] = d;
  scales[G + g] = d * static_cast<float>(sum);
  std::memcpy(scales + 2 * G + g, &sum, 4);
  std::memcpy(scales + 3 * G + g, &fine, 4);
}

inline void zero_padding(uint8_t* record, int64_t K) {
  const int64_t used = 2 * K + 16 * (K / kGroup);
  std::memset(record + used, 0, static_cast<size_t>(align_up(used) - used));
}

}  // namespace
}  // namespace lg
