// Whether AMX may be used in this process, and computes what AVX-512 computes.
//
// Knows: the system's permission for tiles, a comparison on random numbers. Does not know: cpuid, how either multiplies.
#pragma once
#include "kernels.h"

namespace lg {

// A linear layer to compare two levels on, and how many rows it is given.
struct LinearCase {
  int32_t kind, outputs, cols, gated, rows, epilogue;
};

// Whether both give the same bits for random weights and rows of a quantised kind. Rows are quantised by `right`.
bool same_products(const Kernels& left, const Kernels& right, const LinearCase& c, uint64_t seed);

// Asks the system to let this process use tiles (Linux: arch_prctl); once granted it holds for all threads.
bool permit_tiles();

// "" when AMX may be used: the system permits it and the table `amx` agrees with `avx512`. Otherwise why not.
const char* amx_obstacle(bool (*permit)(), const Kernels& amx, const Kernels& avx512);

}  // namespace lg
