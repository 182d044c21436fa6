// Attention kernels in plain C++, and what is the same at every level.
//
// Knows: which lanes_*.h to use, and sizes. Does not know: anything else.
#include <cmath>

#include "lanes_portable.h"

#include "attention_impl.h"

namespace lg {

void fill_attention_portable(Kernels* k) { fill_attention(k); }

KvLayout kv_layout(int32_t kind, int32_t heads, int32_t dim, int32_t page_size) {
  KvLayout kv = {kind, heads, dim, page_size, 0, 0, 0, 0, query_bytes(kind, dim)};
  while (1 << kv.page_shift < page_size) ++kv.page_shift;
  kv.head_bytes = page_size / kRecord * record_shape(kind, dim).bytes;
  kv.page_bytes = heads * kv.head_bytes;
  kv.extent_bytes = kv.page_bytes * kv.extent_pages();
  return kv;
}

int64_t attend_scratch_bytes(int32_t dim, int32_t group) { return scratch_plan(dim, group).end; }

}  // namespace lg
