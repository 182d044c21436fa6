// Linear kernels for AVX2 with FMA and F16C: quantised weights by vpmaddubsw, 8 outputs a register.
//
// Knows: packed blocks (linear_layout.h), quantised rows. Does not know: threads, buffers, how a block was packed.
//
// A group is unpacked to memory once for up to 12 rows; then four rows at a time take it quad by quad. Products of two
// bytes are added in 16 bits as long as they fit: 15 * 128 * 2 * 8 for nibbles, 31 * 128 * 2 * 4 for 5 bits,
// 63 * 128 * 2 * 2 for 6 bits. 8-bit weights do not fit once, so they go as two planes of nibbles.
#include "linear_layout.h"
#include "linear_rows.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "lanes_avx2.h"
#include "linear_run.h"

namespace lg {
namespace {

// Half h of a quad of 16 lanes is at + 32 * h.
struct alignas(64) Unpacked {
  uint8_t quads[2][512];  // the second plane holds the high nibbles of Q8_0
  float d[kLanes], m[kLanes];
  float sc[2][kLanes];  // Q6_K
};

inline LG_INLINE __m256i load32(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline LG_INLINE void store32(uint8_t* p, __m256i x) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), x); }
inline LG_INLINE __m256 halves8(const uint8_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline LG_INLINE __m128i load8(const uint8_t* p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)); }
inline LG_INLINE __m256 bytes_to_float(__m128i x) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x)); }
inline LG_INLINE __m256i shift_left(__m256i x, int bits) {
  return bits >= 0 ? _mm256_slli_epi16(x, bits < 0 ? 0 : bits) : _mm256_srli_epi16(x, bits < 0 ? -bits : 0);
}

// The quads of half h. Vectors of the packed group are 64 bytes apart, as the quads are.
template <int KIND>
inline LG_INLINE void unpack_half(const uint8_t* p, int h, Unpacked& out) {
  const __m256i mask = _mm256_set1_epi8(15);
  p += 32 * h;
  uint8_t *low = out.quads[0] + 32 * h, *high = out.quads[1] + 32 * h;
  if constexpr (KIND == W_Q8_0) {
    each<8>([&](auto v) LG_INLINE {
      const __m256i x = load32(p + 64 * v);
      store32(low + 64 * v, _mm256_and_si256(x, mask));
      store32(high + 64 * v, _mm256_and_si256(_mm256_srli_epi16(x, 4), mask));
    });
    return;
  }
  __m256i w[8];
  each<4>([&](auto j) LG_INLINE {
    const __m256i x = load32(p + 64 * j);
    w[2 * j] = _mm256_and_si256(x, mask);
    w[2 * j + 1] = _mm256_and_si256(_mm256_srli_epi16(x, 4), mask);
  });
  if constexpr (KIND == W_Q5_0 || KIND == W_Q5_1 || KIND == W_Q5_K) {
    const __m256i plane = load32(p + 256), bit = _mm256_set1_epi8(16);
    each<8>([&](auto v) LG_INLINE { w[v] = _mm256_or_si256(w[v], _mm256_and_si256(shift_left(plane, 4 - v), bit)); });
  }
  if constexpr (KIND == W_Q6_K) {
    const __m256i bits = _mm256_set1_epi8(48);
    each<8>([&](auto v) LG_INLINE {
      const __m256i plane = load32(p + 256 + 64 * (v / 4));
      w[v] = _mm256_or_si256(w[v], _mm256_and_si256(shift_left(plane, 4 - 2 * (v % 4)), bits));
    });
  }
  each<8>([&](auto v) LG_INLINE { store32(low + 64 * v, w[v]); });
}

