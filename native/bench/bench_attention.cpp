// Attention micro-benchmark: decode against the wall of plain reads, prefill in multiply-adds a second.
//
// Usage: bench_attention [portable|avx2|avx512] [int8|bf16|int4] [seconds a measurement]
// Every figure is the best and the median of many short runs, in time the thread itself had a core: the best is the
// machine, the median its neighbours.
#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "../tests/levels.h"

using namespace lg;

static double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Time of this thread on a core: what others take from it in between does not count.
static double own_time() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

struct Times {
  double best, median;
};

// fn returns the seconds it took.
static Times measure(double budget, const std::function<double()>& fn) {
  std::vector<double> t;
  fn();
  const double start = now();
  while (t.size() < 5 || (now() - start < budget && t.size() < 2000)) t.push_back(fn());
  std::sort(t.begin(), t.end());
  return {t[0], t[t.size() / 2]};
}

static uint8_t* allocate(size_t bytes) {
  bytes = (bytes + (2u << 20)) & ~size_t((2u << 20) - 1);
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  madvise(p, bytes, MADV_HUGEPAGE);
  std::memset(p, 0, bytes);
  return static_cast<uint8_t*>(p);
}

// Runs fn(0) .. fn(threads - 1) at once and returns the longest of their own times.
static double together(int threads, const std::function<void(int)>& fn) {
  std::vector<std::thread> pool;
  std::vector<double> times(size_t(threads), 0.0);
  const auto timed = [&](int i) {
    const double start = own_time();
    fn(i);
    times[size_t(i)] = own_time() - start;
  };
  for (int i = 1; i < threads; ++i) pool.emplace_back(timed, i);
  timed(0);
  for (std::thread& t : pool) t.join();
  return *std::max_element(times.begin(), times.end());
}

__attribute__((target("avx2"))) static uint64_t read_all(const uint8_t* p, size_t bytes) {
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  for (size_t i = 0; i + 128 <= bytes; i += 128) {
    _mm_prefetch(reinterpret_cast<const char*>(p + i + 4096), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(p + i + 4160), _MM_HINT_T0);
    a = _mm256_xor_si256(a, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i)));
    b = _mm256_xor_si256(b, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i + 32)));
    c = _mm256_xor_si256(c, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i + 64)));
    d = _mm256_xor_si256(d, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i + 96)));
  }
  a = _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d));
  return uint64_t(_mm256_extract_epi64(a, 0) ^ _mm256_extract_epi64(a, 1));
}

static volatile uint64_t sink;

struct Shape {
  int32_t heads, group, dim, page_size;
};

struct Bench {
  const Kernels& k;
  KvLayout kv;
  Shape s;
  int64_t depth;
  int32_t layers;
  std::vector<int32_t> table;
  uint8_t* store;
  int64_t layer_bytes;

  Bench(const Kernels& kernels, int32_t kind, const Shape& shape, int64_t tokens, int32_t n)
      : k(kernels), kv(kv_layout(kind, shape.heads, shape.dim, shape.page_size)), s(shape), depth(tokens), layers(n) {
    const int64_t pages = (tokens + s.page_size - 1) / s.page_size;
    layer_bytes = round_up(pages, kv.extent_pages()) * kv.page_bytes;
    store = allocate(size_t(layer_bytes * layers));
    Random random(7);
    for (int64_t i = 0; i < pages; ++i) table.push_back(int32_t(i));
    for (int64_t i = pages - 1; i > 0; --i) std::swap(table[i], table[random.below(i + 1)]);
    const std::vector<float> k0 = random.normal(64 * s.dim, 1), v0 = random.normal(64 * s.dim, 1);
    for (int32_t l = 0; l < layers; ++l)
      for (int64_t t = 0; t < tokens; ++t)
        for (int32_t h = 0; h < s.heads; ++h)
          k.kv_write(&kv, store + l * layer_bytes, int32_t(table[t / s.page_size] * s.page_size + t % s.page_size), h,
                     &k0[random.below(64) * s.dim], &v0[random.below(64) * s.dim]);
  }
  ~Bench() { munmap(store, size_t(layer_bytes * layers)); }
};

