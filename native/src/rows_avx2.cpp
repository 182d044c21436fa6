// Row kernels on AVX2, FMA and F16C.
//
// Knows: which lanes_*.h to use. Does not know: anything else.
#include "kernels.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <cmath>

#include "lanes_avx2.h"

#include "rows_impl.h"

namespace lg {

void fill_rows_avx2(Kernels* k) { fill_rows(k); }

}  // namespace lg

#else

namespace lg {
void fill_rows_avx2(Kernels*) {}
}  // namespace lg

#endif