// Scale and minimum of half h of group g of a Q4_K or Q5_K record.
inline LG_INLINE void unpack_k_scales(const uint8_t* scales, int g, int h, Unpacked& out) {
  const __m128i low = load8(scales + 64 + 16 * g + 8 * h);
  const __m128i high = _mm_srl_epi16(load8(scales + 192 + 16 * (g >> 1) + 8 * h), _mm_cvtsi32_si128((g & 1) * 4));
  const __m128i four = _mm_set1_epi8(15), two = _mm_set1_epi8(0x30);
  const __m128i scale = _mm_or_si128(_mm_and_si128(low, four), _mm_and_si128(_mm_slli_epi16(high, 4), two));
  const __m128i min =
      _mm_or_si128(_mm_and_si128(_mm_srli_epi16(low, 4), four), _mm_and_si128(_mm_slli_epi16(high, 2), two));
  const __m256 minus = _mm256_set1_ps(-0.0f);
  _mm256_store_ps(out.d + 8 * h, _mm256_mul_ps(halves8(scales + 16 * h), bytes_to_float(scale)));
  _mm256_store_ps(out.m + 8 * h,
                  _mm256_xor_ps(minus, _mm256_mul_ps(halves8(scales + 32 + 16 * h), bytes_to_float(min))));
}

template <int KIND>
inline LG_INLINE void unpack(const uint8_t* block, int64_t g, Unpacked& out) {
  const uint8_t* scales = block + scales_at(KIND, g);
  for (int h = 0; h < 2; ++h) {
    unpack_half<KIND>(block + quants_at(KIND, g), h, out);
    if constexpr (KIND == W_Q4_K || KIND == W_Q5_K) {
      unpack_k_scales(scales, static_cast<int>(g & 7), h, out);
      continue;
    }
    _mm256_store_ps(out.d + 8 * h, halves8(scales + 16 * h));
    if constexpr (has_min(KIND)) _mm256_store_ps(out.m + 8 * h, halves8(scales + 32 + 16 * h));
    if constexpr (KIND == W_Q6_K) {
      for (int i = 0; i < 2; ++i) {
        const __m128i bytes = load8(scales + 32 + 32 * (g & 7) + 16 * i + 8 * h);
        _mm256_store_ps(out.sc[i] + 8 * h, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
      }
    }
  }
}

inline LG_INLINE __m256i quad_of(const int8_t* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return _mm256_set1_epi32(x);
}

// sum[r][h] += times * (quads [FROM, TO) of a plane times lo of R rows); the caller sees to it that 16 bits suffice.
template <int R, int FROM, int TO>
inline LG_INLINE void add_quads(const uint8_t* plane, const QGroup* const (&rows)[R], int times,
                                __m256i (&sum)[2 * R]) {
  __m256i products[2 * R];
  each<TO - FROM>([&](auto V) LG_INLINE {
    constexpr int v = FROM + V;
    const __m256i w0 = load32(plane + 64 * v), w1 = load32(plane + 64 * v + 32);
    each<R>([&](auto r) LG_INLINE {
      const __m256i a = quad_of(rows[r]->lo + 4 * v), p0 = _mm256_maddubs_epi16(w0, a),
                    p1 = _mm256_maddubs_epi16(w1, a);
      products[2 * r] = V == 0 ? p0 : _mm256_add_epi16(products[2 * r], p0);
      products[2 * r + 1] = V == 0 ? p1 : _mm256_add_epi16(products[2 * r + 1], p1);
      // Left alone the compiler makes all products first and a tree of additions, and keeps them on the stack.
      asm("" : "+x"(products[2 * r]), "+x"(products[2 * r + 1]));
    });
  });
  const __m256i factor = _mm256_set1_epi16(static_cast<int16_t>(times));
  each<2 * R>([&](auto i) LG_INLINE { sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(products[i], factor)); });
}

// Products of one fine quad of a row, half h, still pairs of 16 bits; two of them fit their sum.
inline LG_INLINE __m256i fine_products(const uint8_t* plane, const QGroup& row, int i, int h) {
  return _mm256_maddubs_epi16(load32(plane + row.at[i] + 32 * h), quad_of(row.hi[i]));
}

template <int KIND, int R>
inline LG_INLINE void start_sums(const QGroup* const (&rows)[R], int minus, __m256i (&sum)[2 * R]) {
  each<R>([&](auto r) LG_INLINE {
    sum[2 * r] = sum[2 * r + 1] = offset_bits(KIND) < 0
                                      ? _mm256_setzero_si256()
                                      : _mm256_set1_epi32(rows[r]->minus[minus] * (1 << (offset_bits(KIND) & 31)));
  });
}

