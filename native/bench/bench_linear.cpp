// Speeds of the linear kernels beside their walls: a plain read of the same bytes, and vpdpbusd from registers.
//
// Knows: kernels.h, this machine's clock. Does not know: models, the step program.
// usage: bench_linear [stream|matrix|layer|walls]... [--isa NAME] [--threads N] [--kind NAME] [--k K] [--mb MB]
//        [--runs N]
//   stream  GEMV over a model-sized buffer (2 MiB pages, each thread its share of the blocks), GB/s of packed bytes
//   layer   a prefill's linears
//   matrix  one linear of K x K, one thread, GOP/s by number of rows
// Best and median of many short runs are printed; the best is the quiet machine, the median the one at hand.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../src/dispatch.h"
#include "../src/status.h"

using namespace lg;

namespace {

const char* const kNames[W_KINDS] = {"F32",  "F16",  "BF16", "Q8_0", "Q4_0", "Q4_1",
                                     "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"};

struct Options {
  bool stream = false, matrix = false, layer = false, walls = false;
  std::string isa = "avx512", kind;
  int threads = 2, K = 0, mb = 88, runs = 25;
};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Zeroed, on 2 MiB pages where the system gives them; kept until the end.
uint8_t* pages(size_t bytes) {
  const size_t huge = size_t{2} << 20;
  void* at = mmap(nullptr, bytes + 2 * huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) std::exit(1);
  uint8_t* p = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(at) + huge - 1) / huge * huge);
  madvise(p, bytes, MADV_HUGEPAGE);
  std::memset(p, 0, bytes);
  return p;
}

struct Times {
  double best, median;
};

template <class F>
Times measure(int runs, F&& f) {
  std::vector<double> seconds;
  for (int i = 0; i < runs; ++i) {
    const double start = now();
    f();
    seconds.push_back(now() - start);
  }
  std::sort(seconds.begin(), seconds.end());
  return {seconds.front(), seconds[seconds.size() / 2]};
}

// Runs f(thread) on threads that all exist before the clock starts.
template <class F>
Times measure_threads(int threads, int runs, F&& f) {
  std::atomic<int> turn{0}, done{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> team;
  for (int t = 1; t < threads; ++t) {
    team.emplace_back([&, t] {
      for (int seen = 0;;) {
        while (turn.load() == seen && !stop.load()) {
        }
        if (stop.load()) return;
        ++seen;
        f(t);
        done.fetch_add(1);
      }
    });
  }
  const Times times = measure(runs, [&] {
    done.store(0);
    turn.fetch_add(1);
    f(0);
    while (done.load() < threads - 1) {
    }
  });
  stop.store(true);
  for (auto& thread : team) thread.join();
  return times;
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) uint64_t read_wide(const uint8_t* p, const uint8_t* end) {
  __m512i a = _mm512_setzero_si512(), b = a;
  for (; p + 256 <= end; p += 256) {
    for (int i = 0; i < 4; ++i) _mm_prefetch(reinterpret_cast<const char*>(p + 4096 + 64 * i), _MM_HINT_T0);
    a = _mm512_xor_si512(a, _mm512_xor_si512(_mm512_load_si512(p), _mm512_load_si512(p + 64)));
    b = _mm512_xor_si512(b, _mm512_xor_si512(_mm512_load_si512(p + 128), _mm512_load_si512(p + 192)));
  }
  uint64_t words[8], sum = 0;
  std::memcpy(words, &a, sizeof words);
  for (uint64_t word : words) sum ^= word;
  std::memcpy(words, &b, sizeof words);
  for (uint64_t word : words) sum ^= word;
  return sum;
}
#endif

uint64_t read_all(const uint8_t* p, const uint8_t* end) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return read_wide(p, end);
#endif
  uint64_t sum = 0;
  for (; p + 8 <= end; p += 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    sum ^= word;
  }
  return sum;
}

