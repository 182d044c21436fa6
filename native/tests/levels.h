// For native tests: the levels compiled in that this machine can run, and reproducible random numbers.
//
// Knows: cpuid through the compiler. Does not know: what is tested.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

#include "../src/kernels.h"

struct Level {
  const char* name;
  void (*fill_rows)(lg::Kernels*);
  void (*fill_attention)(lg::Kernels*);
};

inline std::vector<Level> levels() {
  std::vector<Level> found = {{"portable", lg::fill_rows_portable, lg::fill_attention_portable}};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    found.push_back({"avx2", lg::fill_rows_avx2, lg::fill_attention_avx2});
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
    found.push_back({"avx512", lg::fill_rows_avx512, lg::fill_attention_avx512});
#endif
  std::vector<Level> complete;  // a compiler too old for a level leaves its tables empty
  for (const Level& level : found) {
    lg::Kernels k{};
    level.fill_rows(&k);
    level.fill_attention(&k);
    if (k.rms_norm && k.attend) complete.push_back(level);
  }
  return complete;
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 1) {}
  uint64_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_ * 0x2545f4914f6cdd1dull;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  double uniform() { return double(next() >> 11) * 0x1p-53; }
  float gauss() { return float(std::sqrt(-2 * std::log(uniform() + 1e-300)) * std::cos(2 * M_PI * uniform())); }
  std::vector<float> normal(int64_t n, float scale) {
    std::vector<float> x(static_cast<size_t>(n));
    for (float& v : x) v = gauss() * scale;
    return x;
  }

 private:
  uint64_t state_;
};
