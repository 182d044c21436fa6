// How one step's attention is cut: see attend_plan.h.
//
// Knows: positions, windows, page tables, costs in tiles. Does not know: keys, values, kernels.
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
    : shape_(shape), workers_(workers), partial_capacity_(partial_capacity), shared_(size_t(max_seqs)) {
  // All vectors at their largest now, or near it: a step allocates nothing.
  const size_t blocks = size_t(max_tokens) / kLeastBlockRows + 2 * size_t(max_seqs) + 1;
  const size_t pieces = blocks * shape.kv_heads + size_t(workers) * kItemsPerWorker * 4;
  blocks_.reserve(blocks);
  items_.reserve(pieces);
  parts_.reserve(2 * pieces);
  chained_.reserve(pieces);
  chains_ = std::make_unique<Chain[]>(size_t(max_tokens) * shape.kv_heads);
}

int64_t AttendPlan::row_floats(int32_t heads) const { return int64_t{heads} * shape_.group * partial_floats(shape_.dim); }

bool AttendPlan::completes(const AttendItem& item, int32_t row, int32_t use) {
  Chain& c = chain(item.kv_head, row);
  return c.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == c.count * (use + 1);
}

void AttendPlan::build(const lg_batch& batch, int32_t page_size) {
  for (const int32_t used : chained_) {
    Chain& c = chains_[used];
    c.first = c.last = -1;
    c.count = 0;
    c.arrived.store(0, std::memory_order_relaxed);
  }
  blocks_.clear();
  items_.clear();
  parts_.clear();
  chained_.clear();
  partials_used_ = partials_promised_ = tokens_read_ = 0;
  find_shared(batch, page_size);
  const int32_t most = block_rows(batch);
  for (int32_t s = 0; s < batch.num_seqs;) {
    int32_t end = s + 1;
    while (end < batch.num_seqs && shared_[end] > 0) ++end;
    if (end - s > 1 && join(batch, s, end)) {
      share(batch, s, end, 0);
    } else {
      for (int32_t i = s; i < end; ++i) cut_rows(batch, i, most);
    }
    s = end;
  }
  int64_t total = 0;
  for (const Block& b : blocks_) total += b.cost * shape_.kv_heads;
  const int32_t pieces = batch.num_tokens <= kMostSplitRows ? kWalksPerWorker : kItemsPerWorker;
  const int64_t target = total / (int64_t{workers_} * pieces) + 1;
  for (const Block& b : blocks_) add_items(b, target);
  // Longest first, so that the last pieces are short.
  const auto cost = [](const AttendItem& i) { return (i.tile_end - i.tile_begin) * (kTileRows + i.rows) * i.heads; };
  std::stable_sort(items_.begin(), items_.end(),
                   [&](const AttendItem& a, const AttendItem& b) { return cost(a) > cost(b); });
}

int32_t AttendPlan::block_rows(const lg_batch& batch) const {
  int32_t rows = kMostBlockRows;
  while (rows > kLeastBlockRows && int64_t{batch.num_tokens} / rows * shape_.kv_heads < workers_ * kItemsPerWorker)
    rows /= 2;
  return rows;
}

void AttendPlan::add_block(int32_t seq, int32_t row, int32_t rows, int32_t tile_begin, int32_t tile_end, bool joined) {
  blocks_.push_back({seq, row, rows, tile_begin, tile_end, joined, (tile_end - tile_begin) * (kTileRows + rows)});
  tokens_read_ += int64_t{tile_end - tile_begin} * kTile;
}

void AttendPlan::cut_rows(const lg_batch& batch, int32_t seq, int32_t most) {
  const int32_t end = batch.cu_seqlens_q[seq + 1];
  for (int32_t row = batch.cu_seqlens_q[seq]; row < end; row += most) {
    const int32_t rows = std::min(most, end - row), last = batch.positions[row + rows - 1];
    const int32_t first = shape_.window > 0 ? std::max(0, batch.positions[row] - shape_.window + 1) : 0;
    add_block(seq, row, rows, first / kTile, last / kTile + 1, false);
    tokens_read_ -= (last / kTile + 1) * kTile - (last + 1) + first % kTile;
  }
}

