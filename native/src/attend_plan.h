// How one step's attention is cut into pieces of work: rows, heads, and ranges of tiles.
//
// Knows: positions, windows, page tables, costs in tiles. Does not know: keys, values, kernels.
//
// Many rows: a piece is a block of a sequence's rows, all their tiles, one kv head. Few rows: all kv heads, so that
// memory is read in the order in which it lies; over many tiles these are split too. Neighbouring sequences of one row
// each whose leading tiles lie in the same pages are one block over those tiles: shared pages are read once for all.
// A row whose tiles are in several pieces is merged, in tile order, by whoever finishes its last. Bits depend on none
// of it.
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
  int64_t partials;    // floats from the start of all partial records; -1: it writes its output itself
};

// One row's records of a piece, and the part of the following tiles; -1: none.
struct AttendPart {
  int64_t partials;
  int32_t tiles, next;
};

class AttendPlan {
 public:
  AttendPlan(AttendShape shape, int32_t workers, int64_t partial_capacity, int32_t max_tokens, int32_t max_seqs);

  const AttendShape& shape() const { return shape_; }
  void build(const lg_batch& batch, int32_t page_size);
  // Sequences are joined over what they share only from so many tiles on.
  void join_from(int64_t tiles) { join_tiles_ = tiles; }
  const std::vector<AttendItem>& items() const { return items_; }
  // True when the row's other pieces are done too; `use` counts the layers of this step that ran the plan before.
  bool completes(const AttendItem& item, int32_t row, int32_t use);
  int32_t first_part(const AttendItem& item, int32_t row) const { return chain(item.kv_head, row).first; }
  const AttendPart& part(int32_t index) const { return parts_[index]; }
  // Tokens of one kv head whose keys and values a layer reads from memory; pages that rows share count once.
  int64_t tokens_read() const { return tokens_read_; }

 private:
  struct Block {
    int32_t seq, row, rows, tile_begin, tile_end;
    bool joined;       // its rows have other blocks too
    int64_t cost;
  };
  // The parts of one row and kv head (or of all, which then is the first).
  struct Chain {
    int32_t first = -1, last = -1, count = 0;
    std::atomic<int32_t> arrived{0};
  };

  const Chain& chain(int32_t head, int32_t row) const { return chains_[size_t(row) * shape_.kv_heads + head]; }
  Chain& chain(int32_t head, int32_t row) { return chains_[size_t(row) * shape_.kv_heads + head]; }
  void add_block(int32_t seq, int32_t row, int32_t rows, int32_t tile_begin, int32_t tile_end, bool joined);
  void cut_rows(const lg_batch& batch, int32_t seq, int32_t most);
  void find_shared(const lg_batch& batch, int32_t page_size);
  bool join(const lg_batch& batch, int32_t begin, int32_t end);
  void share(const lg_batch& batch, int32_t begin, int32_t end, int32_t tile);
  int32_t block_rows(const lg_batch& batch) const;
  bool takes_all_heads(const Block& block) const;
  void add_items(const Block& block, int64_t target);
  void add_item(AttendItem item, int64_t pieces, bool joined);
  void add_parts(const AttendItem& item);
  int64_t row_floats(int32_t heads) const;

  const AttendShape shape_;
  const int32_t workers_;
  const int64_t partial_capacity_;
  int64_t partials_used_ = 0, partials_promised_ = 0, tokens_read_ = 0;
  int64_t join_tiles_ = 1;
  std::vector<int32_t> shared_;  // tiles that a sequence shares with the one before it
  std::vector<Block> blocks_;
  std::vector<AttendItem> items_;
  std::vector<AttendPart> parts_;
  std::unique_ptr<Chain[]> chains_;
  std::vector<int32_t> chained_;  // chains in use
};

}  // namespace lg
