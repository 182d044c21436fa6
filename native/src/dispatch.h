// Instruction-set levels: which this build holds, which this machine can run, and why not more.
//
// Knows: cpuid, the state the system saves (XCR0), the kernels' fill functions. Does not know: what kernels compute.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace lg {

int32_t isa_count();
const char* isa_name(int32_t level);
// "" when the level can be used here, otherwise why not.
const char* isa_obstacle(int32_t level);

// The level of that name, or the highest one without an obstacle for "auto". Throws as select_kernels does; only the
// levels that could be chosen are asked for their obstacle.
int32_t choose_level(const char* name, const char* (*obstacle_to)(int32_t level));

// The table of a level by name, or of the highest usable one for "auto". Throws Error with what is known and why not.
Kernels select_kernels(const char* name);

}  // namespace lg