// Whole tiles that each sequence of one row shares with the one before it.
void AttendPlan::find_shared(const lg_batch& batch, int32_t page_size) {
  const int32_t pages = kTile / page_size;
  const auto single = [&](int32_t s) { return batch.cu_seqlens_q[s + 1] - batch.cu_seqlens_q[s] == 1; };
  for (int32_t s = 0; s < batch.num_seqs; ++s) {
    shared_[s] = 0;
    if (s == 0 || shape_.window > 0 || !single(s - 1) || !single(s)) continue;
    const int32_t row = batch.cu_seqlens_q[s];
    const int32_t tokens = std::min(batch.positions[row - 1], batch.positions[row]) + 1;
    const int32_t* a = batch.page_table + int64_t{s - 1} * batch.table_stride;
    const int32_t* b = a + batch.table_stride;
    const int32_t whole = tokens / kTile * pages;
    const int32_t same = static_cast<int32_t>(std::mismatch(a, a + whole, b).first - a) / pages;
    shared_[s] = same >= join_tiles_ ? same : 0;
  }
}

// Whether the records of these sequences' rows fit among the partial ones.
bool AttendPlan::join(const lg_batch& batch, int32_t begin, int32_t end) {
  int64_t tiles = 0;
  for (int32_t s = begin; s < end; ++s) tiles += batch.positions[batch.cu_seqlens_q[s]] / kTile + 1;
  const int64_t floats = tiles * row_floats(shape_.kv_heads);
  if (partials_promised_ + floats > partial_capacity_) return false;
  partials_promised_ += floats;
  return true;
}

// Blocks of the sequences [begin, end), which have the tiles before `tile` in common: those that some of them share
// further on first, then each one's own.
void AttendPlan::share(const lg_batch& batch, int32_t begin, int32_t end, int32_t tile) {
  for (int32_t s = begin; s < end;) {
    const int32_t row = batch.cu_seqlens_q[s], last = batch.positions[row];
    int32_t until = s + 1, common = last / kTile + 1;
    for (; until < end && shared_[until] > tile; ++until) common = std::min(common, shared_[until]);
    if (until == s + 1) common = last / kTile + 1;
    if (common > tile) add_block(s, row, until - s, tile, common, true);
    if (until > s + 1) {
      share(batch, s, until, common);
    } else {
      tokens_read_ -= (last / kTile + 1) * kTile - (last + 1);
    }
    s = until;
  }
}

// Reading all heads of a tile at once follows memory, but leaves fewer pieces to share out.
bool AttendPlan::takes_all_heads(const Block& block) const {
  if (block.rows * shape_.kv_heads * shape_.group > kAttendQueries) return false;
  const int64_t tiles = block.tile_end - block.tile_begin;
  return workers_ == 1 || static_cast<int64_t>(blocks_.size()) * tiles >= 2 * workers_;
}

void AttendPlan::add_items(const Block& block, int64_t target) {
  // The rows of joined blocks keep one chain each: all heads, or each its own, everywhere.
  const int32_t heads = !block.joined && takes_all_heads(block) ? shape_.kv_heads : 1;
  const int64_t cost = block.cost * heads;
  for (int32_t head = 0; head < shape_.kv_heads; head += heads)
    add_item({block.seq, head, heads, block.row, block.rows, block.tile_begin, block.tile_end, -1},
             (cost + target - 1) / target, block.joined);
}

void AttendPlan::add_item(AttendItem item, int64_t pieces, bool joined) {
  const int32_t begin = item.tile_begin, end = item.tile_end, tiles = end - begin;
  const int64_t floats = item.rows * row_floats(item.heads) * tiles;
  pieces = workers_ > 1 ? std::min<int64_t>(tiles, pieces) : 1;
  if (!joined && (pieces <= 1 || item.rows > kMostSplitRows || partials_promised_ + floats > partial_capacity_)) {
    items_.push_back(item);
    return;
  }
  if (!joined) partials_promised_ += floats;
  // Each piece a worker's share of what is left: long walks first, and short ones for whoever is done early.
  for (int32_t tile = begin, step; tile < end; tile += step) {
    step = pieces > 1 ? std::max(1, (end - tile) / workers_) : tiles;
    item.tile_begin = tile;
    item.tile_end = std::min(end, tile + step);
    item.partials = partials_used_;
    partials_used_ += item.rows * row_floats(item.heads) * (item.tile_end - item.tile_begin);
    items_.push_back(item);
    add_parts(item);
  }
}

void AttendPlan::add_parts(const AttendItem& item) {
  const int32_t tiles = item.tile_end - item.tile_begin;
  for (int32_t r = 0; r < item.rows; ++r) {
    const int32_t row = item.row + r, index = static_cast<int32_t>(parts_.size());
    Chain& c = chain(item.kv_head, row);
    parts_.push_back({item.partials + r * row_floats(item.heads) * tiles, tiles, -1});
    if (c.count++ == 0) {
      c.first = index;
      chained_.push_back(row * shape_.kv_heads + item.kv_head);
    } else {
      parts_[c.last].next = index;
    }
    c.last = index;
  }
}

}  // namespace lg
