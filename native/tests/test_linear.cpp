// Linear kernels against the file formats' definitions in double precision, at every level that this machine has.
//
// Knows: the contract of kernels.h, the formats' definitions. Does not know: packed layouts. Exit code 0: all held.
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "formats.h"
#include "linear_levels.h"

using namespace lg;
using namespace formats;

namespace {

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
}  // namespace

int main(int argc, char** argv) {
  const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
  return check_levels([quick](const Kernels& k) {
    check_activations(k);
    check_nan(k);
    check_linear(k, quick);
  });
}
