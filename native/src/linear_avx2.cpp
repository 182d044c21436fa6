#include "kernels.h"
namespace lg { void fill_linear_avx2(Kernels*) {} }
