// Threads and programs under the sanitizers: tickets, barriers, sleeping workers, and one decoder layer through the
// public interface, in chunks of several sizes, which must agree to the bit.
//
// Knows: legato.h, the pool. Does not know: what the right numbers are (the Python tests compare with the reference).
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "../legato.h"
#include "../src/kernels.h"
#include "../src/pool.h"
#include "levels.h"

static int failures = 0;

static void expect(bool ok, const char* what) {
  if (ok) return;
  ++failures;
  std::printf("FAIL %s: %s\n", what, lg_error());
}

// ---------------------------------------------------------------- the pool
struct Tally {
  static constexpr int kPhases = 50, kTickets = 37;
  std::atomic<int> taken[kPhases][kTickets] = {};
  std::atomic<bool> ordered{true};
  std::atomic<int> arrived[kPhases] = {};
};

static void count_tickets(void* argument, lg::Worker& worker) {
  Tally& tally = *static_cast<Tally*>(argument);
  for (int phase = 0; phase < Tally::kPhases; ++phase) {
    if (phase > 0) {
      if (tally.arrived[phase - 1] != worker.count) tally.ordered = false;
      for (int owner = 0; owner < worker.count; ++owner)
        for (int64_t t; (t = worker.take((worker.id + owner) % worker.count)) < Tally::kTickets;) ++tally.taken[phase][t];
    }
    ++tally.arrived[phase];
    worker.barrier();
  }
}

