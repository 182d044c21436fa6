// A linear layer and the logits: see op_linear.h.
//
// Knows: how outputs are cut among workers. Does not know: formats' bytes, what the outputs mean.
#include "op_linear.h"

#include <algorithm>
#include <cstring>

namespace lg {
namespace {

// Small enough that a worker held up by the system leaves little behind, large enough for memory to stream.
constexpr int32_t kPiecesPerWorker = 8;
constexpr int32_t kLeastGrain = 4;
// Rows go panel after panel, each under all of a worker's weights: what a panel reads stays in half of a small L2.
constexpr int64_t kPanelBytes = 512 << 10;
constexpr int32_t kLeastPanelRows = 32;
// Neighbours whose leftovers a worker takes; asking everybody would cost more than it brings.
constexpr int32_t kStealFrom = 4;

int32_t total_units(const std::vector<Segment>& segments) {
  return segments.back().first_unit + segments.back().units;
}

std::vector<int32_t> cut_by_bytes(const std::vector<Segment>& segments, int32_t workers) {
  double total = 0;
  for (const Segment& s : segments) total += double(s.units) * packed_bytes(s.w.kind, kLanes, s.w.cols);
  std::vector<int32_t> cut{0};
  double before = 0;
  for (const Segment& s : segments) {
    const double unit = packed_bytes(s.w.kind, kLanes, s.w.cols);
    while (static_cast<int32_t>(cut.size()) < workers) {
      const double units = (total * cut.size() / workers - before) / unit;
      if (units > s.units) break;
      cut.push_back(s.first_unit + static_cast<int32_t>(units + 0.5));
    }
    before += s.units * unit;
  }
  while (static_cast<int32_t>(cut.size()) <= workers) cut.push_back(total_units(segments));
  return cut;
}

// The lowest index among equals, whatever order they come in; a NaN stays.
void keep_better(Best* best, Best other) {
  if (other.index == kNone || best->index == kNan) return;
  const bool wins = other.index == kNan || best->index == kNone || other.value > best->value ||
                    (other.value == best->value && other.index < best->index);
  if (wins) *best = other;
}

}  // namespace

Linear::Linear(std::vector<Segment> segments, Norm norm, int32_t epilogue, int32_t workers)
    : segments_(std::move(segments)),
      norm_(norm),
      epilogue_(epilogue),
      cols_(segments_.front().w.cols),
      units_(total_units(segments_)),
      cut_(cut_by_bytes(segments_, workers)) {
  for (const Segment& s : segments_) (takes_quantized_rows(s.w.kind) ? quantized_ : floats_) = true;
}

void Linear::prepare_row(const Kernels& kernels, const float* x, const PreparedRows& to, int32_t r,
                         float* spare) const {
  if (floats_) {
    auto* floats = reinterpret_cast<float*>(to.floats + r * to.floats_stride);
    norm_ ? norm_.apply(kernels, x, cols_, floats) : void(std::copy_n(x, cols_, floats));
    x = floats;
  } else if (norm_) {
    norm_.apply(kernels, x, cols_, spare);
    x = spare;
  }
  if (quantized_) kernels.quantize_row(x, cols_, to.quantized + r * to.quantized_stride);
}

PreparedRows Linear::prepare(Step& step, Worker& worker, Buffer in, const int32_t* rows, int32_t count) const {
  const Scratch& own = step.scratch[worker.id];
  if (!norm_ && !quantized_ && rows == nullptr)
    return {nullptr, 0, reinterpret_cast<uint8_t*>(in.data), in.stride * 4};
  const bool few = count <= kFewRows;
  PreparedRows to = few ? own.few : step.rows;
  to.quantized_stride = qrow_bytes(round_up(cols_, kGroup));
  to.floats_stride = round_up(int64_t{cols_} * 4, kAlign);
  const int32_t begin = few ? 0 : share(count, worker.id, worker.count);
  const int32_t end = few ? count : share(count, worker.id + 1, worker.count);
  for (int32_t r = begin; r < end; ++r)
    prepare_row(*step.kernels, in.row(rows != nullptr ? rows[r] : r), to, r, own.row);
  if (!few) step.barrier(worker);
  return to;
}

Linear::Plan Linear::plan(int32_t count) const {
  const int32_t workers = static_cast<int32_t>(cut_.size()) - 1;
  const int64_t row_bytes = quantized_ ? qrow_bytes(cols_) : int64_t{cols_} * 4;
  const int64_t fit = std::max<int64_t>(kLeastPanelRows, kPanelBytes / row_bytes);
  // Few outputs for many workers: rows are cut further, so that there is a piece for everybody.
  const int32_t wanted = std::min((workers * kLeastGrain + units_ - 1) / units_, count / kLeastPanelRows);
  const int32_t panels = std::max<int32_t>(wanted, static_cast<int32_t>((count + fit - 1) / fit));
  const int32_t grain = (units_ / workers + kPiecesPerWorker - 1) / kPiecesPerWorker;
  return {std::max(kLeastGrain, grain), panels, (count + panels - 1) / panels};
}

// A worker's tickets walk its own units in order, panel after panel.
bool Linear::next_piece(Worker& worker, const Plan& plan, int32_t owner, int32_t count, Piece* piece) const {
  const int32_t first = cut_[owner], units = cut_[owner + 1] - first;
  const int32_t pieces = (units + plan.grain - 1) / plan.grain;
  const int64_t ticket = pieces == 0 ? 0 : worker.take(owner);
  if (ticket >= int64_t{pieces} * plan.panels) return false;
  const int32_t panel = static_cast<int32_t>(ticket / pieces), at = static_cast<int32_t>(ticket % pieces) * plan.grain;
  piece->begin = first + at;
  piece->end = first + std::min(units, at + plan.grain);
  piece->row = panel * plan.panel_rows;
  piece->rows = std::min(plan.panel_rows, count - piece->row);
  return true;
}

void Linear::run_piece(Step& step, Worker& worker, const PreparedRows& rows, const Piece& piece, float* out,
                       int64_t stride) const {
  for (const Segment& s : segments_) {
    const int32_t begin = std::max(piece.begin, s.first_unit) - s.first_unit;
    const int32_t end = std::min(piece.end, s.first_unit + s.units) - s.first_unit;
    if (begin >= end) continue;
    const bool quantized = takes_quantized_rows(s.w.kind);
    const uint8_t* act = quantized ? rows.quantized : rows.floats;
    const int64_t act_stride = quantized ? rows.quantized_stride : rows.floats_stride;
    step.kernels->linear(&s.w, act + piece.row * act_stride, act_stride, piece.rows, begin, end,
                         out + piece.row * stride + s.column, stride, epilogue_, step.scratch[worker.id].kernel);
  }
}

template <class After>
void Linear::multiply(Step& step, Worker& worker, const PreparedRows& rows, int32_t count, float* out, int64_t stride,
                      const After& after) const {
  const Plan plan = this->plan(count);
  const int32_t owners = std::min(worker.count, 1 + kStealFrom);
  Piece piece;
  for (int32_t i = 0; i < owners; ++i) {
    while (next_piece(worker, plan, (worker.id + i) % worker.count, count, &piece)) {
      if (piece.rows <= 0) continue;
      run_piece(step, worker, rows, piece, out, stride);
      after(piece.begin, piece.end, piece.row, piece.rows);
    }
  }
}

void LinearOp::run(Step& step, Worker& worker) const {
  const int32_t count = step.batch.num_tokens;
  const PreparedRows rows = linear_.prepare(step, worker, in_, nullptr, count);
  linear_.multiply(step, worker, rows, count, out_.data, out_.stride, [](int32_t, int32_t, int32_t, int32_t) {});
}

void LogitsOp::run(Step& step, Worker& worker) const {
  const int32_t count = step.batch.num_logits;
  if (count == 0) return;
  Best* best = &best_[size_t(worker.id) * max_rows_];
  std::fill_n(best, count, Best{0, kNone});
  const PreparedRows rows = linear_.prepare(step, worker, in_, step.batch.logit_rows, count);
  linear_.multiply(step, worker, rows, count, step.logits, step.logits_stride,
                   [&](int32_t begin, int32_t end, int32_t row, int32_t num_rows) {
                     const int32_t first = begin * kLanes, last = std::min(end * kLanes, vocab_size_);
                     for (int32_t r = row; r < row + num_rows; ++r) finish_piece(step, r, first, last, &best[r]);
                   });
}

void LogitsOp::finish_piece(Step& step, int32_t row, int32_t first, int32_t last, Best* best) const {
  float* x = step.logits + row * step.logits_stride + first;
  if (softcap_ > 0) step.kernels->softcap(x, last - first, softcap_);
  float value = 0;
  const auto found = static_cast<int32_t>(step.kernels->argmax(x, last - first, &value));
  keep_better(best, {value, found < 0 ? kNan : first + found});
}

void LogitsOp::finish(Step& step, int32_t workers) const {
  for (int32_t r = 0; r < step.batch.num_logits; ++r) {
    Best best{0, kNone};
    for (int32_t w = 0; w < workers; ++w) keep_better(&best, best_[size_t(w) * max_rows_ + r]);
    step.argmax[r] = best.index;
  }
}

}  // namespace lg
