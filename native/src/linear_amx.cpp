// The linear kernels with the processor's own tiles. Compiled with AMX and AVX-512 switched on; without a compiler that
// knows AMX, an empty table.
//
// Knows: the level's flags. Does not know: shapes, formats.
#include "kernels.h"

#if defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__AVX512VNNI__)
#include "linear_amx_impl.h"

namespace lg {
void fill_linear_amx(Kernels* k) {
  fill_linear_avx512(k);
  if (k->linear) k->linear = linear_amx<HardwareTiles>;
}
}  // namespace lg

#else

namespace lg {
void fill_linear_amx(Kernels*) {}
}  // namespace lg

#endif
