// The file formats' definitions in double precision, and random files: what kernels of weights are tested against.
//
// Knows: ggml's block definitions (written down here a second time, value by value), a quantised row's record.
// Does not know: packed layouts, kernels.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "../src/kernels.h"

namespace formats {

using namespace lg;

inline const char* const kNames[W_KINDS] = {"F32",  "F16",  "BF16", "Q8_0", "Q4_0", "Q4_1",
                                     "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"};
inline const int kUnit[W_KINDS] = {1, 1, 1, 32, 32, 32, 32, 32, 256, 256, 256};
inline const int kUnitBytes[W_KINDS] = {4, 2, 2, 34, 18, 20, 22, 24, 144, 176, 210};

// ---------------------------------------------------------------- the formats, one value at a time
inline double half(const uint8_t* p) {
  const int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  return exponent == 0 ? sign * std::ldexp(mantissa, -24) : sign * std::ldexp(1024 + mantissa, exponent - 25);
}

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline void k_scale(const uint8_t* s, int j, int* scale, int* minimum) {
  if (j < 4) {
    *scale = s[j] & 63;
    *minimum = s[j + 4] & 63;
  } else {
    *scale = (s[j + 4] & 0xF) | ((s[j - 4] >> 6) << 4);
    *minimum = (s[j + 4] >> 4) | ((s[j] >> 6) << 4);
  }
}

inline double value_32(int kind, const uint8_t* b, int k) {
  if (kind == W_Q8_0) return half(b) * static_cast<int8_t>(b[2 + k]);
  const bool with_min = kind == W_Q4_1 || kind == W_Q5_1, five = kind == W_Q5_0 || kind == W_Q5_1;
  const uint8_t* p = b + (with_min ? 4 : 2);
  int high = 0;
  if (five) {
    high = p[k / 8] >> (k % 8) & 1;
    p += 4;
  }
  const int q = (k < 16 ? p[k] & 15 : p[k - 16] >> 4) + 16 * high;
  if (with_min) return half(b) * q + half(b + 2);
  return half(b) * (q - (five ? 16 : 8));
}

inline double value_256(int kind, const uint8_t* b, int k) {
  if (kind == W_Q6_K) {
    const int n = k / 128, l = k % 32, quarter = k % 128 / 32;
    const int low = b[64 * n + l + (quarter % 2 ? 32 : 0)] >> (quarter >= 2 ? 4 : 0) & 15;
    const int high = b[128 + 32 * n + l] >> (2 * quarter) & 3;
    return half(b + 208) * static_cast<int8_t>(b[192 + k / 16]) * ((low | high << 4) - 32);
  }
  int scale, minimum;
  k_scale(b + 4, k / 32, &scale, &minimum);
  const uint8_t* low = b + (kind == W_Q4_K ? 16 : 48);
  int q = low[k / 64 * 32 + k % 32] >> (k % 64 >= 32 ? 4 : 0) & 15;
  if (kind == W_Q5_K) q += (b[16 + k % 32] >> (k / 32) & 1) * 16;
  return half(b) * scale * q - half(b + 2) * minimum;
}

inline double value(int kind, const uint8_t* row, int64_t k) {
  const uint8_t* b = row + k / kUnit[kind] * kUnitBytes[kind];
  uint32_t bits = 0;
  switch (kUnit[kind]) {
    case 1:
      std::memcpy(&bits, b, static_cast<size_t>(kUnitBytes[kind]));
      return kind == W_F32 ? float_of(bits) : kind == W_BF16 ? float_of(bits << 16) : half(b);
    case 32:
      return value_32(kind, b, static_cast<int>(k % 32));
    default:
      return value_256(kind, b, static_cast<int>(k % 256));
  }
}

// ---------------------------------------------------------------- random files
using Random = std::mt19937;

inline void put_half(Random& rng, uint8_t* p, bool sign) {
  const uint32_t kind = rng() % 16;
  uint32_t bits = kind == 0 ? rng() % 1024 : (8u + rng() % 6) << 10 | rng() % 1024;  // now and then subnormal or zero
  if (sign && rng() % 2) bits |= 0x8000;
  p[0] = static_cast<uint8_t>(bits);
  p[1] = static_cast<uint8_t>(bits >> 8);
}

inline std::vector<uint8_t> random_file(Random& rng, int kind, int64_t rows, int64_t cols) {
  std::vector<uint8_t> file(static_cast<size_t>(rows * (cols / kUnit[kind]) * kUnitBytes[kind]));
  for (auto& byte : file) byte = static_cast<uint8_t>(rng());
  for (size_t at = 0; at < file.size(); at += static_cast<size_t>(kUnitBytes[kind])) {
    uint8_t* b = file.data() + at;
    if (kind == W_F32 || kind == W_BF16) {
      const float x = std::ldexp(static_cast<float>(rng() % 2001) - 1000.0f, -10);
      uint32_t bits;
      std::memcpy(&bits, &x, 4);
      if (kind == W_BF16) bits >>= 16;
      std::memcpy(b, &bits, static_cast<size_t>(kUnitBytes[kind]));
    } else if (kind == W_Q6_K) {
      put_half(rng, b + 208, true);
    } else {
      put_half(rng, b, true);
      if (kind == W_Q4_1 || kind == W_Q5_1 || kind == W_Q4_K || kind == W_Q5_K) put_half(rng, b + 2, true);
    }
  }
  return file;
}

constexpr float kGuard = 12345.678f;  // stands where nothing may be written

struct Aligned {
  explicit Aligned(int64_t bytes)
      : data(static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>((bytes + 127) / 64 * 64)))) {
    std::memset(data.get(), 0, static_cast<size_t>((bytes + 127) / 64 * 64));
  }
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint8_t, Free> data;
  uint8_t* get() const { return data.get(); }
};

inline std::vector<float> random_rows(Random& rng, int64_t rows, int64_t cols) {
  std::vector<float> x(static_cast<size_t>(rows * cols));
  std::normal_distribution<float> normal;
  for (auto& v : x) v = normal(rng) * (rng() % 50 == 0 ? 20.0f : 1.0f);
  return x;
}

// ---------------------------------------------------------------- quantised rows
struct Group {
  int8_t lo[32], hi[2][4];
  uint16_t at[2];
  float d, s;
  int32_t minus[3];

  int q(int i) const {
    int value = lo[i];
    for (int f = 0; f < 2; ++f) value += i / 4 * 64 == at[f] ? 256 * hi[f][i % 4] : 0;
    return value;
  }
};
static_assert(sizeof(Group) == 64, "the record of kernels.h");

inline Group group_of(const uint8_t* record, int64_t g) {
  Group group;
  std::memcpy(&group, record + 64 * g, 64);
  return group;
}

}  // namespace formats