// Layers of a cold store, each thread its own range of tiles of every head, as in decoding.
static void bench_decode(const Kernels& k, int32_t kind, const Shape& s, int64_t depth, int64_t total, double budget) {
  const KvLayout kv = kv_layout(kind, s.heads, s.dim, s.page_size);
  const int32_t layers = int32_t(std::max<int64_t>(1, total / (depth * kv.page_bytes / s.page_size)));
  Bench b(k, kind, s, depth, layers);
  const int32_t tiles = int32_t((depth + kTile - 1) / kTile);
  Random random(3);
  const std::vector<float> q = random.normal(s.heads * s.group * s.dim, 1);
  for (int threads = 1; threads <= 2; ++threads) {
    std::vector<uint8_t*> scratch, queries;
    std::vector<float*> partials;
    for (int i = 0; i < threads; ++i) {
      scratch.push_back(allocate(size_t(attend_scratch_bytes(s.dim, s.group))));
      queries.push_back(allocate(size_t(s.group * b.kv.q_bytes)));
      partials.push_back(reinterpret_cast<float*>(allocate(size_t(s.group * tiles * partial_floats(s.dim) * 4))));
    }
    const auto attend = [&](int i) {
      const int32_t position = int32_t(depth - 1), begin = tiles * i / threads, end = tiles * (i + 1) / threads;
      for (int32_t l = 0; l < layers; ++l)
        for (int32_t h = 0; h < s.heads; ++h) {
          for (int32_t j = 0; j < s.group; ++j)
            k.prepare_q(&b.kv, &q[(h * s.group + j) * s.dim], 0.125f, queries[i] + j * b.kv.q_bytes);
          const AttendArgs a = {&b.kv, b.store + l * b.layer_bytes, b.table.data(), h, s.group, 0, 0};
          k.attend(&a, queries[i], s.group * b.kv.q_bytes, &position, 1, begin, end, partials[i], nullptr, 0,
                   scratch[i]);
        }
    };
    const int64_t bytes = b.layer_bytes * layers, half = bytes / threads / 64 * 64;
    const Times t = measure(budget, [&] { return together(threads, attend); });
    const Times r = measure(budget, [&] {
      return together(threads, [&](int i) { sink = read_all(b.store + i * half, half); });
    });
    std::printf("decode depth %6lld group %d dim %3d page %d: %d threads, %4.0f MB: best %5.2f GB/s median %5.2f; plain "
                "read best %5.2f median %5.2f; share %3.0f %% (median %3.0f %%)\n",
                (long long)depth, s.group, s.dim, s.page_size, threads, bytes / 1e6, bytes / t.best / 1e9,
                bytes / t.median / 1e9, bytes / r.best / 1e9, bytes / r.median / 1e9, 100 * r.best / t.best,
                100 * r.median / t.median);
  }
}

// One head's share of a chunk of rows that ends at `depth`, one thread.
static void bench_prefill(const Kernels& k, int32_t kind, const Shape& s, int64_t depth, int32_t rows, double budget) {
  Bench b(k, kind, {1, s.group, s.dim, s.page_size}, depth, 1);
  Random random(3);
  const std::vector<float> q = random.normal(s.group * s.dim, 1);
  uint8_t* queries = allocate(size_t(rows * s.group * b.kv.q_bytes));
  uint8_t* scratch = allocate(size_t(attend_scratch_bytes(s.dim, s.group)));
  std::vector<float> out(size_t(rows * s.group * s.dim));
  std::vector<int32_t> positions(rows);
  double tokens = 0;
  for (int32_t r = 0; r < rows; ++r) {
    positions[r] = int32_t(depth - rows + r);
    tokens += positions[r] + 1;
    for (int32_t j = 0; j < s.group; ++j)
      k.prepare_q(&b.kv, &q[j * s.dim], 0.125f, queries + (r * s.group + j) * b.kv.q_bytes);
  }
  const AttendArgs a = {&b.kv, b.store, b.table.data(), 0, s.group, 0, 0};
  const int32_t tiles = int32_t((depth + kTile - 1) / kTile);
  const Times t = measure(budget, [&] {
    const double start = own_time();
    k.attend(&a, queries, s.group * b.kv.q_bytes, positions.data(), rows, 0, tiles, nullptr, out.data(),
             s.group * s.dim, scratch);
    return own_time() - start;
  });
  const double macs = tokens * s.group * s.dim * 2;
  std::printf("prefill %d rows to depth %5lld group %d dim %3d: best %6.1f GMAC/s, median %6.1f\n", rows,
              (long long)depth, s.group, s.dim, macs / t.best / 1e9, macs / t.median / 1e9);
}

int main(int argc, char** argv) {
  const char* name = argc > 1 ? argv[1] : "avx512";
  const char* kind_name = argc > 2 ? argv[2] : "int8";
  const double budget = argc > 3 ? std::atof(argv[3]) : 1.0;
  const int32_t kind = !std::strcmp(kind_name, "bf16") ? KV_BF16 : !std::strcmp(kind_name, "int4") ? KV_INT4 : KV_INT8;
  for (const Level& level : levels()) {
    if (std::strcmp(level.name, name)) continue;
    Kernels k{};
    level.fill_attention(&k);
    std::printf("%s %s\n", name, kind_name);
    for (int32_t depth : {512, 2048, 8000}) bench_prefill(k, kind, {1, 3, 64, 16}, depth, 512, budget);
    for (int32_t depth : {512, 2048, 8000}) bench_prefill(k, kind, {1, 4, 128, 16}, depth, 512, budget);
    bench_decode(k, kind, {3, 3, 64, 16}, 8000, 120 << 20, budget);
    bench_decode(k, kind, {3, 3, 64, 16}, 512, 120 << 20, budget);
    bench_decode(k, kind, {8, 4, 64, 16}, 4096, 120 << 20, budget);
    bench_decode(k, kind, {2, 7, 64, 64}, 8000, 120 << 20, budget);
    bench_decode(k, kind, {8, 2, 128, 32}, 8000, 120 << 20, budget);
  }
  return 0;
}
