// The AMX level's linear kernels on emulated tiles: see emulated_amx.h. Compiled with the AVX-512 level's flags.
//
// Knows: the kernels' source, the emulation. Does not know: what is tested.
#include "emulated_amx.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "../src/linear_amx_impl.h"
#include "emulated_tiles.h"

void fill_linear_emulated_amx(lg::Kernels* k) {
  lg::fill_linear_avx512(k);
  k->linear = lg::linear_amx<EmulatedTiles>;
}

#else

void fill_linear_emulated_amx(lg::Kernels*) {}

#endif
