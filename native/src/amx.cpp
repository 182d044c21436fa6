// Whether AMX may be used: see amx.h.
//
// Knows: the system's permission for tiles, a comparison on random numbers. Does not know: cpuid, how either multiplies.
// Source: Linux, Documentation/arch/x86/xstate.rst (dynamically enabled features).
#include "amx.h"

#include <cstring>

#include "linear_layout.h"
#include "memory.h"
#include "status.h"

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace lg {
namespace {

// splitmix64
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }

 private:
  uint64_t state_;
};

// Any bytes are weights, but scales must be numbers: halves of 2^-8 to 2^-1 and either sign.
void put_half(Random& random, uint8_t* p) {
  const uint64_t bits = random.next();
  const auto half = static_cast<uint16_t>((bits & 0x83ffu) | (7 + (bits >> 16) % 7) << 10);
  std::memcpy(p, &half, 2);
}

void fill_units(Random& random, int32_t kind, int64_t units, uint8_t* file) {
  const WeightLayout& layout = kLayouts[kind];
  for (int64_t i = 0; i < units * layout.file_bytes; i += 8) {
    const uint64_t bits = random.next();
    const int64_t some = units * layout.file_bytes - i;
    std::memcpy(file + i, &bits, static_cast<size_t>(some < 8 ? some : 8));
  }
  for (int64_t u = 0; u < units; ++u, file += layout.file_bytes) {
    put_half(random, file + (kind == W_Q6_K ? 208 : 0));
    if (has_min(kind)) put_half(random, file + 2);
  }
}

// Values of many magnitudes, so that fine quads lie anywhere.
void fill_floats(Random& random, int64_t count, float* x) {
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t bits = random.next();
    const float value = static_cast<float>(static_cast<int32_t>(bits)) * 0x1p-31f;
    x[i] = value * static_cast<float>(1 << ((bits >> 32) % 64 < 60 ? 0 : (bits >> 40) % 8));
  }
}

// A linear with its rows; everything that a run reads or writes.
struct Sample {
  Region memory;
  PackedLinear w;
  const uint8_t* rows;
  uint8_t* scratch;
  float* out[2];
  int64_t row_bytes, out_stride;
};

Sample random_sample(const LinearCase& c, const Kernels& k, uint64_t seed) {
  Random random(seed);
  const int64_t parts = c.gated ? 2 : 1, outputs = round_up(c.outputs, kLanes), units = c.cols / kLayouts[c.kind].unit;
  const int64_t packed = round_up(packed_bytes(c.kind, outputs * parts, c.cols), kAlign);
  const int64_t file = round_up(c.outputs * units * kLayouts[c.kind].file_bytes, kAlign), row = qrow_bytes(c.cols);
  const int64_t bias = outputs * parts * 4, floats = round_up(int64_t{c.cols} * 4, kAlign), out = c.rows * outputs * 4;
  const int64_t scratch = round_up(linear_scratch_bytes(c.cols), kAlign);
  Sample s{Region(packed + file + bias + floats + c.rows * row + scratch + 2 * out, "comparing AMX with AVX-512"),
           {}, nullptr, nullptr, {}, row, outputs};
  uint8_t* at = s.memory.data();
  const auto take = [&at](int64_t bytes) { return (at += bytes) - bytes; };
  uint8_t *const weights = take(packed), *const from = take(file);
  auto *const biases = reinterpret_cast<float*>(take(bias)), *const x = reinterpret_cast<float*>(take(floats));
  for (int64_t p = 0; p < parts; ++p) {
    fill_units(random, c.kind, c.outputs * units, from);
    pack_rows(c.kind, from, c.outputs, c.cols, weights, 0, c.gated ? static_cast<int32_t>(p) : -1);
  }
  fill_floats(random, outputs * parts, biases);
  s.w = {c.kind, static_cast<int32_t>(c.outputs * parts), c.cols, c.gated, weights, biases};
  uint8_t* records = take(c.rows * row);
  s.rows = records;
  for (int32_t r = 0; r < c.rows; ++r) {
    fill_floats(random, c.cols, x);
    k.quantize_row(x, c.cols, records + r * row);
  }
  s.scratch = take(scratch);
  for (float*& o : s.out) fill_floats(random, c.rows * outputs, o = reinterpret_cast<float*>(take(out)));
  std::memcpy(s.out[1], s.out[0], static_cast<size_t>(out));
  return s;
}

}  // namespace

bool same_products(const Kernels& left, const Kernels& right, const LinearCase& c, uint64_t seed) {
  const Sample s = random_sample(c, right, seed);
  const int32_t units = static_cast<int32_t>(round_up(c.outputs, kLanes) / kLanes), cut = units / 3;
  const Kernels* const sides[2] = {&left, &right};
  for (int i = 0; i < 2; ++i) {
    for (int half = 0; half < 2; ++half)
      sides[i]->linear(&s.w, s.rows, s.row_bytes, c.rows, half ? cut : 0, half ? units : cut, s.out[i], s.out_stride,
                       c.epilogue, s.scratch);
  }
  return std::memcmp(s.out[0], s.out[1], static_cast<size_t>(c.rows * s.out_stride) * 4) == 0;
}

bool permit_tiles() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr long kAskForState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
#else
  return false;
#endif
}

const char* amx_obstacle(bool (*permit)(), const Kernels& amx, const Kernels& avx512) {
  if (amx.linear == nullptr || avx512.linear == nullptr) return "this build's compiler did not know its instructions";
  if (!permit()) return "the system does not permit AMX tiles";
  // Every way in which kinds differ to a tile: a minimum, an offset, scales of halves, records of eight groups; rows and
  // outputs that do not fill their tiles.
  constexpr LinearCase cases[] = {
      {W_Q4_1, 72, 576, 0, 39, EP_ADD},   {W_Q8_0, 40, 288, 0, 32, EP_STORE},        {W_Q5_0, 33, 352, 0, 25, EP_STORE},
      {W_Q6_K, 40, 512, 0, 24, EP_STORE}, {W_Q4_K, 40, 256, 1, 31, EP_GATED_SILU}, {W_Q5_1, 16, 1024, 0, 16, EP_STORE},
  };
  uint64_t seed = 1;
  try {
    for (const LinearCase& c : cases)
      if (!same_products(amx, avx512, c, seed++)) return "its products differ from those of AVX-512";
  } catch (const Error&) {
    return "there is no memory to compare it with AVX-512";
  }
  return "";
}

}  // namespace lg
