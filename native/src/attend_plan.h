// How one step's attention is cut into pieces of work: rows, heads, and ranges of tiles.
//
// Knows: positions, windows, costs in tiles. Does not know: keys, values, kernels.
//
// Many rows: a piece is a block of a sequence's rows, all their tiles, one kv head. Few rows: all kv heads, so that
// memory is read in the order in which it lies; over many tiles these are split too, and whoever finishes a split last
// merges its records in tile order. Bits depend on none of it.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "../legato.h"

namespace lg {

struct AttendShape {
  int32_t kv_heads, group, dim, window;
  bool operator==(const AttendShape& o) const {
    return kv_heads == o.kv_heads && group == o.group && dim == o.dim && window == o.window;
  }
};

struct AttendItem {
  int32_t seq, kv_head, heads;
  int32_t row, rows;
  int32_t tile_begin, tile_end;
  int32_t split;       // index of the split it belongs to, or -1: it writes its output itself
};

// Tiles [tile_begin, tile_end) of one item, cut every `step` tiles; records of piece after piece from `partials` on.
struct AttendSplit {
  int32_t tile_begin, tile_end, step, pieces;
  int64_t partials;    // floats
};

class AttendPlan {
 public:
  AttendPlan(AttendShape shape, int32_t workers, int64_t partial_capacity, int32_t max_tokens, int32_t max_seqs);

  const AttendShape& shape() const { return shape_; }
  void build(const lg_batch& batch);
  const std::vector<AttendItem>& items() const { return items_; }
  const AttendSplit& split(int32_t index) const { return splits_[index]; }
  int64_t record_floats(const AttendItem& item) const;
  // True for the piece that completes its split; `use` counts the layers of this step that ran the plan before.
  bool completes(int32_t split, int32_t use);

 private:
  struct Block {
    int32_t seq, row, rows, tile_begin, tile_end;
    int64_t cost;
  };

  void cut_rows(const lg_batch& batch);
  int32_t block_rows(const lg_batch& batch) const;
  bool takes_all_heads(const Block& block) const;
  void add_items(const Block& block, int64_t target);
  void add_item(AttendItem item, int64_t pieces);

  const AttendShape shape_;
  const int32_t workers_;
  const int64_t partial_capacity_;
  int64_t partials_used_ = 0;
  std::vector<Block> blocks_;
  std::vector<AttendItem> items_;
  std::vector<AttendSplit> splits_;
  std::unique_ptr<std::atomic<int32_t>[]> arrived_;  // a split
  int32_t max_splits_;
};

}  // namespace lg