// Scales of 1 and a mixture of quants: no denormals, nothing special.
void fill_file(int kind, std::vector<uint8_t>& file) {
  uint32_t state = 1;
  for (auto& byte : file) byte = static_cast<uint8_t>((state = state * 1664525u + 1013904223u) >> 24);
  const int bytes[W_KINDS] = {4, 2, 2, 34, 18, 20, 22, 24, 144, 176, 210};
  for (size_t at = 0; at + static_cast<size_t>(bytes[kind]) <= file.size(); at += static_cast<size_t>(bytes[kind])) {
    uint8_t* b = file.data() + at + (kind == W_Q6_K ? 208 : kind <= W_BF16 ? bytes[kind] - 2 : 0);
    b[0] = 0x12;
    b[1] = kind == W_BF16 || kind == W_F32 ? 0x3d : 0x24;
    if (kind == W_Q4_1 || kind == W_Q5_1 || kind == W_Q4_K || kind == W_Q5_K) b[2] = 0x34, b[3] = 0xa4;
  }
}

PackedLinear make(int kind, int64_t N, int64_t K) {
  const int unit = kind <= W_BF16 ? 1 : kind >= W_Q4_K ? 256 : 32;
  const int bytes[W_KINDS] = {4, 2, 2, 34, 18, 20, 22, 24, 144, 176, 210};
  std::vector<uint8_t> file(static_cast<size_t>(K / unit * bytes[kind] * 64));
  fill_file(kind, file);
  uint8_t* data = pages(static_cast<size_t>(packed_bytes(kind, N, K)));
  for (int64_t row = 0; row < N; row += 64)
    pack_rows(kind, file.data(), std::min<int64_t>(64, N - row), K, data, row, -1);
  return {kind, static_cast<int32_t>(N), static_cast<int32_t>(K), 0, data, nullptr};
}

// M rows of activations as the kind wants them.
struct Rows {
  uint8_t* data;
  int64_t stride;
};

Rows make_rows(const Kernels& k, int kind, int64_t K, int M) {
  const int64_t stride = takes_quantized_rows(kind) ? qrow_bytes(K) : 4 * K;
  Rows rows{pages(static_cast<size_t>(stride * M)), stride};
  std::vector<float> x(static_cast<size_t>(K));
  for (int r = 0; r < M; ++r) {
    for (int64_t i = 0; i < K; ++i)
      x[static_cast<size_t>(i)] = static_cast<float>((i * 37 + r * 11) % 101 - 50) * 0.02f;
    if (takes_quantized_rows(kind)) {
      k.quantize_row(x.data(), K, rows.data + r * stride);
    } else {
      std::memcpy(rows.data + r * stride, x.data(), static_cast<size_t>(4 * K));
    }
  }
  return rows;
}

void bench_stream(const Kernels& k, const Options& options) {
  const int64_t bytes = int64_t{options.mb} << 20;
  const uint8_t* plain = pages(static_cast<size_t>(bytes));
  std::printf("stream: %d MiB, threads %d, GB/s best (median); share of the plain read, best\n", options.mb,
              options.threads);
  for (int kind = 0; kind < W_KINDS; ++kind) {
    if (!options.kind.empty() && options.kind != kNames[kind]) continue;
    for (int64_t K : {576, 1536, 2048}) {
      if ((options.K && K != options.K) || (kind >= W_Q4_K && K % 256)) continue;
      const int64_t N = bytes / (packed_bytes(kind, 16, K)) * 16;
      const PackedLinear w = make(kind, N, K);
      const Rows rows = make_rows(k, kind, K, 4);
      std::vector<float> out(static_cast<size_t>(4 * N));
      std::vector<uint8_t*> scratch;
      for (int t = 0; t < options.threads; ++t) scratch.push_back(pages(static_cast<size_t>(linear_scratch_bytes(K))));
      const double size = static_cast<double>(packed_bytes(kind, N, K));
      std::atomic<uint64_t> sink{0};
      const int64_t share = (N / 16 + options.threads - 1) / options.threads;
      Times read = measure_threads(options.threads, options.runs, [&](int t) {
        sink += read_all(plain + bytes / options.threads / 256 * 256 * t,
                         plain + bytes / options.threads / 256 * 256 * (t + 1));
      });
      std::printf("%-5s K=%-5d read %5.1f (%5.1f)", kNames[kind], static_cast<int>(K),
                  static_cast<double>(bytes) / read.best / 1e9, static_cast<double>(bytes) / read.median / 1e9);
      for (int M : {1, 2, 3, 4}) {
        const Times times = measure_threads(options.threads, options.runs, [&](int t) {
          const int64_t begin = std::min(share * t, N / 16), end = std::min(begin + share, N / 16);
          k.linear(&w, rows.data, rows.stride, M, static_cast<int32_t>(begin), static_cast<int32_t>(end), out.data(), N,
                   EP_STORE, scratch[static_cast<size_t>(t)]);
        });
        std::printf(" | M=%d %5.1f (%5.1f) %3.0f%%", M, size / times.best / 1e9, size / times.median / 1e9,
                    100.0 * size / times.best / (static_cast<double>(bytes) / read.best));
      }
      std::printf("\n");
      munmap(const_cast<uint8_t*>(w.data), static_cast<size_t>(size));
    }
  }
}

