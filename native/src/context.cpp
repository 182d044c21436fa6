// A context: see context.h.
//
// Knows: how a weight is cut among threads, and packs it in parallel. Does not know: what a step does with weights.
#include "context.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "status.h"

namespace lg {
namespace {

// Values and bytes of one record of a file's row; sizes as GGUF and safetensors define them.
struct Block {
  int32_t values, bytes;
};
constexpr Block kBlocks[W_KINDS] = {
    {1, 4}, {1, 2}, {1, 2}, {32, 34}, {32, 18}, {32, 20}, {32, 22}, {32, 24}, {256, 144}, {256, 176}, {256, 210},
};

constexpr int64_t kMaxRows = int64_t{1} << 30;
constexpr int64_t kMaxCols = int64_t{1} << 24;

int64_t checked_row_bytes(int32_t kind, int64_t cols) {
  require(kind >= 0 && kind < W_KINDS, "unknown weight kind");
  require(cols > 0 && cols <= kMaxCols && cols % kBlocks[kind].values == 0, "columns are not whole blocks of the format");
  return cols / kBlocks[kind].values * kBlocks[kind].bytes;
}

// One packing job. Workers own whole blocks of the destination, the very ones they will read in a step.
struct PackJob {
  int32_t kind;
  int64_t cols, row_bytes;
  const lg_part* parts;
  int32_t num_parts;
  int32_t units;
  bool gated;
  uint8_t* out;
};

void pack_share(void* argument, Worker& worker) {
  const PackJob& job = *static_cast<const PackJob*>(argument);
  const int64_t begin = int64_t{share(job.units, worker.id, worker.count)} * kLanes;
  const int64_t end = int64_t{share(job.units, worker.id + 1, worker.count)} * kLanes;
  int64_t next[2] = {0, 0};  // where a part's rows begin; gate and up count apart
  for (int32_t i = 0; i < job.num_parts; ++i) {
    const lg_part& part = job.parts[i];
    int64_t& row = next[std::max(part.slot, 0)];
    const int64_t first = std::max(begin, row), last = std::min(end, row + part.rows);
    if (first < last)
      pack_rows(job.kind, part.data + (first - row) * job.row_bytes, last - first, job.cols, job.out, first, part.slot);
    row += part.rows;
  }
}

}  // namespace

int64_t kind_block(int32_t kind) { return kind >= 0 && kind < W_KINDS ? kBlocks[kind].values : 0; }
int64_t kind_block_bytes(int32_t kind) { return kind >= 0 && kind < W_KINDS ? kBlocks[kind].bytes : 0; }

Context::Context(const char* isa, int32_t threads)
    : topology(read_topology("")),
      kernels(select_kernels(isa)),
      pool(threads > 0 ? threads : topology.summary.default_threads,
           place_threads(topology, threads > 0 ? threads : topology.summary.default_threads)),
      placement(describe_placement(topology, pool.threads())),
      owner_pid(getpid()) {}

int32_t Context::find(int32_t handle, HandleKind kind) const {
  require(handle >= 0 && handle < static_cast<int32_t>(handles_.size()), "a handle that this context did not give");
  require(handles_[handle].kind == kind, "a handle of another kind of weight");
  return handles_[handle].index;
}

int32_t Context::add(HandleKind kind, size_t index) {
  handles_.push_back({kind, static_cast<int32_t>(index)});
  return static_cast<int32_t>(handles_.size()) - 1;
}

int32_t Context::pack_vector(const float* values, int64_t count) {
  require(values != nullptr && count > 0 && count <= kMaxCols, "a vector needs values");
  auto* data = reinterpret_cast<float*>(weights.take(round_up(count, kLanes) * 4));
  std::copy_n(values, count, data);
  vectors_.push_back({data, count});
  return add(HandleKind::kVector, vectors_.size() - 1);
}

int32_t Context::pack_table(int32_t kind, const uint8_t* data, int64_t data_bytes, int64_t rows, int64_t cols) {
  const int64_t row_bytes = checked_row_bytes(kind, cols);
  require(data != nullptr && rows > 0 && rows <= kMaxRows, "a table needs rows");
  require(data_bytes == rows * row_bytes, "a table's bytes do not match its shape");
  tables_.push_back({kind, data, rows, cols, row_bytes});
  return add(HandleKind::kTable, tables_.size() - 1);
}

int32_t Context::pack_linear(int32_t kind, int64_t cols, const lg_part* parts, int32_t num_parts, const float* bias) {
  const int64_t row_bytes = checked_row_bytes(kind, cols);
  require(parts != nullptr && num_parts > 0, "a linear layer needs parts");
  int64_t rows[2] = {0, 0};
  const bool gated = parts[0].slot >= 0;
  for (int32_t i = 0; i < num_parts; ++i) {
    const lg_part& part = parts[i];
    require(part.slot >= -1 && part.slot <= 1 && (part.slot >= 0) == gated, "parts mix gated and plain");
    require(part.data != nullptr && part.rows > 0 && part.rows <= kMaxRows, "a part needs rows");
    require(part.data_bytes == part.rows * row_bytes, "a part's bytes do not match its shape");
    rows[std::max(part.slot, 0)] += part.rows;
  }
  require(!gated || rows[0] == rows[1], "gate and up have different numbers of rows");
  require(rows[0] + rows[1] <= kMaxRows, "too many output rows");

  PackedLinear w{kind, static_cast<int32_t>(rows[0] + rows[1]), static_cast<int32_t>(cols), gated, nullptr, nullptr};
  const int32_t units = linear_units(w);
  uint8_t* out = weights.take(packed_bytes(kind, int64_t{units} * kLanes * (gated ? 2 : 1), cols));
  PackJob job{kind, cols, row_bytes, parts, num_parts, units, gated, out};
  pool.run(pack_share, &job);
  w.data = out;
  w.bias = pack_bias(w, bias);
  linears_.push_back(w);
  return add(HandleKind::kLinear, linears_.size() - 1);
}

// Into block order: where gated, 16 of gate, 16 of up, and so on.
const float* Context::pack_bias(const PackedLinear& w, const float* bias) {
  if (bias == nullptr) return nullptr;
  const int32_t stride = w.gated ? 2 : 1, half = w.gated ? w.rows / 2 : w.rows;
  auto* out = reinterpret_cast<float*>(weights.take(int64_t{linear_units(w)} * kLanes * stride * 4));
  for (int32_t i = 0; i < w.rows; ++i) {
    const int32_t slot = i / half, row = i % half;
    out[(row / kLanes * stride + slot) * kLanes + row % kLanes] = bias[i];
  }
  return out;
}

}  // namespace lg
