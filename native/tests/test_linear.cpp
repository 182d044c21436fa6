// Linear kernels against the file formats' definitions in double precision, at every level that this machine has.
//
// Knows: ggml's block definitions (written down here a second time, value by value), the contract of kernels.h.
// Does not know: packed layouts. Exit code 0: all held.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../src/kernels.h"
#include "emulated_amx.h"

using namespace lg;

namespace {

int failures = 0;
int checks = 0;

void expect(bool ok, const std::string& what) {
  ++checks;
  if (!ok && ++failures <= 20) std::printf("FAILED: %s\n", what.c_str());
}

const char* const kNames[W_KINDS] = {"F32",  "F16",  "BF16", "Q8_0", "Q4_0", "Q4_1",
                                     "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"};
const int kUnit[W_KINDS] = {1, 1, 1, 32, 32, 32, 32, 32, 256, 256, 256};
const int kUnitBytes[W_KINDS] = {4, 2, 2, 34, 18, 20, 22, 24, 144, 176, 210};

// ---------------------------------------------------------------- the formats, one value at a time
double half(const uint8_t* p) {
  const int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  return exponent == 0 ? sign * std::ldexp(mantissa, -24) : sign * std::ldexp(1024 + mantissa, exponent - 25);
}

float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

void k_scale(const uint8_t* s, int j, int* scale, int* minimum) {
  if (j < 4) {
    *scale = s[j] & 63;
    *minimum = s[j + 4] & 63;
  } else {
    *scale = (s[j + 4] & 0xF) | ((s[j - 4] >> 6) << 4);
    *minimum = (s[j + 4] >> 4) | ((s[j] >> 6) << 4);
  }
}

double value_32(int kind, const uint8_t* b, int k) {
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

double value_256(int kind, const uint8_t* b, int k) {
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

double value(int kind, const uint8_t* row, int64_t k) {
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

void put_half(Random& rng, uint8_t* p, bool sign) {
  const uint32_t kind = rng() % 16;
  uint32_t bits = kind == 0 ? rng() % 1024 : (8u + rng() % 6) << 10 | rng() % 1024;  // now and then subnormal or zero
  if (sign && rng() % 2) bits |= 0x8000;
  p[0] = static_cast<uint8_t>(bits);
  p[1] = static_cast<uint8_t>(bits >> 8);
}

std::vector<uint8_t> random_file(Random& rng, int kind, int64_t rows, int64_t cols) {
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

std::vector<float> random_rows(Random& rng, int64_t rows, int64_t cols) {
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

Group group_of(const uint8_t* record, int64_t g) {
  Group group;
  std::memcpy(&group, record + 64 * g, 64);
  return group;
}

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

// ---------------------------------------------------------------- linear
double activation(double x, int epilogue) {
  switch (epilogue) {
    case EP_GATED_SILU:
    case EP_SILU:
      return x / (1.0 + std::exp(-x));
    case EP_GATED_GELU_TANH:
    case EP_GELU_TANH:
      return x / (1.0 + std::exp(-2.0 * 0.7978845608028654 * (x + 0.044715 * x * x * x)));  // 0.5 x (1 + tanh)
    case EP_GATED_GELU:
    case EP_GELU:
      return 0.5 * x * std::erfc(-x * 0.7071067811865476);
    default:
      return x;
  }
}

struct Case {
  int kind, N, K;
  bool gated, bias;
};

// Everything one case needs: file rows, the packed linear, activations.
struct World {
  Case c;
  std::vector<uint8_t> file;
  Aligned packed, scratch;
  std::vector<float> bias;
  PackedLinear w;
  std::vector<float> x;

  static int64_t blocks(const Case& c) { return c.gated ? 2 * ((c.N / 2 + 15) / 16) : (c.N + 15) / 16; }

  World(const Case& cc, int max_rows, Random& rng)
      : c(cc),
        file(random_file(rng, c.kind, c.N, c.K)),
        packed(packed_bytes(c.kind, blocks(c) * 16, c.K)),
        scratch(linear_scratch_bytes(c.K)),
        x(random_rows(rng, max_rows, c.K)) {
    const int64_t row_bytes = c.K / kUnit[c.kind] * kUnitBytes[c.kind];
    if (c.gated) {
      pack_rows(c.kind, file.data(), c.N / 2, c.K, packed.get(), 0, 0);
      pack_rows(c.kind, file.data() + c.N / 2 * row_bytes, c.N / 2, c.K, packed.get(), 0, 1);
    } else {  // in two parts, as q and k are
      const int64_t first = c.N / 3;
      pack_rows(c.kind, file.data(), first, c.K, packed.get(), 0, -1);
      pack_rows(c.kind, file.data() + first * row_bytes, c.N - first, c.K, packed.get(), first, -1);
    }
    bias.assign(static_cast<size_t>(blocks(c) * 16), 0.0f);
    if (c.bias) {
      for (auto& b : bias) b = static_cast<float>(rng() % 200) * 0.25f - 25.0f;
    }
    w = PackedLinear{c.kind, c.N, c.K, c.gated ? 1 : 0, packed.get(), c.bias ? bias.data() : nullptr};
  }

  int outputs() const { return c.gated ? c.N / 2 : c.N; }
  int64_t ranges() const { return c.gated ? blocks(c) / 2 : blocks(c); }
  std::string name(const char* level, int M) const {
    return std::string(level) + " " + kNames[c.kind] + " N=" + std::to_string(c.N) + " K=" + std::to_string(c.K) +
           " M=" + std::to_string(M) + (c.gated ? " gated" : "") + (c.bias ? " bias" : "");
  }
  float bias_of(int n) const {
    if (!c.bias) return 0.0f;
    if (!c.gated) return bias[static_cast<size_t>(n)];
    const int half_rows = c.N / 2, up = n >= half_rows, i = n % half_rows;
    return bias[static_cast<size_t>((2 * (i / 16) + up) * 16 + i % 16)];
  }
};

struct Acts {
  Aligned bytes;
  int64_t stride;
};

Acts make_acts(const Kernels& k, const World& world, int rows) {
  const bool quantized = takes_quantized_rows(world.c.kind);
  const int64_t stride = quantized ? qrow_bytes(world.c.K) : round_up(world.c.K * 4, 64) + 64;
  Acts acts{Aligned(stride * rows), stride};
  for (int r = 0; r < rows; ++r) {
    const float* x = world.x.data() + static_cast<int64_t>(r) * world.c.K;
    if (quantized) {
      k.quantize_row(x, world.c.K, acts.bytes.get() + r * stride);
    } else {
      std::memcpy(acts.bytes.get() + r * stride, x, static_cast<size_t>(world.c.K) * 4);
    }
  }
  return acts;
}

// y before bias and epilogue, and the sum of the terms' magnitudes.
void reference(const World& world, const uint8_t* act, int n, double* y, double* magnitude) {
  const int64_t K = world.c.K;
  const uint8_t* row = world.file.data() + n * (K / kUnit[world.c.kind]) * kUnitBytes[world.c.kind];
  *y = *magnitude = 0.0;
  for (int64_t k = 0; k < K; ++k) {
    double a;
    if (takes_quantized_rows(world.c.kind)) {
      const Group group = group_of(act, k / 32);
      a = static_cast<double>(group.d) * group.q(static_cast<int>(k % 32));
    } else {
      float x;
      std::memcpy(&x, act + 4 * k, 4);
      a = x;
    }
    const double term = value(world.c.kind, row, k) * a;
    *y += term;
    *magnitude += std::fabs(term);
  }
}

constexpr float kGuard = 12345.678f;

std::vector<float> run(const Kernels& k, const World& world, const Acts& acts, int first, int M, int epilogue,
                       float initial, int64_t cut) {
  const int64_t stride = world.outputs() + 7;
  std::vector<float> out(static_cast<size_t>(M * stride), kGuard);
  for (int r = 0; r < M; ++r) {
    for (int n = 0; n < world.outputs(); ++n) out[static_cast<size_t>(r * stride + n)] = initial;
  }
  // In a heap block of its own size, so that the address sanitizer sees any step too far.
  Aligned scratch(linear_scratch_bytes(world.c.K));
  const uint8_t* act = acts.bytes.get() + first * acts.stride;
  if (cut > 0)
    k.linear(&world.w, act, acts.stride, M, 0, static_cast<int32_t>(cut), out.data(), stride, epilogue, scratch.get());
  k.linear(&world.w, act, acts.stride, M, static_cast<int32_t>(cut), static_cast<int32_t>(world.ranges()), out.data(),
           stride, epilogue, scratch.get());
  for (int r = 0; r < M; ++r) {
    for (int64_t n = world.outputs(); n < stride; ++n) {
      expect(out[static_cast<size_t>(r * stride + n)] == kGuard,
             world.name(k.name, M) + ": wrote past the last output");
    }
  }
  return out;
}

void check_values(const Kernels& k, const World& world, const Acts& acts, int row, int epilogue) {
  const float initial = 0.5f;
  const std::vector<float> out = run(k, world, acts, row, 1, epilogue, initial, 0);
  const uint8_t* act = acts.bytes.get() + row * acts.stride;
  for (int n = 0; n < world.outputs(); ++n) {
    double y, magnitude, up = 1.0, up_magnitude = 0.0;
    reference(world, act, n, &y, &magnitude);
    y += world.bias_of(n);
    magnitude += std::fabs(world.bias_of(n));
    double want = activation(y, epilogue), slack = 1.2e-5 * magnitude + 3e-6 * std::fabs(want) + 1e-9;
    if (world.c.gated) {
      reference(world, act, n + world.outputs(), &up, &up_magnitude);
      up += world.bias_of(n + world.outputs());
      up_magnitude += std::fabs(world.bias_of(n + world.outputs()));
      slack = slack * std::fabs(up) + 1e-5 * up_magnitude * std::fabs(want) + 1e-9 * magnitude * up_magnitude;
      want *= up;
    }
    if (epilogue == EP_ADD) {
      want += initial;
      slack += 1e-6;
    }
    const double got = out[static_cast<size_t>(n)];
    if (!(std::fabs(got - want) <= slack)) {
      expect(false, world.name(k.name, 1) + " epilogue " + std::to_string(epilogue) + " output " + std::to_string(n) +
                        ": " + std::to_string(got) + " for " + std::to_string(want) + " slack " +
                        std::to_string(slack));
      return;
    }
    ++checks;
  }
}

// Row r of any M, and any cut between threads, has the bits of row r alone.
void check_same_bits(const Kernels& k, const World& world, const Acts& acts, const std::vector<int>& counts,
                     int epilogue) {
  const int most = counts.back();
  const int64_t stride = world.outputs() + 7;
  std::vector<float> alone;
  for (int r = 0; r < most; ++r) {
    const std::vector<float> one = run(k, world, acts, r, 1, epilogue, 0.25f, 0);
    alone.insert(alone.end(), one.begin(), one.end());
  }
  for (int M : counts) {
    const int64_t cut = world.ranges() > 1 ? M % world.ranges() : 0;
    const std::vector<float> together = run(k, world, acts, 0, M, epilogue, 0.25f, cut);
    expect(std::memcmp(together.data(), alone.data(), static_cast<size_t>(M * stride) * 4) == 0,
           world.name(k.name, M) + ": bits differ from M=1");
  }
}

void check_linear(const Kernels& k, bool quick) {
  Random rng(7);
  const std::vector<int> all_counts = {1, 2, 3, 4, 5, 7, 8, 16, 33, 64, 200}, few_counts = {1, 3, 6, 13, 26};
  const bool slow = quick || std::strcmp(k.name, "portable") == 0 || std::strcmp(k.name, "emulated amx") == 0;
  for (int kind = 0; kind < W_KINDS; ++kind) {
    std::vector<int> widths =
        kUnit[kind] == 256 ? std::vector<int>{256, 768, 1536, 2048} : std::vector<int>{32, 96, 576, 1536, 2048};
    if (kUnit[kind] == 1) widths.push_back(37);
    for (int K : widths) {
      for (int N : {1, 15, 16, 17, 100, 192}) {
        const bool large = K > 600 || N > 100;
        if (large && slow && !(K == 2048 && N == 17)) continue;
        for (bool gated : {false, true}) {
          if (gated && (N % 2 || (large && N != 192))) continue;
          const std::vector<int>& counts = (K == 576 || K == 768) && N == 100 && !slow ? all_counts : few_counts;
          World world({kind, N, K, gated, N % 2 == 0}, counts.back(), rng);
          const Acts acts = make_acts(k, world, counts.back());
          check_values(k, world, acts, 0, gated ? EP_GATED_SILU : EP_STORE);
          check_values(k, world, acts, 1, gated ? EP_GATED_GELU_TANH : EP_ADD);
          if (!large) check_values(k, world, acts, 2, gated ? EP_GATED_GELU : EP_GELU);
          if (!large) check_same_bits(k, world, acts, counts, gated ? EP_GATED_SILU : EP_ADD);
          if (large) check_same_bits(k, world, acts, {1, 4, 13}, gated ? EP_GATED_GELU : EP_STORE);
        }
      }
    }
  }
}

// Activations on a ladder of y: weights of zero, y from the bias alone, so that only the epilogue is measured.
void check_activations(const Kernels& k) {
  Random rng(3);
  for (int epilogue : {EP_SILU, EP_GELU_TANH, EP_GELU}) {
    double worst = 0.0;
    for (int start = -40; start < 40; ++start) {
      World world({W_F32, 160, 32, false, true}, 1, rng);
      std::memset(world.packed.get(), 0, static_cast<size_t>(packed_bytes(W_F32, 160, 32)));
      for (int n = 0; n < 160; ++n)
        world.bias[static_cast<size_t>(n)] = (static_cast<float>(start) + static_cast<float>(n) / 160.0f) * 0.5f;
      const Acts acts = make_acts(k, world, 1);
      const std::vector<float> out = run(k, world, acts, 0, 1, epilogue, 0.0f, 0);
      for (int n = 0; n < 160; ++n) {
        const double y = world.bias[static_cast<size_t>(n)], want = activation(y, epilogue),
                     got = out[static_cast<size_t>(n)];
        // A rounding of the exponent's argument is worth |argument| roundings of the value.
        const double argument = epilogue == EP_GELU_TANH ? std::fabs(1.6 * y + 0.0713 * y * y * y)
                                : epilogue == EP_GELU    ? y * y / 2
                                                         : std::fabs(y);
        if (std::fabs(want) > 1e-30)
          worst = std::fmax(worst, std::fabs(got - want) / std::fabs(want) / (1.0 + argument / 4.0));
      }
    }
    expect(worst < 1e-6, std::string(k.name) + " activation " + std::to_string(epilogue) + ": relative error " +
                             std::to_string(worst * 1e6) + "e-6");
  }
}

// A NaN in a row makes that row's outputs NaN and leaves its neighbours alone.
void check_nan(const Kernels& k) {
  Random rng(5);
  for (int kind : {W_Q8_0, W_Q4_0, W_Q4_1, W_Q6_K, W_BF16}) {
    World world({kind, 40, 512, false, false}, 7, rng);
    const Acts clean = make_acts(k, world, 7);
    const std::vector<float> before = run(k, world, clean, 0, 7, EP_STORE, 0.0f, 0);
    world.x[512 * 2 + 77] = float_of(0x7fc00000);
    const Acts acts = make_acts(k, world, 7);
    const std::vector<float> after = run(k, world, acts, 0, 7, EP_STORE, 0.0f, 0);
    for (int r = 0; r < 7; ++r) {
      for (int n = 0; n < 40; ++n) {
        const size_t i = static_cast<size_t>(r * 47 + n);
        expect(r == 2 ? std::isnan(after[i]) : after[i] == before[i], world.name(k.name, 7) + ": a NaN's reach");
      }
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

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
#endif

}  // namespace

int main(int argc, char** argv) {
  const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
#if defined(__x86_64__)
  void (*const fills[])(Kernels*) = {fill_linear_portable, fill_linear_avx2, fill_linear_avx512,
                                     fill_linear_emulated_amx};
#else
  void (*const fills[])(Kernels*) = {fill_linear_portable, [](Kernels*) {}, [](Kernels*) {}, [](Kernels*) {}};
#endif
  const char* const names[] = {"portable", "avx2", "avx512", "emulated amx"};
  const bool present[] = {true, has_avx2(), has_avx512(), has_avx512()};
  for (int level = 0; level < 4; ++level) {
    Kernels k{};
    k.name = names[level];
    fills[level](&k);
    if (!present[level] || !k.linear) {
      std::printf("%s: skipped, %s\n", k.name, present[level] ? "not compiled in" : "this CPU lacks it");
      continue;
    }
    const int before = checks, failed = failures;
    Random rng(1);
    check_quantize(k, rng);
    check_quantize_odd(k);
    check_table(k);
    check_activations(k);
    check_nan(k);
    check_linear(k, quick);
    std::printf("%s: %d checks, %d failed\n", k.name, checks - before, failures - failed);
  }
  return failures == 0 ? 0 : 1;
}
