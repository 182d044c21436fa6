// A recorded step: its operations, its buffers laid out once, its KV pages; replayed by one call.
//
// Knows: the order of operations and where each finds its memory. Does not know: what an operation computes.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "attend_plan.h"
#include "context.h"
#include "memory.h"
#include "op_linear.h"
#include "step.h"

namespace lg {

// Bounds that a batch must keep.
struct Limits {
  int32_t max_tokens, max_seqs, num_pages, page_size;
  int64_t num_ids;        // rows of the embedding table
  int64_t num_positions;  // rows of a learned position table, or as many as there are
};

// Throws Error(LG_BAD_BATCH) with the first thing that is wrong.
void check_batch(const lg_batch& batch, const Limits& limits);

class Program {
 public:
  Program(Context& context, const lg_program_spec& spec);

  // Sequences read what they share together only where a layer's part of it is at least this large.
  void join_from(int64_t bytes);
  void step(const lg_batch& batch);
  Context& context() { return context_; }
  const float* logits() const { return step_.logits; }
  const int32_t* argmax() const { return step_.argmax; }
  const int64_t* laps() const { return step_.laps.data(); }
  uint8_t* pages() const { return pages_.data(); }
  // Calls fn(place in `count` pages one after the other, part, bytes) for each layer's and head's part of each page.
  void each_part(const int32_t* pages, int64_t count, const std::function<void(int64_t, uint8_t*, int64_t)>& fn) const;
  lg_program_memory memory() const { return {pages_.bytes(), buffer_bytes_, page_bytes_}; }

 private:
  static void work(void* program, Worker& worker);

  void lay_out_pages(const lg_program_spec& spec);
  void lay_out_buffers(const lg_program_spec& spec);
  void lay_out_scratch(const lg_program_spec& spec);
  void add_op(const lg_program_spec& spec, const lg_op& op);
  std::unique_ptr<Op> make_embed(const lg_op& op);
  std::unique_ptr<Op> make_attention(const lg_program_spec& spec, const lg_op& op);
  std::unique_ptr<Op> make_logits(const lg_program_spec& spec, const lg_op& op);
  Linear make_linear(const lg_op& op, int64_t in_width, int64_t out_width);
  Norm make_norm(int32_t kind, float eps, int32_t weight, int32_t bias, int64_t width);
  AttendPlan* plan_for(const lg_attention& spec, int32_t* use);
  const Buffer& buffer(int32_t index) const;
  uint8_t* take(int64_t bytes, const char* what);

  Context& context_;
  Limits limits_;
  Step step_;
  std::vector<std::unique_ptr<Op>> ops_;
  const LogitsOp* logits_ = nullptr;  // the last operation
  std::vector<std::unique_ptr<AttendPlan>> plans_;
  std::vector<int32_t> plan_uses_;
  std::vector<int64_t> plan_tile_bytes_;  // of one layer
  std::vector<KvLayout> layouts_;     // a layer
  std::vector<int64_t> layer_offsets_;
  std::vector<Buffer> buffers_;
  std::vector<Region> regions_;
  Region pages_;
  int64_t page_bytes_ = 0;            // one page of all layers
  int64_t buffer_bytes_ = 0;
  int64_t partial_capacity_ = 0;      // floats
};

}  // namespace lg
