// Two ways to make a product of 4-bit weights come out the same in a GEMV and in a GEMM, and what each can reach.
//
// Knows: inner loops over data in the first cache, on one core, in time this thread had a core. Does not know: kernels,
// models, unpacking. docs/decisions.md says what followed from it. x86 with AVX512-VNNI; bf16 where AVX512-BF16 is.
// usage: g++ -O3 -march=native -o build/semantics benchmarks/semantics.cpp && build/semantics
//   integer groups  int8 x int8 summed in int32 over 32, then scaled in float32
//   bf16            weights and activations rounded to bf16, float32 sums of pairs
//   float32         the order of bf16 followed without bf16 instructions
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace {

constexpr int kRows = 8, kOutputs = 16, kDepth = 256, kGroup = 32, kTimes = 200;
constexpr double kOperations = 2.0 * kRows * kOutputs * kDepth * kTimes;

alignas(64) uint8_t weights8[kDepth * kOutputs];
alignas(64) int8_t rows8[kRows][kDepth];
alignas(64) float weight_scales[kDepth / kGroup * kOutputs], row_scales[kRows][kDepth / kGroup];
alignas(64) uint16_t weights16[kDepth * kOutputs], rows16[kRows][kDepth];
alignas(64) float weights32[kDepth * kOutputs], rows32[kRows][kDepth];
alignas(64) float out[kRows * kOutputs];

__m512i four_bytes(const void* at) {
  int32_t word;
  std::memcpy(&word, at, 4);
  return _mm512_set1_epi32(word);
}

void store(const __m512* sums) {
  for (int r = 0; r < kRows; ++r) _mm512_store_ps(out + r * kOutputs, sums[r]);
  asm volatile("" ::: "memory");
}

void integer_groups() {
  __m512 sums[kRows] = {};
  for (int g = 0; g < kDepth / kGroup; ++g) {
    __m512i exact[kRows] = {};
    for (int k = g * kGroup; k < (g + 1) * kGroup; k += 4) {
      const __m512i w = _mm512_load_si512(weights8 + k * kOutputs);
      for (int r = 0; r < kRows; ++r) exact[r] = _mm512_dpbusd_epi32(exact[r], w, four_bytes(&rows8[r][k]));
    }
    const __m512 scale = _mm512_load_ps(weight_scales + g * kOutputs);
    for (int r = 0; r < kRows; ++r)
      sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact[r]),
                                _mm512_mul_ps(scale, _mm512_set1_ps(row_scales[r][g])), sums[r]);
  }
  store(sums);
}

#if defined(__AVX512BF16__)
void bf16_pairs() {
  __m512 sums[kRows] = {};
  for (int k = 0; k < kDepth; k += 2) {
    const __m512bh w = (__m512bh)_mm512_load_si512(weights16 + k * kOutputs);
    for (int r = 0; r < kRows; ++r) sums[r] = _mm512_dpbf16_ps(sums[r], w, (__m512bh)four_bytes(&rows16[r][k]));
  }
  store(sums);
}
#endif

void float_products() {
  __m512 sums[kRows] = {};
  for (int k = 0; k < kDepth; ++k) {
    const __m512 w = _mm512_load_ps(weights32 + k * kOutputs);
    for (int r = 0; r < kRows; ++r) sums[r] = _mm512_fmadd_ps(w, _mm512_set1_ps(rows32[r][k]), sums[r]);
  }
  store(sums);
}

// Whatever is not zero, so that nothing can be known when this is compiled.
template <class T, size_t N>
void fill(T (&values)[N], int low, int high) {
  for (T& value : values) value = static_cast<T>(low + std::rand() % (high - low));
}

void fill_all() {
  fill(weights8, 0, 16);
  fill(weight_scales, 1, 9);
  fill(weights16, 0x3c00, 0x3e00);
  fill(weights32, 1, 9);
  for (int r = 0; r < kRows; ++r) {
    fill(rows8[r], -127, 128);
    fill(row_scales[r], 1, 9);
    fill(rows16[r], 0x3c00, 0x3e00);
    fill(rows32[r], 1, 9);
  }
}

double own_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

void report(const char* name, void (*loop)()) {
  double times[301];
  for (double& seconds : times) {
    const double start = own_seconds();
    for (int i = 0; i < kTimes; ++i) loop();
    seconds = own_seconds() - start;
  }
  std::sort(times, times + 301);
  std::printf("%-15s best %4.0f  median %4.0f GOP/s\n", name, kOperations / times[0] / 1e9,
              kOperations / times[150] / 1e9);
}

}  // namespace

int main() {
  fill_all();
  std::printf("%d rows x %d outputs x %d, one core\n", kRows, kOutputs, kDepth);
  report("integer groups", integer_groups);
#if defined(__AVX512BF16__)
  report("bf16", bf16_pairs);
#else
  std::printf("bf16            this processor has no AVX512-BF16\n");
#endif
  report("float32", float_products);
  return 0;
}
