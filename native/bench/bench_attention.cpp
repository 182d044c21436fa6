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

// Sequences of `depth` tokens each in a store as the engine lays it out: a sequence's pages follow each other, an
// extent holds all layers' heads one after the other.
struct Bench {
  const Kernels& k;
  KvLayout kv;
  Shape s;
  int64_t depth;
  int32_t seqs, layers, seq_pages;
  std::vector<int32_t> table;
  uint8_t* store;
  int64_t bytes, layer_bytes;

  Bench(const Kernels& kernels, int32_t kind, const Shape& shape, int64_t tokens, int32_t sequences, int32_t n)
      : k(kernels), kv(kv_layout(kind, shape.heads, shape.dim, shape.page_size)), s(shape), depth(tokens),
        seqs(sequences), layers(n), seq_pages(int32_t((tokens + s.page_size - 1) / s.page_size)) {
    layer_bytes = int64_t{kv.extent_pages()} * kv.page_bytes;  // an extent's
    kv.extent_bytes = layer_bytes * layers;
    const int64_t pages = int64_t{seq_pages} * seqs;
    bytes = round_up(pages, kv.extent_pages()) / kv.extent_pages() * kv.extent_bytes;
    store = allocate(size_t(bytes));
    for (int64_t i = 0; i < pages; ++i) table.push_back(int32_t(i));
    Random random(7);
    const std::vector<float> k0 = random.normal(64 * s.dim, 1), v0 = random.normal(64 * s.dim, 1);
    for (int32_t l = 0; l < layers; ++l)
      for (int64_t t = 0; t < pages * s.page_size; ++t)
        for (int32_t h = 0; h < s.heads; ++h)
          k.kv_write(&kv, layer(l), int32_t(t), h, &k0[random.below(64) * s.dim], &v0[random.below(64) * s.dim]);
  }
  ~Bench() { munmap(store, size_t(bytes)); }
  uint8_t* layer(int32_t l) const { return store + l * layer_bytes; }
  int64_t read_bytes() const { return int64_t{seqs} * layers * seq_pages * kv.page_bytes; }
};

// Steps over all layers as in decoding: each thread its range of a long sequence's tiles, or its own sequences.
static void bench_decode(const Kernels& k, int32_t kind, const Shape& s, int64_t depth, int32_t seqs, int32_t layers,
                         double budget) {
  Bench b(k, kind, s, depth, seqs, layers);
  const int32_t tiles = int32_t((depth + kTile - 1) / kTile), queries = s.heads * s.group;
  Random random(3);
  const std::vector<float> q = random.normal(queries * s.dim, 1);
  for (int threads = 1; threads <= 2; ++threads) {
    std::vector<uint8_t*> scratch, prepared;
    std::vector<float*> partials;
    for (int i = 0; i < threads; ++i) {
      scratch.push_back(allocate(size_t(attend_scratch_bytes(s.dim, s.group))));
      prepared.push_back(allocate(size_t(queries * b.kv.q_bytes)));
      partials.push_back(reinterpret_cast<float*>(allocate(size_t(queries * tiles * partial_floats(s.dim) * 4))));
      for (int32_t j = 0; j < queries; ++j)
        k.prepare_q(&b.kv, &q[j * s.dim], 0.125f, prepared[i] + j * b.kv.q_bytes);
    }
    const int32_t ranges = seqs == 1 ? 8 : 1, position = int32_t(depth - 1);
    const auto attend = [&](int i) {
      for (int32_t l = 0; l < layers; ++l)
        for (int32_t item = i; item < seqs * ranges; item += threads) {
          const int32_t seq = item / ranges, part = item % ranges;
          const AttendArgs a = {&b.kv, b.layer(l), b.table.data() + int64_t{seq} * b.seq_pages, 0, s.group, 0, 0, s.heads};
          k.attend(&a, prepared[i], queries * b.kv.q_bytes, &position, 1, tiles * part / ranges,
                   tiles * (part + 1) / ranges, ranges > 1 ? partials[i] : nullptr, partials[i], queries * s.dim,
                   scratch[i]);
        }
    };
    const int64_t bytes = b.read_bytes(), half = b.bytes / threads / 64 * 64;
    const Times t = measure(budget, [&] { return together(threads, attend); });
    const Times r = measure(budget, [&] {
      return together(threads, [&](int i) { sink = read_all(b.store + i * half, half); });
    });
    const double plain = double(half) * threads;
    std::printf("decode %2d x %5lld group %d dim %3d page %d: %d threads, %4.0f MB: best %5.2f GB/s median %5.2f; plain "
                "read best %5.2f median %5.2f; share %3.0f %% (median %3.0f %%)\n",
                seqs, (long long)depth, s.group, s.dim, s.page_size, threads, bytes / 1e6, bytes / t.best / 1e9,
                bytes / t.median / 1e9, plain / r.best / 1e9, plain / r.median / 1e9,
                100 * bytes / t.best * r.best / plain, 100 * bytes / t.median * r.median / plain);
  }
}

// One head's share of a chunk of rows that ends at `depth`, one thread.
static void bench_prefill(const Kernels& k, int32_t kind, const Shape& s, int64_t depth, int32_t rows, double budget) {
  Bench b(k, kind, {1, s.group, s.dim, s.page_size}, depth, 1, 1);
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
  const AttendArgs a = {&b.kv, b.layer(0), b.table.data(), 0, s.group, 0, 0};
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
    bench_decode(k, kind, {3, 3, 64, 16}, 8000, 1, 30, budget);
    bench_decode(k, kind, {3, 3, 64, 16}, 512, 32, 30, budget);
    bench_decode(k, kind, {3, 3, 64, 16}, 512, 1, 1, budget);  // from the second cache: what computing alone takes
    bench_decode(k, kind, {8, 4, 64, 16}, 4096, 1, 16, budget);
    bench_decode(k, kind, {2, 7, 64, 64}, 8000, 1, 24, budget);
    bench_decode(k, kind, {8, 2, 128, 32}, 8000, 1, 8, budget);
  }
  return 0;
}
