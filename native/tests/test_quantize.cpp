// What becomes of one row, at every level that this machine has: a row of activations quantised, a row of a table read.
//
// Knows: the contract of kernels.h, the formats' definitions. Does not know: packed layouts. Exit code 0: all held.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "formats.h"
#include "linear_levels.h"

using namespace lg;
using namespace formats;

namespace {

// A record straight from the definition; the kernels may differ by nothing.
void check_quantize_group(const Kernels& k, const float* x, const Group& group) {
  uint32_t keys[8], sorted[8];
  for (int v = 0; v < 8; ++v) {
    float most = 0.0f;
    for (int i = 0; i < 4; ++i) most = std::fmax(most, std::fabs(x[4 * v + i]));
    std::memcpy(&keys[v], &most, 4);
    sorted[v] = keys[v] = (keys[v] & ~7u) | static_cast<uint32_t>(v);
  }
  std::sort(sorted, sorted + 8, [](uint32_t a, uint32_t b) { return a > b; });
  const float amax = float_of(sorted[0] | 7), rest = float_of(sorted[2] | 7);
  const bool zero = amax < 0x1p-100f;
  const std::string name = std::string(k.name) + " quantize_row ";
  expect(group.d == (zero ? 0.0f : std::fmax(rest / 127.0f, amax / 32512.0f)), name + "d");
  int sum[2] = {0, 0};
  for (int i = 0; i < 32; ++i) {
    expect(group.q(i) == (zero ? 0 : static_cast<int>(std::nearbyint(x[i] * (1.0f / group.d)))), name + "q");
    sum[i / 16] += group.q(i);
  }
  expect(group.at[0] == 64 * (sorted[0] & 7) && group.at[1] == 64 * (sorted[1] & 7), name + "fine quads");
  expect(group.minus[1] == -sum[0] && group.minus[2] == -sum[1] && group.minus[0] == -sum[0] - sum[1], name + "sums");
  expect(group.s == group.d * static_cast<float>(sum[0] + sum[1]), name + "s");
}

void check_quantize(const Kernels& k, Random& rng) {
  for (int64_t K : {32, 64, 576, 1536}) {
    std::vector<float> x = random_rows(rng, 1, K);
    for (int i = 0; i < 32; ++i) x[static_cast<size_t>(i)] = 0.0f;
    if (K > 32) {
      for (int i = 32; i < 64; ++i)
        x[static_cast<size_t>(i)] = static_cast<float>(i - 47) * 0.5f;  // halves: ties to even
      x[40] = 63.5f;
    }
    if (K > 64) x[70] = -1e6f;  // an outlier that even 16 bits must make room for
    const int64_t bytes = qrow_bytes(K);
    Aligned memory(bytes + 64);
    std::vector<uint8_t> record(static_cast<size_t>(bytes) + 64, 0xAB);
    std::memcpy(memory.get(), record.data(), record.size());
    k.quantize_row(x.data(), K, memory.get());
    std::memcpy(record.data(), memory.get(), record.size());
    for (int i = 0; i < 64; ++i)
      expect(record[static_cast<size_t>(bytes + i)] == 0xAB, std::string(k.name) + " quantize_row past its record");
    for (int64_t g = 0; g < K / 32; ++g) check_quantize_group(k, x.data() + 32 * g, group_of(record.data(), g));
  }
}

// A NaN or an infinity makes its group's scale NaN and its q zero; denormal groups become zeros.
void check_quantize_odd(const Kernels& k) {
  for (float odd :
       {float_of(0x7fc00000), float_of(0xffc00001), float_of(0x7f800000), float_of(0xff800000), 1e-42f, 3e38f}) {
    alignas(64) float x[64] = {1.0f, 2.0f};
    for (int i = 32; i < 64; ++i) x[i] = odd;
    x[33] = 0.0f;
    alignas(64) uint8_t record[192];
    k.quantize_row(x, 64, record);
    const Group first = group_of(record, 0), second = group_of(record, 1);
    const bool finite = std::isfinite(odd);
    expect(first.d > 2.0f / 32513.0f && first.d < 2.0f / 32511.0f, std::string(k.name) + " odd: neighbour group");
    expect(finite ? std::isfinite(second.d) : std::isnan(second.d) && std::isnan(second.s),
           std::string(k.name) + " odd: scale");
    if (!finite || odd < 1e-40f) {
      for (int i = 0; i < 32; ++i) expect(second.q(i) == 0, std::string(k.name) + " odd: q");
    } else {
      expect(second.q(0) == 127, std::string(k.name) + " odd: largest");
    }
  }
}
void check_table(const Kernels& k) {
  Random rng(11);
  for (int kind = 0; kind < W_KINDS; ++kind) {
    const std::vector<uint8_t> file = random_file(rng, kind, 2, 768);
    const int64_t row_bytes = 768 / kUnit[kind] * kUnitBytes[kind];
    std::vector<float> out(769, kGuard);
    k.table_row(kind, file.data() + row_bytes, 768, 1.5f, out.data());
    for (int i = 0; i < 768; ++i) {
      const double want = 1.5 * value(kind, file.data() + row_bytes, i);
      expect(std::fabs(out[static_cast<size_t>(i)] - want) <= 1e-6 * std::fabs(want) + 2e-7,
             std::string(k.name) + " table_row " + kNames[kind]);
    }
    expect(out[768] == kGuard, std::string(k.name) + " table_row past its end");
  }
}
}  // namespace

int main() {
  return check_levels([](const Kernels& k) {
    Random rng(1);
    check_quantize(k, rng);
    check_quantize_odd(k);
    check_table(k);
  });
}
