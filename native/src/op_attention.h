// Attention of one layer: q/k norm, rope, keys and values into their pages, then every row over its tiles.
//
// Knows: heads, pages' addresses, whose turn it is to merge. Does not know: how pages hold numbers.
#pragma once
#include "attend_plan.h"
#include "step.h"

namespace lg {

struct AttentionParts {
  lg_attention spec;
  KvLayout kv;
  uint8_t* pages;          // the layer's
  Norm q_norm, k_norm;
  AttendPlan* plan;        // shared by the layers of one shape
  int32_t use;             // how many layers before this one use the plan in a step
};

class AttentionOp : public Op {
 public:
  AttentionOp(Buffer in, const AttentionParts& parts, Buffer out) : in_(in), p_(parts), out_(out) {}
  void run(Step& step, Worker& worker) const override;

 private:
  void prepare(Step& step, const Worker& worker) const;
  void prepare_query(Step& step, int32_t row, int32_t head, float* spare) const;
  void write_kv(Step& step, int32_t row, int32_t head, float* spare) const;
  const float* turn(Step& step, float* x, const Norm& norm, int32_t row, float* spare) const;
  void attend(Step& step, const Worker& worker, const AttendItem& item) const;
  void merge(Step& step, const Worker& worker, const AttendItem& item, int32_t row) const;
  float* output(int32_t row, int32_t kv_head) const {
    return out_.row(row) + int64_t{kv_head} * p_.plan->shape().group * p_.spec.head_dim;
  }

  const Buffer in_;
  const AttentionParts p_;
  const Buffer out_;
};

}  // namespace lg
