// A recorded step: see program.h.
//
// Knows: the order of operations and where each finds its memory. Does not know: what an operation computes.
#include "program.h"

#include <algorithm>
#include <chrono>
#include <string>

#include "op_attention.h"
#include "op_rows.h"
#include "status.h"

namespace lg {
namespace {

// Partial records for this many rows over the longest context; more rows are cut by rows instead.
constexpr int64_t kPartialRows = 8;

int64_t now_ns() {
  using namespace std::chrono;
  return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

void check_attention(const lg_program_spec& spec, const lg_attention& a) {
  require(a.num_heads > 0 && a.num_kv_heads > 0 && a.num_heads % a.num_kv_heads == 0, "heads must share kv heads evenly");
  require(a.head_dim > 0 && a.head_dim <= 1024 && a.num_heads <= 4096, "a head's size is out of range");
  require(a.layer >= 0 && a.layer < spec.num_layers, "attention names a layer that is not there");
  require(a.rope >= -1 && a.rope < spec.num_ropes, "attention names a rope that is not there");
  require(a.rope < 0 || 2 * spec.ropes[a.rope].half <= a.head_dim, "a rope turns more than a head");
  require(a.window >= 0, "a window cannot be negative");
}

int64_t max_tiles(const lg_program_spec& spec) {
  return (int64_t{spec.num_pages} * spec.page_size + kTile - 1) / kTile;
}

}  // namespace

void Step::barrier(Worker& worker) {
  if (worker.id != 0) return worker.barrier();
  const int64_t arrived = now_ns();
  laps[lap] += arrived - lap_began;
  worker.barrier();
  lap_began = now_ns();
  laps.back() += lap_began - arrived;
}

void Step::start_clock() { lap_began = now_ns(); }

void Step::end_lap() {
  const int64_t now = now_ns();
  laps[lap] += now - lap_began;
  lap_began = now;
}

// What sequences share of one layer, up to this size, stays in the caches from one sequence to the next: then each by
// itself is faster, in smaller pieces and without records to merge.
constexpr int64_t kJoinBytes = 16 << 20;

Program::Program(Context& context, const lg_program_spec& spec) : context_(context) {
  require(spec.ops && spec.num_ops > 0 && spec.attentions && spec.buffer_widths && spec.buffer_slots, "a program needs operations");
  require(spec.ops[0].kind == LG_EMBED, "a program begins with an embedding");
  require(spec.page_size >= 16 && spec.page_size % 16 == 0 && kTile % spec.page_size == 0,
          "page_size must be 16, 32, 64, 128 or 256");
  require(spec.kv_kind >= KV_BF16 && spec.kv_kind <= KV_INT4, "unknown kind of keys and values");
  require(spec.num_pages > 0 && int64_t{spec.num_pages} * spec.page_size < INT32_MAX, "too many pages, or none");
  require(spec.max_tokens > 0 && spec.max_tokens <= 1 << 20 && spec.max_seqs > 0 && spec.max_seqs <= 1 << 20,
          "max_tokens or max_seqs is out of range");
  require(spec.num_layers > 0 && spec.num_laps > 0 && spec.vocab_size > 0, "layers, laps and vocabulary must be given");
  for (int32_t i = 0; i < spec.num_attentions; ++i) check_attention(spec, spec.attentions[i]);
  limits_ = {spec.max_tokens, spec.max_seqs, spec.num_pages, spec.page_size, 0, INT32_MAX};
  step_.kernels = &context.kernels;
  step_.laps.assign(spec.num_laps + 1, 0);
  lay_out_pages(spec);
  lay_out_buffers(spec);
  lay_out_scratch(spec);
  for (int32_t i = 0; i < spec.num_ops; ++i) add_op(spec, spec.ops[i]);
  require(logits_ != nullptr && ops_.back().get() == logits_, "a program ends with its logits");
  join_from(kJoinBytes);
}

uint8_t* Program::take(int64_t bytes, const char* what) {
  regions_.emplace_back(bytes, what);
  buffer_bytes_ += bytes;
  return regions_.back().data();
}

// A tile's worth of pages of all layers lie together: memory is touched as tokens come, whatever the number of layers.
void Program::lay_out_pages(const lg_program_spec& spec) {
  layouts_.assign(spec.num_layers, KvLayout{});
  layer_offsets_.assign(spec.num_layers, -1);
  for (int32_t i = 0; i < spec.num_attentions; ++i) {
    const lg_attention& a = spec.attentions[i];
    require(layer_offsets_[a.layer] < 0, "two attentions name one layer");
    layouts_[a.layer] = kv_layout(spec.kv_kind, a.num_kv_heads, a.head_dim, spec.page_size);
    layer_offsets_[a.layer] = page_bytes_;
    page_bytes_ += layouts_[a.layer].page_bytes;
  }
  const int64_t pages = kTile / spec.page_size;
  for (int64_t& offset : layer_offsets_) offset *= pages;
  for (KvLayout& layout : layouts_) layout.extent_bytes = page_bytes_ * pages;
  pages_ = Region(page_bytes_ * round_up(spec.num_pages, pages), "keys and values");
}

void Program::each_part(const int32_t* pages, int64_t count,
                        const std::function<void(int64_t, uint8_t*, int64_t)>& fn) const {
  for (int64_t i = 0; i < count; ++i)
    require(pages[i] >= 0 && pages[i] < limits_.num_pages, "a page that is not there");
  for (int64_t i = 0; i < count; ++i)
    for (size_t layer = 0; layer < layouts_.size(); ++layer) {
      if (layer_offsets_[layer] < 0) continue;
      const KvLayout& kv = layouts_[layer];
      int64_t at = i * page_bytes_ + layer_offsets_[layer] / kv.extent_pages();
      for (int32_t head = 0; head < kv.heads; ++head, at += kv.head_bytes)
        fn(at, pages_.data() + layer_offsets_[layer] + kv.place(pages[i], head), kv.head_bytes);
    }
}

void Program::lay_out_buffers(const lg_program_spec& spec) {
  std::vector<int64_t> strides(spec.num_buffers, 0);  // a slot
  for (int32_t i = 0; i < spec.num_buffers; ++i) {
    const int32_t width = spec.buffer_widths[i], slot = spec.buffer_slots[i];
    require(width > 0 && width <= 1 << 24, "a buffer's width is out of range");
    require(slot >= 0 && slot < spec.num_buffers, "a buffer's slot is out of range");
    strides[slot] = std::max(strides[slot], round_up(width, kLanes));
  }
  std::vector<float*> slots;
  for (int64_t stride : strides)
    slots.push_back(reinterpret_cast<float*>(take(spec.max_tokens * stride * 4, "activations")));
  for (int32_t i = 0; i < spec.num_buffers; ++i) {
    const int32_t slot = spec.buffer_slots[i];
    buffers_.push_back({slots[slot], strides[slot], spec.buffer_widths[i]});
  }
  for (int32_t i = 0; i < spec.num_ropes; ++i) {
    const lg_rope& rope = spec.ropes[i];
    require(rope.inv_freq != nullptr && rope.half > 0 && rope.half <= 512, "a rope needs frequencies");
    auto* data = reinterpret_cast<float*>(take(int64_t{spec.max_tokens} * rope.half * 8, "rope angles"));
    step_.ropes.push_back({{rope.inv_freq, rope.inv_freq + rope.half}, rope.scale, data});
  }
  step_.logits_stride = round_up(spec.vocab_size, kLanes);
  step_.logits = reinterpret_cast<float*>(take(spec.max_tokens * step_.logits_stride * 4, "logits"));
  step_.argmax = reinterpret_cast<int32_t*>(take(int64_t{spec.max_tokens} * 4, "chosen tokens"));
}

void Program::lay_out_scratch(const lg_program_spec& spec) {
  int64_t width = kGroup, queries = 0, merge = 0, kernel = 0;
  for (const Buffer& b : buffers_) width = std::max(width, round_up(b.width, kGroup));
  for (int32_t i = 0; i < spec.num_attentions; ++i) {
    const lg_attention& a = spec.attentions[i];
    const int64_t record = partial_floats(a.head_dim);
    width = std::max(width, round_up(a.head_dim, kGroup));
    queries = std::max(queries, a.num_heads * layouts_[a.layer].q_bytes);
    merge = std::max(merge, a.num_heads * record);
    partial_capacity_ = std::max(partial_capacity_, kPartialRows * a.num_heads * max_tiles(spec) * record);
    kernel = std::max(kernel, attend_scratch_bytes(a.head_dim, a.num_heads / a.num_kv_heads));
  }
  kernel = round_up(std::max(kernel, linear_scratch_bytes(width)), kAlign);
  const int64_t floats = round_up(width * 4, kAlign), quantized = qrow_bytes(width);
  merge = round_up(merge * 4, kAlign);
  for (int32_t w = 0; w < context_.pool.threads(); ++w) {
    uint8_t* at = take(kernel + kFewRows * (floats + quantized) + floats + merge, "scratch");
    uint8_t* few = at + kernel;
    uint8_t* row = few + kFewRows * (floats + quantized);
    step_.scratch.push_back({at,
                             {few, quantized, few + kFewRows * quantized, floats},
                             reinterpret_cast<float*>(row),
                             reinterpret_cast<float*>(row + floats)});
  }
  step_.rows.quantized = take(spec.max_tokens * quantized, "quantised rows");
  step_.rows.floats = take(spec.max_tokens * floats, "normed rows");
  step_.queries = take(spec.max_tokens * queries, "prepared queries");
  step_.partials = reinterpret_cast<float*>(take(partial_capacity_ * 4, "partial attention"));
}

const Buffer& Program::buffer(int32_t index) const {
  require(index >= 0 && index < static_cast<int32_t>(buffers_.size()), "an operation names a buffer that is not there");
  return buffers_[index];
}

Norm Program::make_norm(int32_t kind, float eps, int32_t weight, int32_t bias, int64_t width) {
  if (kind == LG_NO_NORM) return {};
  require(kind == LG_RMS_NORM || kind == LG_LAYER_NORM, "unknown kind of norm");
  Norm norm{kind, eps, context_.vector(weight).data, nullptr};
  require(context_.vector(weight).count == width, "a norm's weight does not fit its row");
  if (kind == LG_RMS_NORM) {
    require(bias == LG_NO_HANDLE, "an RMS norm has no bias");
  } else if (bias != LG_NO_HANDLE) {
    require(context_.vector(bias).count == width, "a norm's bias does not fit its row");
    norm.bias = context_.vector(bias).data;
  }
  return norm;
}

Linear Program::make_linear(const lg_op& op, int64_t in_width, int64_t out_width) {
  require(op.num_weights > 0 && op.num_weights <= LG_MAX_SEGMENTS, "a linear layer takes one to four weights");
  require(op.epilogue >= EP_STORE && op.epilogue <= EP_GELU, "unknown epilogue");
  const bool gated = op.epilogue >= EP_GATED_SILU && op.epilogue <= EP_GATED_GELU;
  std::vector<Segment> segments;
  int32_t column = 0, units = 0;
  for (int32_t i = 0; i < op.num_weights; ++i) {
    const PackedLinear& w = context_.linear(op.weights[i]);
    require(w.cols == in_width, "a weight's columns do not fit its input");
    require((w.gated != 0) == gated, "a gated epilogue and gated weights belong together");
    require(i + 1 == op.num_weights || w.rows % kLanes == 0 || !gated, "gated weights come in one piece");
    segments.push_back({w, column, units, linear_units(w)});
    column += gated ? w.rows / 2 : w.rows;
    units += segments.back().units;
  }
  require(column == out_width, "a weight's rows do not fit its output");
  const Norm norm = make_norm(op.norm, op.eps, op.norm_weight, op.norm_bias, in_width);
  return Linear(std::move(segments), norm, op.epilogue, context_.pool.threads());
}

std::unique_ptr<Op> Program::make_embed(const lg_op& op) {
  require(op.num_weights == 1 || op.num_weights == 2, "an embedding takes one or two tables");
  const Buffer& out = buffer(op.out);
  const Table& table = context_.table(op.weights[0]);
  const Table* positions = op.num_weights == 2 ? &context_.table(op.weights[1]) : nullptr;
  require(table.cols == out.width && (!positions || positions->cols == out.width), "a table's columns do not fit");
  limits_.num_ids = table.rows;
  if (positions != nullptr) limits_.num_positions = positions->rows;
  return std::make_unique<EmbedOp>(table, positions, op.value, out);
}

AttendPlan* Program::plan_for(const lg_attention& a, int32_t* use) {
  const AttendShape shape{a.num_kv_heads, a.num_heads / a.num_kv_heads, a.head_dim, a.window};
  size_t i = 0;
  while (i < plans_.size() && !(plans_[i]->shape() == shape)) ++i;
  if (i == plans_.size()) {
    plans_.push_back(std::make_unique<AttendPlan>(shape, context_.pool.threads(), partial_capacity_,
                                                  limits_.max_tokens, limits_.max_seqs));
    plan_uses_.push_back(0);
    plan_tile_bytes_.push_back(layouts_[a.layer].page_bytes / limits_.page_size * kTile);
  }
  *use = plan_uses_[i]++;
  return plans_[i].get();
}

void Program::join_from(int64_t bytes) {
  for (size_t i = 0; i < plans_.size(); ++i) plans_[i]->join_from(std::max<int64_t>(1, bytes / plan_tile_bytes_[i]));
}

std::unique_ptr<Op> Program::make_attention(const lg_program_spec& spec, const lg_op& op) {
  require(op.attention >= 0 && op.attention < spec.num_attentions, "an operation names an attention that is not there");
  const lg_attention& a = spec.attentions[op.attention];
  const Buffer &in = buffer(op.in), &out = buffer(op.out);
  require(in.width == (a.num_heads + 2 * a.num_kv_heads) * a.head_dim, "q, k and v do not fit their buffer");
  require(out.width == a.num_heads * a.head_dim, "attention's output does not fit its buffer");
  AttentionParts parts{a, layouts_[a.layer], pages_.data() + layer_offsets_[a.layer], {}, {}, nullptr, 0};
  parts.q_norm = make_norm(a.qk_norm, a.eps, a.q_norm, LG_NO_HANDLE, a.head_dim);
  parts.k_norm = make_norm(a.qk_norm, a.eps, a.k_norm, LG_NO_HANDLE, a.head_dim);
  parts.plan = plan_for(a, &parts.use);
  return std::make_unique<AttentionOp>(in, parts, out);
}

std::unique_ptr<Op> Program::make_logits(const lg_program_spec& spec, const lg_op& op) {
  const Buffer& in = buffer(op.in);
  require(op.num_weights == 1 && op.epilogue == EP_STORE, "logits take one weight and store");
  auto logits = std::make_unique<LogitsOp>(in, make_linear(op, in.width, spec.vocab_size), spec.vocab_size, op.value,
                                           context_.pool.threads(), spec.max_tokens);
  logits_ = logits.get();
  return logits;
}

void Program::add_op(const lg_program_spec& spec, const lg_op& op) {
  require(op.lap >= 0 && op.lap < spec.num_laps, "an operation names a lap that is not there");
  std::unique_ptr<Op> made;
  switch (op.kind) {
    case LG_EMBED: made = make_embed(op); break;
    case LG_NORM_ADD: {
      const Buffer &in = buffer(op.in), &out = buffer(op.out);
      require(in.width == out.width && op.norm != LG_NO_NORM, "a normed residual needs a norm and equal widths");
      made = std::make_unique<NormAddOp>(
          in, make_norm(op.norm, op.eps, op.norm_weight, op.norm_bias, in.width), out);
      break;
    }
    case LG_LINEAR: {
      const Buffer &in = buffer(op.in), &out = buffer(op.out);
      made = std::make_unique<LinearOp>(in, make_linear(op, in.width, out.width), out);
      break;
    }
    case LG_GATED: {
      const Buffer &in = buffer(op.in), &out = buffer(op.out);
      require(in.width == 2 * out.width && op.epilogue >= EP_SILU && op.epilogue <= EP_GELU, "gate and up do not fit");
      made = std::make_unique<GatedOp>(in, op.epilogue, out);
      break;
    }
    case LG_ATTENTION: made = make_attention(spec, op); break;
    case LG_LOGITS: made = make_logits(spec, op); break;
    default: require(false, "unknown operation");
  }
  made->lap = op.lap;
  ops_.push_back(std::move(made));
}

void Program::step(const lg_batch& batch) {
  check_batch(batch, limits_);
  step_.batch = batch;
  if (batch.num_tokens == 0) return;
  step_.start_clock();
  step_.lap = ops_.front()->lap;
  for (auto& plan : plans_) plan->build(batch, limits_.page_size);
  context_.pool.run(work, this);
  step_.end_lap();
  logits_->finish(step_, context_.pool.threads());
}

void Program::work(void* argument, Worker& worker) {
  Program& program = *static_cast<Program*>(argument);
  Step& step = program.step_;
  for (const auto& op : program.ops_) {
    if (worker.id == 0) step.lap = op->lap;
    op->run(step, worker);
    if (op.get() != program.logits_) step.barrier(worker);
  }
}

}  // namespace lg
