// Linear kernels for AVX-512 with VNNI: quantised weights by vpdpbusd, 16 outputs a vector.
//
// Knows: packed blocks (linear_layout.h), quantised rows. Does not know: threads, buffers, how a block was packed.
//
// One micro kernel serves every number of rows: per group of 32 it holds the 8 quads of 16 outputs in registers and,
// for each row, takes 8 vpdpbusd with the activation broadcast from memory, one conversion, and the float step of the
// contract, beside two more for the values with 16 bits. Weights are unpacked once for up to 12 rows.
#include "linear_layout.h"
#include "linear_rows.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "lanes_avx512.h"
#include "linear_avx512_float.h"
#include "linear_avx512_group.h"

namespace lg {
namespace {

// float(int32 dot of the group); for Q6_K of its halves, times their integer scales. `quads` are x.w in memory.
template <int KIND>
inline LG_INLINE __m512 group_dot(const Group& x, const uint8_t* quads, const Spill& spill, const QGroup& row) {
  const __m512i zero = _mm512_setzero_si512();
  if constexpr (KIND != W_Q6_K) {
    const __m512i fine = fine_dot(fine_dot(zero, quads, row, 0), quads, row, 1);
    return _mm512_cvtepi32_ps(_mm512_add_epi32(coarse_dot<KIND, 0, 8>(x, row, 0), _mm512_slli_epi32(fine, 8)));
  } else {
    const auto scale = [&](int i) LG_INLINE { return _mm512_load_ps(spill.scales[row.at[i] >> 8]); };
    const __m512 fine = _mm512_mul_ps(_mm512_cvtepi32_ps(fine_dot(zero, quads, row, 0)), scale(0));
    const __m512 fines = _mm512_fmadd_ps(_mm512_cvtepi32_ps(fine_dot(zero, quads, row, 1)), scale(1), fine);
    const __m512 first = _mm512_mul_ps(_mm512_cvtepi32_ps(coarse_dot<KIND, 0, 4>(x, row, 1)), x.sc);
    const __m512 both = _mm512_fmadd_ps(_mm512_cvtepi32_ps(coarse_dot<KIND, 4, 8>(x, row, 2)), x.m, first);
    return _mm512_fmadd_ps(fines, bc(256.0f), both);
  }
}

// tile[r][16] = the contract's chain over all groups, for R rows and the 16 outputs of one block.
template <int KIND, int R>
void quantized_tile(const uint8_t* block, int64_t K, const uint8_t* act, int64_t act_stride, float* tile) {
  Rows<QGroup, sizeof(QGroup), R> rows(act, act_stride);
  Spill spill;
  __m512 acc[R];
  each<R>([&](auto r) LG_INLINE { acc[r] = _mm512_setzero_ps(); });
  for (int64_t g = 0; g < K / kGroup; ++g, rows.next()) {
    Group x;
    read_group<KIND, R == 1>(block, g, x);
    const uint8_t* quads = KIND == W_Q8_0 ? block + quants_at(KIND, g) : spill.quads;
    if constexpr (KIND != W_Q8_0) each<8>([&](auto v) LG_INLINE { _mm512_store_si512(spill.quads + 64 * v, x.w[v]); });
    if constexpr (KIND == W_Q6_K) {
      _mm512_store_ps(spill.scales[0], x.sc);
      _mm512_store_ps(spill.scales[1], x.m);
    }
    each<R>([&](auto r) LG_INLINE {
      const QGroup& row = *rows[r];
      const __m512 scale = _mm512_mul_ps(x.d, bc(row.d));
      acc[r] = _mm512_fmadd_ps(group_dot<KIND>(x, quads, spill, row), scale, acc[r]);
      if constexpr (has_min(KIND)) acc[r] = _mm512_fmadd_ps(x.m, bc(row.s), acc[r]);
    });
  }
  each<R>([&](auto r) LG_INLINE { _mm512_store_ps(tile + 16 * r, acc[r]); });
}

template <int KIND>
constexpr TileTable tiles() {
  TileTable table = {};
  each<kRows>([&](auto r) {
    if constexpr (takes_quants(KIND)) {
      table.of_rows[r + 1] = quantized_tile<KIND, r + 1>;
    } else {
      table.of_rows[r + 1] = float_tile<KIND, r + 1>;
    }
  });
  return table;
}

}  // namespace

void linear_avx512(const PackedLinear* w, const uint8_t* act, int64_t act_stride, int32_t M, int32_t begin, int32_t end,
                   float* out, int64_t out_stride, int32_t epilogue, uint8_t*) {
  static constexpr TileTable tables[W_KINDS] = {tiles<W_F32>(),  tiles<W_F16>(),  tiles<W_BF16>(), tiles<W_Q8_0>(),
                                                tiles<W_Q4_0>(), tiles<W_Q4_1>(), tiles<W_Q5_0>(), tiles<W_Q5_1>(),
                                                tiles<W_Q4_K>(), tiles<W_Q5_K>(), tiles<W_Q6_K>()};
  run_linear(tables[w->kind], *w, act, act_stride, M, begin, end, out, out_stride, epilogue);
}

void fill_linear_avx512(Kernels* k) {
  k->quantize_row = quantize_row;
  k->linear = linear_avx512;
  k->table_row = table_row;
}

}  // namespace lg

#else

namespace lg {
void fill_linear_avx512(Kernels*) {}
}  // namespace lg

#endif
