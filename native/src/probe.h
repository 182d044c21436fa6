// How fast this machine reads memory the way a step reads weights: each thread its own ascending share, on large pages.
//
// Knows: memory, threads, a clock. Does not know: weights.
#pragma once
#include <cstdint>

#include "memory.h"
#include "pool.h"

namespace lg {

// Nanoseconds of each of `passes` readings of `bytes` by the pool's first `readers` workers.
void read_probe(Pool& pool, int64_t bytes, int32_t readers, int32_t passes, int64_t* pass_ns);

}  // namespace lg
