// How fast this machine reads memory the way a step reads weights: see probe.h.
#include "probe.h"

#include <chrono>
#include <cstring>

namespace lg {
namespace {

constexpr int64_t kLine = 64;

struct ReadJob {
  uint8_t* data;
  int64_t lines;
  int32_t readers;
  int32_t passes;
  int64_t* pass_ns;
  std::atomic<uint64_t> sink{0};
};

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

typedef uint64_t Pair __attribute__((vector_size(16)));

// Two lines a turn in four chains: more loads in flight than memory can answer.
uint64_t read_lines(const uint8_t* p, int64_t lines) {
  Pair a = {}, b = {}, c = {}, d = {};
  const Pair* at = reinterpret_cast<const Pair*>(p);
  for (int64_t i = 0; i + 1 < lines; i += 2, at += 8) {
    a ^= at[0] ^ at[4];
    b ^= at[1] ^ at[5];
    c ^= at[2] ^ at[6];
    d ^= at[3] ^ at[7];
  }
  a ^= b ^ c ^ d;
  return a[0] ^ a[1];
}

void read_share(void* argument, Worker& worker) {
  ReadJob& job = *static_cast<ReadJob*>(argument);
  const bool reads = worker.id < job.readers;
  const int64_t begin = job.lines * worker.id / job.readers, end = job.lines * (worker.id + 1) / job.readers;
  if (reads) std::memset(job.data + begin * kLine, 1, static_cast<size_t>((end - begin) * kLine));  // touched by its reader
  for (int32_t pass = 0; pass < job.passes; ++pass) {
    worker.barrier();
    const int64_t start = now_ns();
    if (reads) job.sink ^= read_lines(job.data + begin * kLine, end - begin);
    worker.barrier();
    if (worker.id == 0) job.pass_ns[pass] = now_ns() - start;
  }
}

}  // namespace

void read_probe(Pool& pool, int64_t bytes, int32_t readers, int32_t passes, int64_t* pass_ns) {
  const Region region(bytes, "measuring how fast memory is read");
  ReadJob job;
  job.data = region.data();
  job.lines = bytes / kLine;
  job.readers = readers;
  job.passes = passes;
  job.pass_ns = pass_ns;
  pool.run(read_share, &job);
}

}  // namespace lg
