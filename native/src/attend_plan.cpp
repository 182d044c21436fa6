// How one step's attention is cut: see attend_plan.h.
//
// Knows: positions, windows, costs in tiles. Does not know: keys, values, kernels.
#include "attend_plan.h"

#include <algorithm>

#include "kernels.h"

namespace lg {
namespace {

// Rows that share one pass over the keys; a larger block reads less, a smaller one balances better.
constexpr int32_t kMostBlockRows = 64;
constexpr int32_t kLeastBlockRows = 8;
// Splitting by tiles writes a record a row and tile: worth it while rows are few.
constexpr int32_t kMostSplitRows = 8;
constexpr int32_t kItemsPerWorker = 32;
// Few rows read much and compute little: longer walks are worth a little less balance.
constexpr int32_t kWalksPerWorker = 8;
// What a tile costs besides its rows: its bytes, in rows.
constexpr int64_t kTileRows = 4;

}  // namespace

AttendPlan::AttendPlan(AttendShape shape, int32_t workers, int64_t partial_capacity, int32_t max_tokens,
                       int32_t max_seqs)
    : shape_(shape), workers_(workers), partial_capacity_(partial_capacity) {
  // All vectors at their largest now: a step allocates nothing.
  const size_t blocks = size_t(max_tokens) / kLeastBlockRows + max_seqs + 1;
  max_splits_ = static_cast<int32_t>(std::min<size_t>(blocks * shape.kv_heads, size_t(workers) * kItemsPerWorker * 2));
  blocks_.reserve(blocks);
  splits_.reserve(max_splits_);
  items_.reserve(blocks * shape.kv_heads + size_t(workers) * kItemsPerWorker * 2 * 2);
  arrived_ = std::make_unique<std::atomic<int32_t>[]>(max_splits_);
}

int64_t AttendPlan::record_floats(const AttendItem& item) const {
  return int64_t{item.rows} * item.heads * shape_.group * partial_floats(shape_.dim);
}

bool AttendPlan::completes(int32_t split, int32_t use) {
  return arrived_[split].fetch_add(1, std::memory_order_acq_rel) + 1 == splits_[split].pieces * (use + 1);
}

void AttendPlan::build(const lg_batch& batch) {
  blocks_.clear();
  items_.clear();
  splits_.clear();
  partials_used_ = 0;
  cut_rows(batch);
  int64_t total = 0;
  for (const Block& b : blocks_) total += b.cost * shape_.kv_heads;
  const int32_t pieces = batch.num_tokens <= kMostSplitRows ? kWalksPerWorker : kItemsPerWorker;
  const int64_t target = total / (int64_t{workers_} * pieces) + 1;
  // Longest first, so that the last pieces are short.
  std::sort(blocks_.begin(), blocks_.end(), [](const Block& a, const Block& b) {
    return a.cost != b.cost ? a.cost > b.cost : a.row > b.row;
  });
  for (const Block& b : blocks_) add_items(b, target);
}

int32_t AttendPlan::block_rows(const lg_batch& batch) const {
  int32_t rows = kMostBlockRows;
  while (rows > kLeastBlockRows && int64_t{batch.num_tokens} / rows * shape_.kv_heads < workers_ * kItemsPerWorker)
    rows /= 2;
  return rows;
}

void AttendPlan::cut_rows(const lg_batch& batch) {
  const int32_t most = block_rows(batch);
  for (int32_t s = 0; s < batch.num_seqs; ++s) {
    const int32_t end = batch.cu_seqlens_q[s + 1];
    for (int32_t row = batch.cu_seqlens_q[s]; row < end; row += most) {
      const int32_t rows = std::min(most, end - row);
      const int32_t first = shape_.window > 0 ? std::max(0, batch.positions[row] - shape_.window + 1) : 0;
      const int32_t tile_begin = first / kTile, tile_end = batch.positions[row + rows - 1] / kTile + 1;
      blocks_.push_back({s, row, rows, tile_begin, tile_end, (tile_end - tile_begin) * (kTileRows + rows)});
    }
  }
}

// Reading all heads of a tile at once follows memory, but leaves fewer pieces to share out.
bool AttendPlan::takes_all_heads(const Block& block) const {
  if (block.rows * shape_.kv_heads * shape_.group > kAttendQueries) return false;
  const int64_t tiles = block.tile_end - block.tile_begin;
  return workers_ == 1 || static_cast<int64_t>(blocks_.size()) * tiles >= 2 * workers_;
}

void AttendPlan::add_items(const Block& block, int64_t target) {
  const int32_t heads = takes_all_heads(block) ? shape_.kv_heads : 1;
  const int64_t cost = block.cost * heads;
  for (int32_t head = 0; head < shape_.kv_heads; head += heads)
    add_item({block.seq, head, heads, block.row, block.rows, block.tile_begin, block.tile_end, -1},
             (cost + target - 1) / target);
}

void AttendPlan::add_item(AttendItem item, int64_t pieces) {
  const int32_t begin = item.tile_begin, end = item.tile_end, tiles = end - begin;
  const int64_t floats = record_floats(item) * tiles;
  pieces = std::min<int64_t>(tiles, pieces);
  const bool splits = workers_ > 1 && pieces > 1 && item.rows <= kMostSplitRows &&
                      partials_used_ + floats <= partial_capacity_ && static_cast<int32_t>(splits_.size()) < max_splits_;
  if (!splits) {
    items_.push_back(item);
    return;
  }
  const int32_t step = static_cast<int32_t>((tiles + pieces - 1) / pieces);
  item.split = static_cast<int32_t>(splits_.size());
  arrived_[item.split].store(0, std::memory_order_relaxed);
  splits_.push_back({begin, end, step, (tiles + step - 1) / step, partials_used_});
  partials_used_ += floats;
  for (int32_t tile = begin; tile < end; tile += step) {
    item.tile_begin = tile;
    item.tile_end = std::min(end, tile + step);
    items_.push_back(item);
  }
}

}  // namespace lg
