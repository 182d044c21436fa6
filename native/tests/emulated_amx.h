// The AMX level's linear kernels on emulated tiles, for tests. The rest of the table is left as it is.
//
// Knows: the name. Does not know: how tiles are emulated.
#pragma once
#include "../src/kernels.h"

// Leaves the table empty where the compiler knows no AVX-512. To be called only where the processor has it.
void fill_linear_emulated_amx(lg::Kernels* k);
