// Operations that treat each row alone: see op_rows.h.
//
// Knows: tables, norms, activations. Does not know: weights' formats, attention.
#include "op_rows.h"

#include <algorithm>
#include <cmath>

namespace lg {

void EmbedOp::run(Step& step, Worker& worker) const {
  const lg_batch& batch = step.batch;
  float* position_row = step.scratch[worker.id].row;
  const int32_t end = share(batch.num_tokens, worker.id + 1, worker.count);
  for (int32_t r = share(batch.num_tokens, worker.id, worker.count); r < end; ++r) {
    const int64_t id = batch.input_ids[r], position = batch.positions[r];
    step.kernels->table_row(table_.kind, table_.data + id * table_.row_bytes, table_.cols, scale_, out_.row(r));
    if (positions_ != nullptr) {
      const Table& t = *positions_;
      step.kernels->table_row(t.kind, t.data + position * t.row_bytes, t.cols, 1.0f, position_row);
      step.kernels->add(out_.row(r), position_row, t.cols);
    }
    for (const RopeTable& rope : step.ropes) angles(rope, r, batch.positions[r]);
  }
}

// In double up to the rounding of the result: at position 100,000 a float angle would be off by a hundredth.
void EmbedOp::angles(const RopeTable& rope, int64_t row, int32_t position) const {
  float* cosines = rope.cos(row);
  float* sines = rope.sin(row);
  for (int64_t i = 0; i < rope.half(); ++i) {
    const double angle = position * rope.inv_freq[i];
    cosines[i] = static_cast<float>(std::cos(angle) * rope.scale);
    sines[i] = static_cast<float>(std::sin(angle) * rope.scale);
  }
}

void NormAddOp::run(Step& step, Worker& worker) const {
  const Kernels& kernels = *step.kernels;
  float* normed = step.scratch[worker.id].row;
  const int32_t tokens = step.batch.num_tokens;
  const int32_t end = share(tokens, worker.id + 1, worker.count);
  for (int32_t r = share(tokens, worker.id, worker.count); r < end; ++r) {
    norm_.apply(kernels, in_.row(r), out_.width, normed);
    kernels.add(out_.row(r), normed, out_.width);
  }
}

void GatedOp::run(Step& step, Worker& worker) const {
  const int32_t tokens = step.batch.num_tokens, width = out_.width;
  const int32_t end = share(tokens, worker.id + 1, worker.count);
  for (int32_t r = share(tokens, worker.id, worker.count); r < end; ++r) {
    const float* up = in_.row(r) + width;
    float* out = out_.row(r);
    std::copy_n(in_.row(r), width, out);
    step.kernels->activate(out, width, activation_);
    for (int32_t i = 0; i < width; ++i) out[i] *= up[i];
  }
}

}  // namespace lg
