// Attention kernels of every level this machine has, against double precision over the keys and values as stored.
//
// Knows: the mathematics of attention, and the record layout (to read the store back). Does not know: how a level
// computes. Slots that hold no token are filled with bytes that read as NaN.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../src/attention_layout.h"
#include "levels.h"

using namespace lg;

static int failures = 0;

struct Case {
  int32_t dim, page_size, group, window;
  float softcap;
};

static float from_bf16(const uint8_t* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  const uint32_t bits = uint32_t{h} << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// x times the Hadamard matrix of each block: H of 2n is (H H; H -H) of n.
static std::vector<double> unrotate(std::vector<double> x) {
  const int32_t dim = int32_t(x.size()), block = rotation_block(dim);
  for (int32_t half = 1; half < block; half *= 2)
    for (int32_t i = 0; i < dim; ++i) {
      if (i & half) continue;
      const double a = x[i], b = x[i + half];
      x[i] = a + b;
      x[i + half] = a - b;
    }
  for (int32_t i = 0; i < dim; ++i) x[i] *= double(kSigns.of[i]) / block;
  return x;
}

// One head of one sequence: tokens written into scattered pages.
class Store {
 public:
  Store(const Kernels& k, int32_t kind, const Case& c, int64_t tokens, bool scattered, uint8_t garbage)
      : kernels(k), kv(kv_layout(kind, kHeads, c.dim, c.page_size)), table((tokens + c.page_size - 1) / c.page_size) {
    const int64_t pages = 2 * int64_t(table.size()) + 3;
    raw.assign(size_t(round_up(pages, kv.extent_pages()) * kv.page_bytes + kAlign), garbage);
    for (size_t i = 0; i < table.size(); ++i) table[i] = int32_t(scattered ? (i * 7919 + 5) % size_t(pages) : i);
    if (scattered)  // 7919 is prime to the number of pages unless it is a multiple
      for (size_t i = 0; i < table.size(); ++i)
        for (size_t j = 0; j < i; ++j)
          if (table[i] == table[j]) std::abort();
  }
  uint8_t* base() { return raw.data() + (kAlign - reinterpret_cast<uintptr_t>(raw.data()) % kAlign) % kAlign; }
  void write(int64_t token, const float* k, const float* v) {
    const int64_t slot = int64_t{table[token / kv.page_size]} * kv.page_size + token % kv.page_size;
    kernels.kv_write(&kv, base(), int32_t(slot), kHead, k, v);
  }
  const uint8_t* record(int64_t token) {
    const int64_t bytes = record_shape(kv.kind, kv.dim).bytes;
    return base() + kv.place(table[token / kv.page_size], kHead) + token % kv.page_size / kRecord * bytes;
  }
  std::vector<double> key(int64_t token);
  std::vector<double> value(int64_t token);

  static constexpr int32_t kHeads = 2, kHead = 1;
  const Kernels& kernels;
  KvLayout kv;
  std::vector<int32_t> table;
  std::vector<uint8_t> raw;
};

std::vector<double> Store::key(int64_t token) {
  const uint8_t* r = record(token);
  const RecordShape s = record_shape(kv.kind, kv.dim);
  const int64_t t = token % kRecord;
  std::vector<double> x(kv.dim);
  for (int64_t d = 0; d < kv.dim; ++d) {
    if (kv.kind == KV_INT8)
      x[d] = (int(r[16 * (d / 4 * 4) + 4 * t + d % 4]) - 128) * double(from_bf16(r + s.scales + 2 * t));
    if (kv.kind == KV_INT4) {
      const int byte = r[64 * (d / 8) + 4 * t + d % 4], low = d % 8 < 4 ? byte & 15 : byte >> 4;
      const int upper = r[64 * (kv.dim / 8) + 64 * (d / 16) + 4 * t + d % 4] >> (d % 16 / 4 * 2) & 3;
      x[d] = (low + 16 * upper - 32) * double(from_bf16(r + s.scales + 2 * t));
    }
    if (kv.kind == KV_BF16) x[d] = from_bf16(r + 64 * (d / 2) + 4 * t + 2 * (d % 2));
  }
  return kv.kind == KV_BF16 ? x : unrotate(x);
}

std::vector<double> Store::value(int64_t token) {
  const RecordShape s = record_shape(kv.kind, kv.dim);
  const uint8_t *r = record(token), *v = r + s.values;
  const int64_t t = token % kRecord;
  std::vector<double> x(kv.dim);
  for (int64_t d = 0; d < kv.dim; ++d) {
    if (kv.kind == KV_INT8)
      x[d] = int8_t(v[256 * (d / 16) + 64 * (t / 4) + 4 * (d % 16) + t % 4]) * double(from_bf16(r + s.scales + 32 + 2 * t));
    if (kv.kind == KV_INT4) {
      const int byte = v[256 * (d / 32) + 64 * (t / 4) + 4 * (d % 16) + t % 4], u = d % 32 < 16 ? byte & 15 : byte >> 4;
      x[d] = kLevels[u] * double(from_bf16(r + s.scales + 32 + 2 * t)) + from_bf16(r + s.scales + 64 + 2 * t);
    }
    if (kv.kind == KV_BF16) x[d] = from_bf16(v + 512 * (d / 16) + 64 * (t / 2) + 4 * (d % 16) + 2 * (t % 2));
  }
  return kv.kind == KV_INT4 ? unrotate(x) : x;
}

using Vectors = std::vector<std::vector<double>>;

static std::vector<double> attention(const Case& c, const float* q, double scale, const Vectors& keys,
                                     const Vectors& values, int64_t position) {
  const int64_t first = c.window > 0 && position >= c.window ? position - c.window + 1 : 0;
  std::vector<double> p(position + 1 - first), out(c.dim, 0.0);
  double top = -1e300, sum = 0;
  for (int64_t t = first; t <= position; ++t) {
    double s = 0;
    for (int32_t d = 0; d < c.dim; ++d) s += double(q[d]) * keys[t][d];
    s *= scale;
    if (c.softcap > 0) s = c.softcap * std::tanh(s / c.softcap);
    p[t - first] = s;
    top = std::max(top, s);
  }
  for (double& x : p) sum += x = std::exp(x - top);
  for (int64_t t = first; t <= position; ++t)
    for (int32_t d = 0; d < c.dim; ++d) out[d] += p[t - first] / sum * values[t][d];
  return out;
}

// What a sequence holds and asks, the same for every kind and level.
struct World {
  Case c;
  int64_t tokens;
  double scale;
  std::vector<float> k, v, q;  // [tokens][dim], [tokens][dim], [tokens][group][dim]
  World(const Case& shape, int64_t n) : c(shape), tokens(n), scale(1 / std::sqrt(double(shape.dim))) {
    Random random(uint64_t(n * 1000 + shape.dim));
    k = random.normal(n * c.dim, 1.0f);
    v = random.normal(n * c.dim, 1.0f);
    q = random.normal(n * c.group * c.dim, 1.5f);
    for (int64_t t = 0; t < n; ++t) k[t * c.dim + 3] += 6.0f;      // a channel that stands out, as real keys have
    for (int32_t d = 0; d < c.dim; ++d) v[d] *= 0.05f;              // a first token that takes weight and gives little
    for (int64_t t = 0; t < n; ++t) {
      const float loud = float(0.2 + random.uniform() * 2);
      for (int32_t d = 0; d < c.dim; ++d) v[t * c.dim + d] = v[t * c.dim + d] * loud + 0.3f;
    }
  }
  const float* query(int64_t row, int32_t head) const { return q.data() + (row * c.group + head) * c.dim; }
};

static void fill(Store& s, const World& w) {
  for (int64_t t = 0; t < w.tokens; ++t) s.write(t, &w.k[t * w.c.dim], &w.v[t * w.c.dim]);
}

// Rows [first, last) of the world by the kernel; splits > 1: through partials of so many ranges of tiles.
static std::vector<float> run(const Kernels& k, Store& s, const World& w, int64_t first, int64_t last, int32_t splits) {
  const Case& c = w.c;
  const int64_t rows = last - first, record = partial_floats(c.dim), stride = c.group * c.dim + 16;
  std::vector<uint8_t> raw_q(size_t(rows * c.group * s.kv.q_bytes + kAlign));
  std::vector<uint8_t> raw_scratch(size_t(attend_scratch_bytes(c.dim, c.group) + kAlign), 0xff);
  uint8_t* q = raw_q.data() + (kAlign - reinterpret_cast<uintptr_t>(raw_q.data()) % kAlign) % kAlign;
  uint8_t* scratch = raw_scratch.data() + (kAlign - reinterpret_cast<uintptr_t>(raw_scratch.data()) % kAlign) % kAlign;
  std::vector<int32_t> positions(rows);
  for (int64_t r = 0; r < rows; ++r) {
    positions[r] = int32_t(first + r);
    for (int32_t j = 0; j < c.group; ++j)
      k.prepare_q(&s.kv, w.query(first + r, j), float(w.scale), q + (r * c.group + j) * s.kv.q_bytes);
  }
  const AttendArgs a = {&s.kv, s.base(), s.table.data(), Store::kHead, c.group, c.window, c.softcap};
  const int32_t tiles = int32_t((last + kTile - 1) / kTile);
  std::vector<float> wide(size_t(rows * stride), 777.0f), out;
  if (splits == 1) {
    k.attend(&a, q, c.group * s.kv.q_bytes, positions.data(), int32_t(rows), 0, tiles, nullptr, wide.data(), stride,
             scratch);
  } else {
    std::vector<float> all(size_t(rows * c.group * tiles * record));
    for (int32_t part = 0; part < splits; ++part) {
      const int32_t begin = tiles * part / splits, end = tiles * (part + 1) / splits, n = end - begin;
      if (n == 0) continue;
      std::vector<float> some(size_t(rows * c.group * n * record), NAN);
      k.attend(&a, q, c.group * s.kv.q_bytes, positions.data(), int32_t(rows), begin, end, some.data(), nullptr, 0,
               scratch);
      for (int64_t i = 0; i < rows * c.group; ++i)
        std::memcpy(&all[(i * tiles + begin) * record], &some[i * n * record], size_t(n * record) * 4);
    }
    std::vector<float> raw_states(size_t(c.group * record), NAN);
    for (int64_t r = 0; r < rows; ++r) {
      k.merge(&all[r * c.group * tiles * record], c.group, tiles, c.dim, true, raw_states.data());
      k.conclude(raw_states.data(), c.group, c.dim, &wide[r * stride]);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    out.insert(out.end(), &wide[r * stride], &wide[r * stride] + c.group * c.dim);
    for (int64_t i = c.group * c.dim; i < stride; ++i)
      if (wide[r * stride + i] != 777.0f) ++failures, std::printf("FAIL wrote past a row\n");
  }
  return out;
}

static const char* kind_name(int32_t kind) { return kind == KV_BF16 ? "bf16" : kind == KV_INT8 ? "int8" : "int4"; }

// Bounds in units of the typical size of a value: against double precision over what is stored (the largest error, and
// the root mean square of the worst head), and over what was given. int8 and int4 round queries and weights to eight
// bits (weights to seven on AVX2); int4 keeps six bits of a key and four of a value.
struct Bounds {
  double stored_max, stored_rms, true_rms;
};

static Bounds bounds(int32_t kind) {
  if (kind == KV_BF16) return {1e-5, 2e-6, 0.005};
  if (kind == KV_INT8) return {0.1, 0.015, 0.02};
  return {0.15, 0.015, 0.16};
}

struct Errors {
  double stored_max = 0, stored_rms = 0, true_rms = 0;
};

static void same(const Kernels& k, const char* what, const World& w, int32_t kind, const std::vector<float>& a,
                 const float* b) {
  if (std::memcmp(a.data(), b, a.size() * 4) == 0) return;
  if (++failures < 30)
    std::printf("FAIL %s %s: %s differs, dim %d page %d group %d window %d cap %g tokens %lld\n", k.name,
                kind_name(kind), what, w.c.dim, w.c.page_size, w.c.group, w.c.window, w.c.softcap,
                (long long)w.tokens);
}

// Errors against the typical size of a value.
static void accuracy(Store& s, const World& w, const std::vector<float>& last_row, Errors& e) {
  Vectors keys, values, true_keys, true_values;
  double size = 0, stored = 0, exact = 0;
  const int32_t dim = w.c.dim;
  for (int64_t t = 0; t < w.tokens; ++t) {
    keys.push_back(s.key(t));
    values.push_back(s.value(t));
    true_keys.emplace_back(&w.k[t * dim], &w.k[t * dim] + dim);
    true_values.emplace_back(&w.v[t * dim], &w.v[t * dim] + dim);
    for (double x : true_values.back()) size += x * x;
  }
  size = std::sqrt(size / double(w.tokens * dim));
  for (int32_t j = 0; j < w.c.group; ++j) {
    const auto a = attention(w.c, w.query(w.tokens - 1, j), w.scale, keys, values, w.tokens - 1);
    const auto b = attention(w.c, w.query(w.tokens - 1, j), w.scale, true_keys, true_values, w.tokens - 1);
    for (int32_t d = 0; d < dim; ++d) {
      const double got = last_row[j * dim + d];
      const double x = std::isfinite(got) ? std::fabs(got - a[d]) / size : 1e9;
      e.stored_max = std::max(e.stored_max, x);
      stored += x * x;
      exact += (got - b[d]) * (got - b[d]) / (size * size);
    }
  }
  e.stored_rms = std::max(e.stored_rms, std::sqrt(stored / (w.c.group * dim)));
  e.true_rms = std::max(e.true_rms, std::sqrt(exact / (w.c.group * dim)));
}

static void check(const Kernels& k, int32_t kind, const World& w, Errors& e) {
  Store s(k, kind, w.c, w.tokens, true, 0xff), plain(k, kind, w.c, w.tokens, false, 0x7f);
  fill(s, w);
  fill(plain, w);
  const int64_t n = w.tokens, width = w.c.group * w.c.dim;
  const std::vector<float> last = run(k, s, w, n - 1, n, 1);
  accuracy(s, w, last, e);
  same(k, "a contiguous store with other garbage", w, kind, last, run(k, plain, w, n - 1, n, 1).data());
  for (int32_t splits = 2; splits <= 3; ++splits)
    same(k, "partials and merge", w, kind, last, run(k, s, w, n - 1, n, splits).data());
  const int64_t many = std::min<int64_t>(n, w.c.group > 4 ? 21 : 45);
  const std::vector<float> rows = run(k, s, w, n - many, n, 1);
  same(k, "the last of many rows", w, kind, last, &rows[(many - 1) * width]);
  same(k, "many rows through partials", w, kind, rows, run(k, s, w, n - many, n, 2).data());
  for (int64_t r = 0; r + 1 < many; r += 7)
    same(k, "a row alone", w, kind, run(k, s, w, n - many + r, n - many + r + 1, 1), &rows[r * width]);
  // A row sees nothing of the tokens after it: not even whether they are there.
  const int64_t early = n - many;
  Store before(k, kind, w.c, n, true, 0xff);
  for (int64_t t = 0; t <= early; ++t) before.write(t, &w.k[t * w.c.dim], &w.v[t * w.c.dim]);
  same(k, "a row before later tokens exist", w, kind, run(k, before, w, early, early + 1, 1), &rows[0]);
}

// Squared error over square of int4 values as stored. Sixteen even levels from the lowest to the highest value lose
// 0.0080 of normally distributed heads of 64.
static double value_loss(const Kernels& k, const Case& c, const std::vector<float>& v) {
  const int64_t tokens = int64_t(v.size()) / c.dim;
  Store s(k, KV_INT4, c, tokens, true, 0xff);
  double lost = 0, all = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    s.write(t, &v[t * c.dim], &v[t * c.dim]);
    const std::vector<double> kept = s.value(t);
    for (int32_t d = 0; d < c.dim; ++d) {
      lost += (kept[d] - v[t * c.dim + d]) * (kept[d] - v[t * c.dim + d]);
      all += double(v[t * c.dim + d]) * v[t * c.dim + d];
    }
  }
  return lost / all;
}

static void check_int4_values(const Kernels& k) {
  const auto within = [&](const char* what, double loss, double most) {
    if (!(loss <= most)) ++failures, std::printf("FAIL %s int4 values, %s: %.2g lost, %.2g allowed\n", k.name, what, loss, most);
  };
  Random random(7);
  const Case head{64, 16, 1, 0, 0}, odd{80, 16, 1, 0, 0}, short_head{8, 16, 1, 0, 0};
  within("normal, 64", value_loss(k, head, random.normal(64 * 2000, 1.0f)), 0.0064);
  within("normal, 80", value_loss(k, odd, random.normal(80 * 2000, 1.0f)), 0.0070);
  within("normal, 8", value_loss(k, short_head, random.normal(8 * 2000, 1.0f)), 0.003);
  for (const float size : {1e-28f, 1e34f})
    within("tiny or huge", value_loss(k, head, random.normal(64 * 50, size)), 0.01);
  std::vector<float> v(64, 0.0f);
  v[5] = 3.0f;  // rotated: two values only
  within("one channel", value_loss(k, head, v), 1e-4);
  for (int32_t d = 0; d < 64; ++d) v[d] = kSigns.of[d] * 2.0f;  // rotated: one channel
  within("rotated to one channel", value_loss(k, head, v), 1e-4);
  Store s(k, KV_INT4, head, 3, true, 0xff);
  std::vector<float> none(64, 0.0f), bad(64, 1.0f), faint(64, 1e-38f);
  bad[9] = NAN;
  s.write(0, none.data(), none.data());
  s.write(1, bad.data(), bad.data());
  s.write(2, faint.data(), faint.data());
  for (int32_t d = 0; d < 64; ++d)
    if (s.value(0)[d] != 0.0 || !std::isnan(s.value(1)[d]) || !(std::fabs(s.value(2)[d]) < 1e-30))
      ++failures, std::printf("FAIL %s int4 values: zeros, a NaN or next to nothing, dim %d\n", k.name, d);
}

static const Case kCases[] = {
    {64, 16, 3, 0, 0},    {64, 32, 3, 0, 0},   {64, 64, 1, 0, 0},     {64, 64, 8, 100, 0},  {64, 16, 3, 17, 0},
    {64, 16, 2, 300, 20}, {128, 16, 4, 0, 0},  {128, 32, 7, 0, 50},   {128, 64, 5, 256, 0}, {8, 16, 1, 0, 0},
    {8, 32, 6, 5, 0},     {16, 16, 3, 0, 0},   {32, 64, 9, 0, 0},     {80, 16, 2, 0, 0},    {80, 64, 12, 0, 0},
    {96, 32, 1, 1, 0},    {96, 16, 6, 40, 30}, {256, 16, 4, 512, 50}, {256, 64, 1, 0, 0},   {24, 16, 97, 0, 0},
};

// Under the sanitizers, where a full turn takes minutes, each case meets two lengths, one after the other all of them.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kEvery = 4;
#else
constexpr size_t kEvery = 1;
#endif

int main() {
  for (const Level& level : levels()) {
    Kernels k{};
    k.name = level.name;
    level.fill_attention(&k);
    check_int4_values(k);
    for (int32_t kind : {KV_INT8, KV_BF16, KV_INT4}) {
      Errors e;
      size_t turn = 0;
      for (const Case& c : kCases) {
        ++turn;
        for (int64_t tokens : {1, 15, 16, 17, 255, 256, 257, 600})
          if (turn++ % kEvery == 0) check(k, kind, World(c, tokens), e);
      }
      const Bounds b = bounds(kind);
      const bool good = e.stored_max <= b.stored_max && e.stored_rms <= b.stored_rms && e.true_rms <= b.true_rms;
      if (!good) ++failures, std::printf("FAIL %s %s: errors beyond their bounds\n", k.name, kind_name(kind));
      std::printf("attention %s %s: against the stored values max %.2g rms %.2g; against the true ones rms %.2g; %s\n",
                  k.name, kind_name(kind), e.stored_max, e.stored_rms, e.true_rms, failures ? "FAILED" : "ok");
    }
  }
  return failures != 0;
}
