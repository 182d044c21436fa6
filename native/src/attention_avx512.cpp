// Attention kernels on AVX-512 (F, BW, DQ, VL, VNNI).
//
// Knows: which lanes_*.h to use. Does not know: anything else.
#include "kernels.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)

#include <cmath>

#include "lanes_avx512.h"

#include "attention_impl.h"

namespace lg {

void fill_attention_avx512(Kernels* k) { fill_attention(k); }

}  // namespace lg

#else

namespace lg {
void fill_attention_avx512(Kernels*) {}
}  // namespace lg

#endif