static void test_pool(int threads) {
  lg::Pool pool(threads, {});
  for (int job = 0; job < 20; ++job) {
    Tally tally;
    pool.run(count_tickets, &tally);
    bool each_once = true;
    for (int phase = 1; phase < Tally::kPhases; ++phase)
      for (const auto& times : tally.taken[phase]) each_once &= times == threads;  // once for each owner's counter
    expect(tally.ordered, "a worker passed a barrier before all had arrived");
    expect(each_once, "a ticket was lost or given twice");
    if (job % 5 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // long enough to fall asleep
  }
}

// ---------------------------------------------------------------- a decoder of one layer
struct Sizes {
  int32_t width, heads, kv_heads, dim, mlp, vocab, threads, kv;
};

class Model {
 public:
  Model(const char* isa, const Sizes& s) : s_(s), random_(7) {
    expect(lg_context_create(isa, s.threads, &context_) == LG_OK, "context");
    const int32_t qkv = (s.heads + 2 * s.kv_heads) * s.dim, q = s.heads * s.dim;
    table_ = random_.normal(int64_t{s.vocab} * s.width, 1.0f);
    int32_t table, norm, head_norm;
    expect(lg_pack_table(context_, lg::W_F32, bytes(table_), table_.size() * 4, s.vocab, s.width, &table) == LG_OK, "table");
    norm = vector(s.width);
    head_norm = vector(s.dim);
    widths_ = {s.width, qkv, q, s.mlp};
    slots_ = {0, 1, 2, 1};
    ops_.push_back(op(LG_EMBED, 0, 0, {table}));
    ops_.push_back(normed(op(LG_LINEAR, 0, 1, {linear(qkv, s.width, false)}), norm));
    ops_.push_back(op(LG_ATTENTION, 1, 2, {}));
    ops_.push_back(op(LG_LINEAR, 2, 0, {linear(s.width, q, false)}, lg::EP_ADD));
    ops_.push_back(normed(op(LG_LINEAR, 0, 3, {linear(2 * s.mlp, s.width, true)}, lg::EP_GATED_SILU), norm));
    ops_.push_back(op(LG_LINEAR, 3, 0, {linear(s.width, s.mlp, false)}, lg::EP_ADD));
    ops_.push_back(normed(op(LG_LOGITS, 0, 0, {linear(s.vocab, s.width, false)}), norm));
    attention_ = {s.heads, s.kv_heads, s.dim, 100, 0, LG_RMS_NORM, head_norm, head_norm, 1e-5f, 0.125f, 30.0f, 0};
    for (int i = 0; i < s.dim / 2; ++i) inv_freq_.push_back(1.0f / float(1 + i));
    rope_ = {inv_freq_.data(), s.dim / 2, 0, 1.0};
    lg_program_spec spec{ops_.data(),    &attention_, &rope_, widths_.data(), slots_.data(), int32_t(ops_.size()), 1, 1,
                         int32_t(widths_.size()), 1, 1, s.kv, kPages, kPageSize, kMaxTokens, 4, s.vocab};
    expect(lg_program_create(context_, &spec, &program_) == LG_OK, "program");
  }
  ~Model() {
    lg_program_free(program_);
    lg_context_free(context_);
  }

  // Logits of rows [0, length) of one sequence, `chunk` rows a step.
  std::vector<float> run(int32_t length, int32_t chunk) {
    const int64_t stride = lg::round_up(s_.vocab, 16);
    std::vector<float> all;
    std::vector<int32_t> pages;
    for (int32_t p = 0; p < kPages; ++p) pages.push_back(kPages - 1 - p);
    for (int32_t at = 0; at < length; at += chunk) {
      const int32_t rows = std::min(chunk, length - at), cu[2] = {0, rows}, end = at + rows;
      std::vector<int32_t> ids, positions, slots, wanted;
      for (int32_t i = at; i < end; ++i) {
        ids.push_back(i * 7 % s_.vocab);
        positions.push_back(i);
        slots.push_back(pages[i / kPageSize] * kPageSize + i % kPageSize);
        wanted.push_back(i - at);
      }
      const lg_batch batch{ids.data(),   positions.data(), slots.data(), cu, &end, pages.data(), wanted.data(), rows, 1,
                           int32_t(pages.size()), rows};
      expect(lg_step(program_, &batch) == LG_OK, "step");
      for (int32_t r = 0; r < rows; ++r) {
        const float* logits = lg_logits(program_) + r * stride;
        const int32_t best = lg_argmax(program_)[r];
        expect(best >= 0 && best < s_.vocab, "argmax");
        for (int32_t i = 0; i < s_.vocab; ++i) expect(logits[i] <= logits[best], "argmax is not the largest");
        all.insert(all.end(), logits, logits + s_.vocab);
      }
    }
    return all;
  }

 private:
  static constexpr int32_t kPages = 24, kPageSize = 16, kMaxTokens = 320;

  template <class T>
  static const uint8_t* bytes(const std::vector<T>& x) {
    return reinterpret_cast<const uint8_t*>(x.data());
  }
  int32_t vector(int32_t n) {
    const std::vector<float> x = random_.normal(n, 1.0f);
    int32_t handle = -1;
    expect(lg_pack_vector(context_, x.data(), n, &handle) == LG_OK, "vector");
    return handle;
  }
  // 8-bit blocks of 32: a half-precision scale of 2^-8 and random bytes.
  int32_t linear(int32_t rows, int32_t cols, bool gated) {
    std::vector<uint8_t> data(size_t(rows) * cols / 32 * 34);
    for (size_t i = 0; i < data.size(); ++i) data[i] = i % 34 == 0 ? 0 : i % 34 == 1 ? 0x1c : uint8_t(random_.below(256));
    const int64_t half = data.size() / 2;
    const lg_part whole[1] = {{data.data(), int64_t(data.size()), rows, -1, 0}};
    const lg_part pair[2] = {{data.data(), half, rows / 2, 0, 0}, {data.data() + half, half, rows / 2, 1, 0}};
    int32_t handle = -1;
    expect(lg_pack_linear(context_, lg::W_Q8_0, cols, gated ? pair : whole, gated ? 2 : 1, nullptr, &handle) == LG_OK,
           "linear");
    return handle;
  }
  static lg_op op(int32_t kind, int32_t in, int32_t out, std::vector<int32_t> weights, int32_t epilogue = 0) {
    lg_op o{kind, 0, in, out, LG_NO_NORM, -1, -1, 0, kind == LG_EMBED ? 1.0f : 0.0f, epilogue, {}, int32_t(weights.size()), 0};
    std::copy(weights.begin(), weights.end(), o.weights);
    return o;
  }
  static lg_op normed(lg_op o, int32_t weight) {
    o.norm = LG_RMS_NORM;
    o.norm_weight = weight;
    o.eps = 1e-5f;
    return o;
  }

  const Sizes s_;
  Random random_;
  lg_context* context_ = nullptr;
  lg_program* program_ = nullptr;
  std::vector<float> table_, inv_freq_;
  std::vector<int32_t> widths_, slots_;
  std::vector<lg_op> ops_;
  lg_attention attention_{};
  lg_rope rope_{};
};

static void test_chunks(const char* isa, Sizes s) {
  const int32_t length = 290;
  Model model(isa, s);
  const std::vector<float> whole = model.run(length, length);
  for (int32_t chunk : {1, 4, 5, 64}) {
    const int32_t rows = chunk == 1 ? 40 : length;
    const std::vector<float> again = model.run(rows, chunk);
    expect(memcmp(again.data(), whole.data(), again.size() * 4) == 0, "chunks change bits");
  }
  s.threads = 5 - s.threads;
  const std::vector<float> other = Model(isa, s).run(length, 100);
  expect(memcmp(other.data(), whole.data(), other.size() * 4) == 0, "threads change bits");
}

static void test_refusals() {
  lg_context* context = nullptr;
  expect(lg_context_create("nonsense", 1, &context) == LG_UNSUPPORTED && context == nullptr, "unknown isa");
  expect(lg_context_create("auto", -3, &context) == LG_BAD_ARGUMENT && context == nullptr, "negative threads");
  expect(lg_context_create("auto", 1, &context) == LG_OK, "context");
  lg_program_spec nothing{};
  lg_program* program = nullptr;
  expect(lg_program_create(context, &nothing, &program) == LG_BAD_ARGUMENT && program == nullptr, "empty program");
  int32_t handle = -1;
  expect(lg_pack_linear(context, 99, 32, nullptr, 0, nullptr, &handle) == LG_BAD_ARGUMENT, "unknown format");
  lg_context_free(context);
}

int main() {
  for (int threads : {1, 2, 3, 8}) test_pool(threads);
  test_refusals();
  for (int32_t level = 0; level < lg_isa_count(); ++level) {
    if (*lg_isa_obstacle(level)) continue;
    for (int32_t kv : {lg::KV_BF16, lg::KV_INT8, lg::KV_INT4})
      test_chunks(lg_isa_name(level), {96, 6, 2, 32, 64, 75, kv == lg::KV_INT8 ? 2 : 4, kv});
  }
  std::printf(failures ? "%d failures\n" : "ok\n", failures);
  return failures != 0;
}