// float(int32 dot of the group) for R rows and both halves.
template <int KIND, int R>
inline LG_INLINE void group_dots(const Unpacked& x, const QGroup* const (&rows)[R], __m256 (&dots)[2 * R]) {
  constexpr int planes = KIND == W_Q8_0 ? 2 : 1;
  constexpr bool five = KIND == W_Q5_0 || KIND == W_Q5_1 || KIND == W_Q5_K;
  __m256i sum[2 * R];
  start_sums<KIND, R>(rows, 0, sum);
  each<planes>([&](auto p) LG_INLINE {
    constexpr int times = p == 0 ? 1 : 16;
    if constexpr (five) {
      add_quads<R, 0, 4>(x.quads[0], rows, 1, sum);
      add_quads<R, 4, 8>(x.quads[0], rows, 1, sum);
    } else {
      add_quads<R, 0, 8>(x.quads[p], rows, times, sum);
    }
    each<2 * R>([&](auto i) LG_INLINE {
      const QGroup& row = *rows[i / 2];
      const __m256i fine =
          _mm256_add_epi16(fine_products(x.quads[p], row, 0, i % 2), fine_products(x.quads[p], row, 1, i % 2));
      sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(fine, _mm256_set1_epi16(256 * times)));
    });
  });
  each<2 * R>([&](auto i) LG_INLINE { dots[i] = _mm256_cvtepi32_ps(sum[i]); });
}

// The same for Q6_K: halves of 16 k times their integer scales, and the fine quads times those of their halves.
template <int R>
inline LG_INLINE void q6_dots(const Unpacked& x, const QGroup* const (&rows)[R], __m256 (&dots)[2 * R]) {
  each<2 * R>([&](auto i) LG_INLINE { dots[i] = _mm256_setzero_ps(); });
  each<2>([&](auto half) LG_INLINE {
    __m256i sum[2 * R];
    start_sums<W_Q6_K, R>(rows, 1 + half, sum);
    add_quads<R, 4 * half, 4 * half + 2>(x.quads[0], rows, 1, sum);
    add_quads<R, 4 * half + 2, 4 * half + 4>(x.quads[0], rows, 1, sum);
    each<2 * R>([&](auto i) LG_INLINE {
      const QGroup& row = *rows[i / 2];
      const __m256 coarse = _mm256_load_ps(x.sc[half] + 8 * (i % 2)),
                   fine = _mm256_load_ps(x.sc[row.at[half] >> 8] + 8 * (i % 2));
      dots[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[i]), coarse, dots[i]);
      const __m256i product = _mm256_madd_epi16(fine_products(x.quads[0], row, half, i % 2), _mm256_set1_epi16(256));
      dots[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(product), fine, dots[i]);
    });
  });
}

// One group of R rows, added to their tile. Not inlined: twelve tile functions share four of these.
template <int KIND, int R>
__attribute__((noinline)) void add_group(const Unpacked& x, const uint8_t* act, int64_t act_stride, float* tile) {
  const QGroup* rows[R];
  each<R>([&](auto r) LG_INLINE { rows[r] = reinterpret_cast<const QGroup*>(act + r * act_stride); });
  __m256 dots[2 * R];
  if constexpr (KIND == W_Q6_K) {
    q6_dots<R>(x, rows, dots);
  } else {
    group_dots<KIND, R>(x, rows, dots);
  }
  each<2 * R>([&](auto i) LG_INLINE {
    const QGroup& row = *rows[i / 2];
    const __m256 scale = _mm256_mul_ps(_mm256_load_ps(x.d + 8 * (i % 2)), _mm256_set1_ps(row.d));
    __m256 acc = _mm256_fmadd_ps(dots[i], scale, _mm256_load_ps(tile + 8 * i));
    if constexpr (has_min(KIND)) acc = _mm256_fmadd_ps(_mm256_load_ps(x.m + 8 * (i % 2)), _mm256_set1_ps(row.s), acc);
    _mm256_store_ps(tile + 8 * i, acc);
  });
}