void bench_matrix(const Kernels& k, const Options& options) {
  const std::vector<int> counts = {1, 2, 4, 5, 6, 8, 12, 16, 32, 64, 128, 256, 512};
  std::printf("matrix: N = K, 1 thread, GOP/s (2 N K M operations), best (median)\n%-14s", "rows");
  for (int M : counts) std::printf(" %11d", M);
  std::printf("\n");
  for (int kind = 0; kind < W_KINDS; ++kind) {
    if (!options.kind.empty() && options.kind != kNames[kind]) continue;
    for (int64_t K : {576, 1536, 2048}) {
      if ((options.K && K != options.K) || (kind >= W_Q4_K && K % 256)) continue;
      const PackedLinear w = make(kind, K, K);
      const Rows rows = make_rows(k, kind, K, counts.back());
      std::vector<float> out(static_cast<size_t>(counts.back() * K));
      uint8_t* scratch = pages(static_cast<size_t>(linear_scratch_bytes(K)));
      std::printf("%-5s K=%-6d", kNames[kind], static_cast<int>(K));
      for (int M : counts) {
        const double operations = 2.0 * static_cast<double>(K) * static_cast<double>(K) * M;
        const int repeat = std::max(1, static_cast<int>(2e8 / operations)),
                  runs = std::max(5, static_cast<int>(options.runs * 4e8 / std::max(4e8, operations)));
        const Times times = measure(runs, [&] {
          for (int i = 0; i < repeat; ++i)
            k.linear(&w, rows.data, rows.stride, M, 0, static_cast<int32_t>(K / 16), out.data(), K, EP_STORE, scratch);
        });
        std::printf(" %5.0f(%4.0f)", operations * repeat / times.best / 1e9, operations * repeat / times.median / 1e9);
        std::fflush(stdout);
      }
      std::printf("\n");
    }
  }
}

