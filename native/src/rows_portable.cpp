// Row kernels in plain C++.
//
// Knows: which lanes_*.h to use. Does not know: anything else.
#include <cmath>

#include "lanes_portable.h"

#include "rows_impl.h"

namespace lg {

void fill_rows_portable(Kernels* k) { fill_rows(k); }

}  // namespace lg
