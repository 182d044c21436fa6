// A context: the threads, the instruction set, and the weights packed for them.
//
// Knows: how a weight is cut among threads, and packs it in parallel. Does not know: what a step does with weights.
#pragma once
#include <atomic>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "../legato.h"
#include "choose.h"
#include "dispatch.h"
#include "kernels.h"
#include "memory.h"
#include "pool.h"
#include "topology.h"

namespace lg {

struct Vector {
  const float* data;
  int64_t count;
};

struct Table {
  int32_t kind;
  const uint8_t* data;
  int64_t rows, cols, row_bytes;
};

enum class HandleKind { kVector, kLinear, kTable };

struct Handle {
  HandleKind kind;
  int32_t index;
};

struct Context {
  Context(const char* isa, int32_t threads);

  int32_t pack_vector(const float* values, int64_t count);
  int32_t pack_linear(int32_t kind, int64_t cols, const lg_part* parts, int32_t num_parts, const float* bias);
  int32_t pack_table(int32_t kind, const uint8_t* data, int64_t data_bytes, int64_t rows, int64_t cols);

  const Vector& vector(int32_t handle) const { return vectors_[find(handle, HandleKind::kVector)]; }
  const PackedLinear& linear(int32_t handle) const { return linears_[find(handle, HandleKind::kLinear)]; }
  const Table& table(int32_t handle) const { return tables_[find(handle, HandleKind::kTable)]; }

  const Topology topology;
  const Kernels kernels;
  Pool pool;
  const std::string placement;
  const int64_t owner_pid;
  std::atomic<bool> busy{false};
  Arena weights{"the packed weights"};
  ChoiceScratch choice_scratch;

 private:
  int32_t find(int32_t handle, HandleKind kind) const;
  int32_t add(HandleKind kind, size_t index);
  const float* pack_bias(const PackedLinear& w, const float* bias);

  std::vector<Handle> handles_;
  std::deque<Vector> vectors_;
  std::deque<PackedLinear> linears_;
  std::deque<Table> tables_;
};

// Units of work of a linear: blocks of 16 outputs, or pairs of blocks where it is gated.
inline int32_t linear_units(const PackedLinear& w) {
  const int32_t rows = w.gated ? w.rows / 2 : w.rows;
  return static_cast<int32_t>(round_up(rows, kLanes) / kLanes);
}

// Worker `id` of `count` owns units [share(units, id, count), share(units, id + 1, count)).
inline int32_t share(int64_t units, int64_t id, int64_t count) { return static_cast<int32_t>(units * id / count); }

int64_t kind_block(int32_t kind);
int64_t kind_block_bytes(int32_t kind);

}  // namespace lg
