// Attention of one layer: see op_attention.h.
//
// Knows: heads, pages' addresses, whose turn it is to merge. Does not know: how pages hold numbers.
#include "op_attention.h"

#include <algorithm>

#include "context.h"

namespace lg {
namespace {

// A page's bytes are written by one worker in row order: formats may pack neighbouring tokens into one byte.
int32_t page_boundary(const lg_batch& batch, int32_t page_size, int32_t row) {
  while (row > 0 && row < batch.num_tokens &&
         batch.slot_mapping[row - 1] / page_size == batch.slot_mapping[row] / page_size)
    ++row;
  return row;
}

}  // namespace

void AttentionOp::run(Step& step, Worker& worker) const {
  prepare(step, worker);
  step.barrier(worker);
  const auto& items = p_.plan->items();
  // One counter for all: pieces are large beside the cost of sharing it.
  for (size_t i; (i = static_cast<size_t>(worker.take(0))) < items.size();) attend(step, worker, items[i]);
}

void AttentionOp::prepare(Step& step, const Worker& worker) const {
  const lg_attention& spec = p_.spec;
  const int32_t tokens = step.batch.num_tokens;
  float* spare = step.scratch[worker.id].row;
  if (tokens <= kFewRows) {
    const int32_t units = spec.num_kv_heads + tokens * spec.num_heads;
    for (int32_t u = worker.id; u < units; u += worker.count) {
      const int32_t q = u - spec.num_kv_heads;
      if (q >= 0) {
        prepare_query(step, q / spec.num_heads, q % spec.num_heads, spare);
      } else {
        for (int32_t row = 0; row < tokens; ++row) write_kv(step, row, u, spare);
      }
    }
    return;
  }
  const int32_t begin = page_boundary(step.batch, p_.kv.page_size, share(tokens, worker.id, worker.count));
  const int32_t end = page_boundary(step.batch, p_.kv.page_size, share(tokens, worker.id + 1, worker.count));
  for (int32_t row = begin; row < end; ++row) {
    for (int32_t head = 0; head < spec.num_kv_heads; ++head) write_kv(step, row, head, spare);
    for (int32_t head = 0; head < spec.num_heads; ++head) prepare_query(step, row, head, spare);
  }
}

// Norm and rope of one head, where the model has them; in place but for the norm.
const float* AttentionOp::turn(Step& step, float* x, const Norm& norm, int32_t row, float* spare) const {
  if (norm) {
    norm.apply(*step.kernels, x, p_.spec.head_dim, spare);
    x = spare;
  }
  if (p_.spec.rope >= 0) {
    const RopeTable& rope = step.ropes[p_.spec.rope];
    step.kernels->rope(x, rope.half(), rope.cos(row), rope.sin(row));
  }
  return x;
}

void AttentionOp::prepare_query(Step& step, int32_t row, int32_t head, float* spare) const {
  const float* q = turn(step, in_.row(row) + int64_t{head} * p_.spec.head_dim, p_.q_norm, row, spare);
  uint8_t* out = step.queries + (int64_t{row} * p_.spec.num_heads + head) * p_.kv.q_bytes;
  step.kernels->prepare_q(&p_.kv, q, p_.spec.scale, out);
}

void AttentionOp::write_kv(Step& step, int32_t row, int32_t head, float* spare) const {
  const int64_t dim = p_.spec.head_dim;
  float* k = in_.row(row) + (p_.spec.num_heads + head) * dim;
  const float* v = k + p_.spec.num_kv_heads * dim;
  step.kernels->kv_write(&p_.kv, p_.pages, step.batch.slot_mapping[row], head, turn(step, k, p_.k_norm, row, spare), v);
}

void AttentionOp::attend(Step& step, const Worker& worker, const AttendItem& item) const {
  const lg_batch& batch = step.batch;
  const AttendShape& shape = p_.plan->shape();
  const AttendArgs args{&p_.kv,  p_.pages,     batch.page_table + int64_t{item.seq} * batch.table_stride,
                        item.kv_head, shape.group, shape.window, p_.spec.softcap, item.heads};
  const int64_t q_row = p_.spec.num_heads * p_.kv.q_bytes;
  const uint8_t* q = step.queries + item.row * q_row + int64_t{item.kv_head} * shape.group * p_.kv.q_bytes;
  float* partials = item.partials < 0 ? nullptr : step.partials + item.partials;
  step.kernels->attend(&args, q, q_row, batch.positions + item.row, item.rows, item.tile_begin, item.tile_end, partials,
                       output(item.row, item.kv_head), out_.stride, step.scratch[worker.id].kernel);
  if (item.partials < 0) return;
  for (int32_t row = item.row; row < item.row + item.rows; ++row)
    if (p_.plan->completes(item, row, p_.use)) merge(step, worker, item, row);
}

// A row's records lie in several pieces, which are brought together in tile order.
void AttentionOp::merge(Step& step, const Worker& worker, const AttendItem& item, int32_t row) const {
  const int32_t dim = p_.spec.head_dim, queries = p_.plan->shape().group * item.heads;
  float* states = step.scratch[worker.id].merge;
  const int32_t first = p_.plan->first_part(item, row);
  for (int32_t i = first; i >= 0; i = p_.plan->part(i).next) {
    const AttendPart& part = p_.plan->part(i);
    step.kernels->merge(step.partials + part.partials, queries, part.tiles, dim, i == first, states);
  }
  step.kernels->conclude(states, queries, dim, output(row, item.kv_head));
}

}  // namespace lg
