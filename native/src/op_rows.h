// Operations that treat each row alone and are cut among workers by rows.
//
// Knows: tables, norms, activations. Does not know: weights' formats, attention.
#pragma once
#include "context.h"
#include "step.h"

namespace lg {

// x = table[id] * scale (+ positions[position]), and the step's rope angles.
class EmbedOp : public Op {
 public:
  EmbedOp(const Table& table, const Table* positions, float scale, Buffer out)
      : table_(table), positions_(positions), scale_(scale), out_(out) {}
  void run(Step& step, Worker& worker) const override;

 private:
  void angles(const RopeTable& rope, int64_t row, int32_t position) const;

  const Table table_;
  const Table* const positions_;
  const float scale_;
  const Buffer out_;
};

// out += norm(in)
class NormAddOp : public Op {
 public:
  NormAddOp(Buffer in, Norm norm, Buffer out) : in_(in), norm_(norm), out_(out) {}
  void run(Step& step, Worker& worker) const override;

 private:
  const Buffer in_;
  const Norm norm_;
  const Buffer out_;
};

// out = act(first half of in) * second half; only where gate and up differ in format, so that no linear can fuse it.
class GatedOp : public Op {
 public:
  GatedOp(Buffer in, int32_t activation, Buffer out) : in_(in), activation_(activation), out_(out) {}
  void run(Step& step, Worker& worker) const override;

 private:
  const Buffer in_;
  const int32_t activation_;  // EP_SILU, EP_GELU_TANH or EP_GELU
  const Buffer out_;
};

}  // namespace lg
