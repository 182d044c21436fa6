// A linear layer: norm and quantise the rows it reads, multiply, finish each output; and the logits made with one.
//
// Knows: how outputs are cut among workers. Does not know: formats' bytes, what the outputs mean.
#pragma once
#include <utility>
#include <vector>

#include "context.h"
#include "step.h"

namespace lg {

// Outputs one after the other, each with its own packed weights (of one format).
struct Segment {
  PackedLinear w;
  int32_t column;      // of its first output in the output row
  int32_t first_unit;
  int32_t units;
};

class Linear {
 public:
  // cut: units are shared out by the bytes they read.
  Linear(std::vector<Segment> segments, Norm norm, int32_t epilogue, int32_t workers);

  // Rows row_of(0) .. row_of(count - 1) of `in`, ready to multiply. Ends a phase when there are more than kFewRows.
  // rows: null for the rows as they lie, or their indices.
  PreparedRows prepare(Step& step, Worker& worker, Buffer in, const int32_t* rows, int32_t count) const;

  // All outputs of `count` rows. after(first unit, end unit, first row, rows) follows each finished piece, on the
  // worker that made it; pieces come in no particular order.
  template <class After>
  void multiply(Step& step, Worker& worker, const PreparedRows& rows, int32_t count, float* out, int64_t stride,
                const After& after) const;

 private:
  struct Piece {
    int32_t begin, end;  // units
    int32_t row, rows;
  };
  struct Plan {
    int32_t grain;       // units a piece
    int32_t panels;      // groups of rows
    int32_t panel_rows;
  };

  Plan plan(int32_t count) const;
  bool next_piece(Worker& worker, const Plan& plan, int32_t owner, int32_t count, Piece* piece) const;
  void run_piece(Step& step, Worker& worker, const PreparedRows& rows, const Piece& piece, float* out,
                 int64_t stride) const;
  void prepare_row(const Kernels& kernels, const float* x, const PreparedRows& to, int32_t r, float* spare) const;

  const std::vector<Segment> segments_;
  const Norm norm_;
  const int32_t epilogue_;
  const int32_t cols_;
  const int32_t units_;
  bool quantized_ = false, floats_ = false;  // what the segments read
  std::vector<int32_t> cut_;                 // workers + 1 boundaries in units
};

// out = epilogue(linear(norm(in)))
class LinearOp : public Op {
 public:
  LinearOp(Buffer in, Linear linear, Buffer out) : in_(in), linear_(std::move(linear)), out_(out) {}
  void run(Step& step, Worker& worker) const override;

 private:
  const Buffer in_;
  const Linear linear_;
  const Buffer out_;
};

// A worker's best logit of one row so far.
struct Best {
  float value;
  int32_t index;  // kNone: none yet; kNan: a NaN was seen
};
constexpr int32_t kNone = -2, kNan = -1;

// logits = softcap(linear(norm(in[logit_rows]))); each worker keeps the best of what it made while that is in its cache.
class LogitsOp : public Op {
 public:
  LogitsOp(Buffer in, Linear linear, int32_t vocab_size, float softcap, int32_t workers, int32_t max_rows)
      : in_(in), linear_(std::move(linear)), vocab_size_(vocab_size), softcap_(softcap), max_rows_(max_rows),
        best_(size_t(workers) * max_rows) {}
  void run(Step& step, Worker& worker) const override;
  // After all workers are done: the argmax of each row.
  void finish(Step& step, int32_t workers) const;

 private:
  void finish_piece(Step& step, int32_t row, int32_t first, int32_t last, Best* best) const;

  const Buffer in_;
  const Linear linear_;
  const int32_t vocab_size_;
  const float softcap_;
  const int32_t max_rows_;
  mutable std::vector<Best> best_;  // (worker, row)
};

}  // namespace lg