template <int KIND, int R>
void quantized_tile(const uint8_t* block, int64_t K, const uint8_t* act, int64_t act_stride, float* tile) {
  Unpacked x;
  each<2 * R>([&](auto i) LG_INLINE { _mm256_store_ps(tile + 8 * i, _mm256_setzero_ps()); });
  for (int64_t g = 0; g < K / kGroup; ++g, act += sizeof(QGroup)) {
    if constexpr (R > 1) send_far(block + g * group_bytes(KIND), group_bytes(KIND));
    unpack<KIND>(block, g, x);
    constexpr int kFours = R / 4;
    for (int r = 0; r < 4 * kFours; r += 4) add_group<KIND, 4>(x, act + r * act_stride, act_stride, tile + r * kLanes);
    if constexpr (R % 4 != 0)
      add_group<KIND, R % 4>(x, act + 4 * kFours * act_stride, act_stride, tile + 4 * kFours * kLanes);
  }
}

// Eight weights of k + ODD (k even), half h, from where the pair lies.
template <int KIND, int ODD>
inline LG_INLINE __m256 float_weights(const uint8_t* p, int h) {
  if constexpr (KIND == W_F32) return _mm256_loadu_ps(reinterpret_cast<const float*>(p) + 16 * ODD + 8 * h);
  if constexpr (KIND == W_F16) return halves8(p + 32 * ODD + 16 * h);
  const __m256i x = load32(p + 32 * h);
  if constexpr (ODD == 0) return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
  return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000))));
}

// One k of R rows.
template <int KIND, int ODD, int R>
inline LG_INLINE void float_step(const uint8_t* p, const Rows<float, 8, R>& rows, __m256 (&chains)[2 * R]) {
  const __m256 w0 = float_weights<KIND, ODD>(p, 0), w1 = float_weights<KIND, ODD>(p, 1);
  each<R>([&](auto r) LG_INLINE {
    const __m256 x = _mm256_set1_ps(rows[r][ODD]);
    chains[2 * r] = _mm256_fmadd_ps(w0, x, chains[2 * r]);
    chains[2 * r + 1] = _mm256_fmadd_ps(w1, x, chains[2 * r + 1]);
  });
}

// Up to three rows: twelve chains.
template <int KIND, int R>
__attribute__((noinline)) void float_rows(const uint8_t* block, int64_t K, const uint8_t* act, int64_t act_stride,
                                          float* tile) {
  __m256 even[2 * R], odd[2 * R];
  each<2 * R>([&](auto i) LG_INLINE { even[i] = odd[i] = _mm256_setzero_ps(); });
  Rows<float, 8, R> rows(act, act_stride);
  for (int64_t k = 0; k + 1 < K; k += 2, block += kLayouts[KIND].bytes, rows.next()) {
    float_step<KIND, 0, R>(block, rows, even);
    float_step<KIND, 1, R>(block, rows, odd);
  }
  if (K % 2) float_step<KIND, 0, R>(block, rows, even);  // the other half of the pair is padding
  each<2 * R>([&](auto i) LG_INLINE { _mm256_store_ps(tile + 8 * i, _mm256_add_ps(even[i], odd[i])); });
}

