// Whether a step's arrays agree with each other and stay inside the pools: a wrong one must not touch memory.
//
// Knows: what Batch promises (ops.py). Does not know: what is computed.
#include <string>

#include "program.h"
#include "status.h"

namespace lg {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw Error(LG_BAD_BATCH, what); }

void check_rows(const lg_batch& b, int32_t s, const Limits& limits) {
  const int32_t* pages = b.page_table + int64_t{s} * b.table_stride;
  const int32_t begin = b.cu_seqlens_q[s], end = b.cu_seqlens_q[s + 1], length = b.seq_lens[s];
  const std::string where = "sequence " + std::to_string(s);
  if (begin >= end || end > b.num_tokens) refuse(where + " has no rows, or rows that are not there");
  if (length < end - begin) refuse(where + " has more rows than tokens");
  if (length > limits.num_positions) refuse(where + " goes beyond the model's learned positions");
  const int64_t used = (int64_t{length} + limits.page_size - 1) / limits.page_size;
  if (used > b.table_stride) refuse(where + " has fewer pages than its tokens need");
  for (int64_t p = 0; p < used; ++p)
    if (pages[p] < 0 || pages[p] >= limits.num_pages) refuse(where + " names a page that is not there");
  for (int32_t r = begin; r < end; ++r) {
    const int32_t position = length - (end - r);
    if (b.positions[r] != position) refuse(where + ": rows are not its last positions in order");
    if (b.slot_mapping[r] != pages[position / limits.page_size] * limits.page_size + position % limits.page_size)
      refuse(where + ": slot_mapping and page_table disagree");
    if (b.input_ids[r] < 0 || b.input_ids[r] >= limits.num_ids) refuse(where + ": a token id outside the vocabulary");
  }
}

}  // namespace

void check_batch(const lg_batch& b, const Limits& limits) {
  if (b.num_tokens < 0 || b.num_tokens > limits.max_tokens) refuse("more rows than the program was made for");
  if (b.num_seqs < 0 || b.num_seqs > limits.max_seqs) refuse("more sequences than the program was made for");
  if (b.num_logits < 0 || b.num_logits > b.num_tokens || b.table_stride < 0) refuse("negative sizes or too many logits");
  if (b.num_tokens == 0) return;
  if (b.num_seqs == 0 || b.cu_seqlens_q[0] != 0 || b.cu_seqlens_q[b.num_seqs] != b.num_tokens)
    refuse("cu_seqlens_q does not cover the rows");
  for (int32_t s = 0; s < b.num_seqs; ++s) check_rows(b, s, limits);
  for (int32_t i = 0; i < b.num_logits; ++i) {
    const int32_t row = b.logit_rows[i];
    if (row < 0 || row >= b.num_tokens || (i > 0 && row <= b.logit_rows[i - 1]))
      refuse("logit_rows are not ascending rows of the step");
  }
}

}  // namespace lg