// The linears of one layer of SmolLM2-135M as a prefill runs them on one thread, with the rows' quantisation.
void bench_layer(const Kernels& k, const Options& options) {
  struct Shape {
    const char* name;
    int N, K, gated, epilogue;
  };
  const Shape shapes[] = {{"qkv", 960, 576, 0, EP_STORE},
                          {"out", 576, 576, 0, EP_ADD},
                          {"gate+up", 3072, 576, 1, EP_GATED_SILU},
                          {"down", 576, 1536, 0, EP_ADD}};
  std::printf("layer: SmolLM2-135M's linears, 1 thread, GOP/s best (median), and microseconds a row\n");
  for (int M : {16, 64, 128, 256, 512, 1024}) {
    double total = 0, operations = 0;
    std::printf("M=%-5d", M);
    for (const Shape& s : shapes) {
      PackedLinear w = make(W_Q4_1, s.N, s.K);
      w.gated = s.gated;
      const Rows rows = make_rows(k, W_Q4_1, s.K, M);
      const int64_t stride = s.N / (1 + s.gated);
      float* out = reinterpret_cast<float*>(pages(static_cast<size_t>(M * stride * 4)));
      const Times times = measure(options.runs, [&] {
        k.linear(&w, rows.data, rows.stride, M, 0, static_cast<int32_t>(stride / 16), out, stride, s.epilogue, nullptr);
      });
      total += times.best;
      operations += 2.0 * s.N * s.K * M;
      const double giga = 2e-9 * s.N * s.K * M;
      std::printf(" | %s %4.0f (%4.0f)", s.name, giga / times.best, giga / times.median);
      munmap(const_cast<uint8_t*>(w.data), static_cast<size_t>(packed_bytes(W_Q4_1, s.N, s.K)));
    }
    std::printf(" | all %4.0f, %.2f us\n", operations / total / 1e9, total / M * 1e6);
  }
  for (int K : {576, 1536}) {
    const Rows rows = make_rows(k, W_Q4_1, K, 1);
    std::vector<float> x(static_cast<size_t>(K), 1.5f);
    for (int i = 0; i < K; ++i) x[static_cast<size_t>(i)] += static_cast<float>(i * 37 % 101);
    const Times times = measure(options.runs, [&] {
      for (int i = 0; i < 1000; ++i) k.quantize_row(x.data(), K, rows.data);
    });
    std::printf("quantize_row K=%d %.3f us\n", K, times.best * 1e3);
  }
}

#if defined(__x86_64__)
// Twelve independent chains: enough for any latency, all in registers.
__attribute__((target("avx512f,avx512vnni"))) double vnni_peak() {
  if (!__builtin_cpu_supports("avx512vnni")) return 0.0;
  const int loops = 100000;
  const Times times = measure(25, [&]() __attribute__((target("avx512f,avx512vnni"))) {
    asm volatile(
        "mov %0, %%ecx\n1:\n"
        "vpdpbusd %%zmm30, %%zmm31, %%zmm0\nvpdpbusd %%zmm30, %%zmm31, %%zmm1\nvpdpbusd %%zmm30, %%zmm31, %%zmm2\n"
        "vpdpbusd %%zmm30, %%zmm31, %%zmm3\nvpdpbusd %%zmm30, %%zmm31, %%zmm4\nvpdpbusd %%zmm30, %%zmm31, %%zmm5\n"
        "vpdpbusd %%zmm30, %%zmm31, %%zmm6\nvpdpbusd %%zmm30, %%zmm31, %%zmm7\nvpdpbusd %%zmm30, %%zmm31, %%zmm8\n"
        "vpdpbusd %%zmm30, %%zmm31, %%zmm9\nvpdpbusd %%zmm30, %%zmm31, %%zmm10\nvpdpbusd %%zmm30, %%zmm31, %%zmm11\n"
        "dec %%ecx\njnz 1b\n"
        :
        : "r"(loops)
        : "ecx", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11");
  });
  return 12.0 * loops * 128 / times.best / 1e9;
}
#endif

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : "";
    if (word == "stream")
      o.stream = true;
    else if (word == "matrix")
      o.matrix = true;
    else if (word == "layer")
      o.layer = true;
    else if (word == "walls")
      o.walls = true;
    else if (word == "--isa")
      o.isa = value, ++i;
    else if (word == "--kind")
      o.kind = value, ++i;
    else if (word == "--threads")
      o.threads = std::atoi(value), ++i;
    else if (word == "--k")
      o.K = std::atoi(value), ++i;
    else if (word == "--mb")
      o.mb = std::atoi(value), ++i;
    else if (word == "--runs")
      o.runs = std::atoi(value), ++i;
    else
      std::fprintf(stderr, "unknown word: %s\n", word.c_str()), std::exit(2);
  }
  return o;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  Kernels k{};
  try {
    k = select_kernels(options.isa.c_str());
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
#if defined(__x86_64__)
  if (options.walls) std::printf("vpdpbusd from registers: %.0f GOP/s a thread\n", vnni_peak());
#endif
  if (options.stream) bench_stream(k, options);
  if (options.matrix) bench_matrix(k, options);
  if (options.layer) bench_layer(k, options);
  return 0;
}