template <int KIND, int R>
void float_tile(const uint8_t* block, int64_t K, const uint8_t* act, int64_t act_stride, float* tile) {
  constexpr int kThrees = R / 3;
  for (int r = 0; r < 3 * kThrees; r += 3)
    float_rows<KIND, 3>(block, K, act + r * act_stride, act_stride, tile + r * kLanes);
  if constexpr (R % 3 != 0)
    float_rows<KIND, R % 3>(block, K, act + 3 * kThrees * act_stride, act_stride, tile + 3 * kThrees * kLanes);
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

void linear(const PackedLinear* w, const uint8_t* act, int64_t act_stride, int32_t M, int32_t begin, int32_t end,
            float* out, int64_t out_stride, int32_t epilogue, uint8_t*) {
  static constexpr TileTable tables[W_KINDS] = {tiles<W_F32>(),  tiles<W_F16>(),  tiles<W_BF16>(), tiles<W_Q8_0>(),
                                                tiles<W_Q4_0>(), tiles<W_Q4_1>(), tiles<W_Q5_0>(), tiles<W_Q5_1>(),
                                                tiles<W_Q4_K>(), tiles<W_Q5_K>(), tiles<W_Q6_K>()};
  run_linear(tables[w->kind], *w, act, act_stride, M, begin, end, out, out_stride, epilogue);
}

// The largest magnitude of each of 2 quads, in all their lanes.
inline LG_INLINE __m256i quad_most(__m256 x) {
  __m256i m = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
  m = _mm256_max_epu32(m, _mm256_shuffle_epi32(m, 0x4e));
  return _mm256_max_epu32(m, _mm256_shuffle_epi32(m, 0xb1));
}

// The three largest of 8 keys, descending.
struct TopKeys {
  uint32_t key[3];
};
inline LG_INLINE TopKeys top_keys(__m256i keys) {
  TopKeys top;
  for (uint32_t& key : top.key) {
    __m256i most = _mm256_max_epu32(keys, _mm256_permute4x64_epi64(keys, 0x4e));
    most = _mm256_max_epu32(most, _mm256_shuffle_epi32(most, 0x4e));
    most = _mm256_max_epu32(most, _mm256_shuffle_epi32(most, 0xb1));
    keys = _mm256_andnot_si256(_mm256_cmpeq_epi32(keys, most), keys);
    key = static_cast<uint32_t>(_mm256_cvtsi256_si32(most));
  }
  return top;
}

void quantize_row(const float* x, int64_t K, uint8_t* record) {
  QGroup* groups = reinterpret_cast<QGroup*>(record);
  for (int64_t g = 0; g < K / kGroup; ++g, x += kGroup) {
    QGroup& group = groups[g];
    alignas(32) uint32_t most[8];
    for (int i = 0; i < 4; ++i) {
      const __m256i m = quad_most(_mm256_loadu_ps(x + 8 * i));
      most[2 * i] = quad_key(static_cast<uint32_t>(_mm256_cvtsi256_si32(m)), 2 * i);
      most[2 * i + 1] = quad_key(static_cast<uint32_t>(_mm256_extract_epi32(m, 4)), 2 * i + 1);
    }
    const TopKeys top = top_keys(_mm256_load_si256(reinterpret_cast<const __m256i*>(most)));
    const GroupScale scale = group_scale(top.key[0], top.key[2]);
    alignas(32) int32_t q[kGroup];
    for (int i = 0; i < 4; ++i) {  // a factor of 0 means zeros, also where x is a NaN
      const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(scale.factor));
      const __m256i any = _mm256_set1_epi32(scale.factor == 0.0f ? 0 : -1);
      _mm256_store_si256(reinterpret_cast<__m256i*>(q + 8 * i), _mm256_and_si256(any, _mm256_cvtps_epi32(scaled)));
    }
    int32_t sum[2] = {0, 0};
    for (int i = 0; i < kGroup; ++i) {
      group.lo[i] = static_cast<int8_t>(q[i] & 255);
      sum[i / 16] += q[i];
    }
    put_group(group, scale.d, sum[0], sum[1], top.key[0], top.key[1]);
    for (int i = 0; i < 8; ++i) {
      const int at = group.at[i / 4] / 16 + i % 4;
      group.hi[i / 4][i % 4] = static_cast<int8_t>((q[at] - group.lo[at]) >> 8);
    }
  }
  zero_padding(groups, K / kGroup);
}

}  // namespace

void fill_linear_avx2(Kernels* k) {
  k->quantize_row = quantize_row;
  k->linear = linear;
  k->table_row = table_row;
}

}  // namespace lg

#else

namespace lg {
void fill_linear_avx2(Kernels*) {}
}  // namespace lg

#endif
