// Linear kernels in plain C++: every kind, any machine, and the slow twin of the other levels.
//
// Knows: packed blocks, quantised rows. Does not know: instructions; the loops over 16 outputs are left to the
// compiler. Multiply and add are rounded apart here (an FMA in software would cost a hundred times as much).
#include <cmath>

#include "lanes_portable.h"
#include "linear_rows.h"
#include "linear_run.h"

namespace lg {
namespace {

// A group of a block: quants as [k][16], and the scales of 16 outputs.
struct Group {
  int16_t w[kGroup][kLanes];
  float d[kLanes], m[kLanes], sc[2][kLanes];
};

float half_at(const uint8_t* p, int lane) {
  uint16_t h;
  std::memcpy(&h, p + 2 * lane, 2);
  return half_to_float(h);
}

void put_quad(const uint32_t* words, int v, int offset, Group& out) {
  for (int b = 0; b < 4; ++b) {
    for (int o = 0; o < kLanes; ++o)
      out.w[4 * v + b][o] = static_cast<int16_t>(static_cast<int>(words[o] >> (8 * b) & 255) - offset);
  }
}

// Quad v of a group from its planes: nibbles, then what the kind adds.
void read_quads(int kind, const uint8_t* p, Group& out) {
  const int offset = offset_bits(kind) < 0 ? 0 : 1 << offset_bits(kind);
  for (int v = 0; v < 8; ++v) {
    uint32_t words[kLanes], extra[kLanes];
    std::memcpy(words, p + 64 * (kind == W_Q8_0 ? v : v / 2), 64);
    if (kind != W_Q8_0) {
      for (int o = 0; o < kLanes; ++o) words[o] = words[o] >> (v % 2 * 4) & 0x0f0f0f0fu;
    }
    if (kind == W_Q5_0 || kind == W_Q5_1 || kind == W_Q5_K) {
      std::memcpy(extra, p + 256, 64);
      for (int o = 0; o < kLanes; ++o) words[o] |= (extra[o] >> v & 0x01010101u) << 4;
    }
    if (kind == W_Q6_K) {
      std::memcpy(extra, p + 256 + 64 * (v / 4), 64);
      for (int o = 0; o < kLanes; ++o) words[o] |= (extra[o] >> (v % 4 * 2) & 0x03030303u) << 4;
    }
    put_quad(words, v, offset, out);
  }
}

void read_k_scales(const uint8_t* unit, int g, Group& out) {
  for (int o = 0; o < kLanes; ++o) {
    const int low = unit[64 + 16 * g + o], high = unit[192 + 16 * (g / 2) + o] >> (g % 2 * 4) & 15;
    out.d[o] = half_at(unit, o) * static_cast<float>((low & 15) | (high & 3) << 4);
    out.m[o] = -(half_at(unit + 32, o) * static_cast<float>(low >> 4 | (high >> 2) << 4));
  }
}

void read_group(int kind, const uint8_t* block, int64_t g, Group& out) {
  read_quads(kind, block + quants_at(kind, g), out);
  const uint8_t* scales = block + scales_at(kind, g);
  const int in_record = static_cast<int>(g % 8);
  if (kind == W_Q4_K || kind == W_Q5_K) {
    read_k_scales(scales, in_record, out);
    return;
  }
  for (int o = 0; o < kLanes; ++o) {
    out.d[o] = half_at(scales, o);
    if (has_min(kind)) out.m[o] = half_at(scales + 32, o);
    if (kind != W_Q6_K) continue;
    for (int h = 0; h < 2; ++h)
      out.sc[h][o] = static_cast<float>(static_cast<int8_t>(scales[32 + 32 * in_record + 16 * h + o]));
  }
}

// Eight whole numbers: a register of any machine, spelled out because loops over 16 bits are widened to 32 first.
typedef int16_t Shorts __attribute__((vector_size(16)));

// sum[o] = sum of COUNT weights times as many activations, SPAN at a time in 16 bits.
template <int COUNT, int SPAN>
void dot(const int16_t (*w)[kLanes], const int8_t* a, int32_t* __restrict sum) {
  for (int o = 0; o < kLanes; ++o) sum[o] = 0;
  for (int from = 0; from < COUNT; from += SPAN) {
    Shorts low = {}, high = {};
    for (int k = from; k < from + SPAN; ++k) {
      Shorts w0, w1;
      std::memcpy(&w0, w[k], sizeof w0);
      std::memcpy(&w1, w[k] + 8, sizeof w1);
      low += w0 * static_cast<int16_t>(a[k]);
      high += w1 * static_cast<int16_t>(a[k]);
    }
    int16_t part[kLanes];
    std::memcpy(part, &low, sizeof low);
    std::memcpy(part + 8, &high, sizeof high);
    for (int o = 0; o < kLanes; ++o) sum[o] += part[o];
  }
}

// Products that fit 16 bits: 15 * 128 * 16 of nibbles, 31 * 128 * 8 of 5 bits, 32 * 128 * 4 of 6 bits, 128 * 128 of 8.
template <int COUNT>
void dot(int kind, const int16_t (*w)[kLanes], const int8_t* a, int32_t* sum) {
  switch (kind) {
    case W_Q8_0:
      return dot<COUNT, 1>(w, a, sum);
    case W_Q6_K:
      return dot<COUNT, 4>(w, a, sum);
    case W_Q5_0:
    case W_Q5_1:
    case W_Q5_K:
      return dot < COUNT, COUNT<8 ? COUNT : 8>(w, a, sum);
    default:
      return dot < COUNT, COUNT<16 ? COUNT : 16>(w, a, sum);
  }
}

void group_dots(int kind, const Group& x, const QGroup& row, float* __restrict dots) {
  int32_t coarse[2][kLanes], fine[2][kLanes];
  for (int i = 0; i < 2; ++i) dot<4>(kind, x.w + row.at[i] / 16, row.hi[i], fine[i]);
  if (kind != W_Q6_K) {
    dot<32>(kind, x.w, row.lo, coarse[0]);
    for (int o = 0; o < kLanes; ++o) dots[o] = static_cast<float>(coarse[0][o] + 256 * (fine[0][o] + fine[1][o]));
    return;
  }
  for (int o = 0; o < kLanes; ++o) dots[o] = 0.0f;
  for (int h = 0; h < 2; ++h) {  // halves of 16 k times their integer scales, and the fine quads times those of theirs
    dot<16>(kind, x.w + 16 * h, row.lo + 16 * h, coarse[h]);
    const float *own = x.sc[h], *other = x.sc[row.at[h] / 256];
    for (int o = 0; o < kLanes; ++o) {
      dots[o] += static_cast<float>(coarse[h][o]) * own[o] + static_cast<float>(256 * fine[h][o]) * other[o];
    }
  }
}

void add_group(int kind, const Group& x, const QGroup& row, float* __restrict acc) {
  float dots[kLanes];
  group_dots(kind, x, row, dots);
  const float d = row.d, s = row.s;
  for (int o = 0; o < kLanes; ++o) acc[o] += dots[o] * (x.d[o] * d);
  if (has_min(kind)) {
    for (int o = 0; o < kLanes; ++o) acc[o] += x.m[o] * s;
  }
}

void quantized_tile(int kind, const uint8_t* block, int64_t K, const uint8_t* act, int64_t stride, int rows,
                    float* tile) {
  for (int i = 0; i < rows * kLanes; ++i) tile[i] = 0.0f;
  for (int64_t g = 0; g < K / kGroup; ++g) {
    Group x;
    read_group(kind, block, g, x);
    for (int r = 0; r < rows; ++r)
      add_group(kind, x, reinterpret_cast<const QGroup*>(act + r * stride)[g], tile + r * kLanes);
  }
}

void read_floats(int kind, const uint8_t* block, int64_t k, float* w) {
  const uint8_t* pair = block + k / 2 * kLayouts[kind].bytes;
  if (kind == W_F32) {
    std::memcpy(w, pair + k % 2 * 64, 64);
  } else if (kind == W_F16) {
    uint16_t halves[kLanes];
    std::memcpy(halves, pair + k % 2 * 32, 32);
    for (int o = 0; o < kLanes; ++o) w[o] = half_to_float(halves[o]);
  } else {
    uint32_t words[kLanes];
    std::memcpy(words, pair, 64);
    for (int o = 0; o < kLanes; ++o) w[o] = bits_to_float(k % 2 ? words[o] & 0xffff0000u : words[o] << 16);
  }
}

void float_tile(int kind, const uint8_t* block, int64_t K, const uint8_t* act, int64_t stride, int rows, float* tile) {
  float odd[kRows * kLanes];
  for (int i = 0; i < rows * kLanes; ++i) tile[i] = odd[i] = 0.0f;
  for (int64_t k = 0; k < K; ++k) {
    float w[kLanes];
    read_floats(kind, block, k, w);
    float* __restrict sum = k % 2 ? odd : tile;
    for (int r = 0; r < rows; ++r) {
      const float x = reinterpret_cast<const float*>(act + r * stride)[k];
      for (int o = 0; o < kLanes; ++o) sum[r * kLanes + o] += w[o] * x;
    }
  }
  for (int i = 0; i < rows * kLanes; ++i) tile[i] += odd[i];
}

void linear(const PackedLinear* w, const uint8_t* act, int64_t act_stride, int32_t M, int32_t begin, int32_t end,
            float* out, int64_t out_stride, int32_t epilogue, uint8_t*) {
  const int parts = w->gated ? 2 : 1;
  const int64_t K = w->cols, bytes = block_bytes(w->kind, K);
  float tile[2 * kRows * kLanes];
  for (int64_t i = begin; i < end; ++i) {
    for (int32_t row = 0; row < M; row += kRows) {
      const int rows = M - row < kRows ? M - row : kRows;
      for (int p = 0; p < parts; ++p) {
        const uint8_t* block = w->data + (parts * i + p) * bytes;
        float* part = tile + p * rows * kLanes;
        (takes_quantized_rows(w->kind) ? quantized_tile : float_tile)(w->kind, block, K, act + row * act_stride,
                                                                      act_stride, rows, part);
      }
      store_tile(*w, tile, tile + rows * kLanes, rows, i, epilogue, out + row * out_stride, out_stride);
    }
  }
}

// The three largest keys of a group's quads.
struct Keys {
  uint32_t first = 0, second = 0, third = 0;

  void add(uint32_t key) {
    if (key > first) {
      third = second, second = first, first = key;
    } else if (key > second) {
      third = second, second = key;
    } else if (key > third) {
      third = key;
    }
  }
};

void quantize_row(const float* x, int64_t K, uint8_t* record) {
  QGroup* groups = reinterpret_cast<QGroup*>(record);
  for (int64_t g = 0; g < K / kGroup; ++g, x += kGroup) {
    Keys keys;
    for (int v = 0; v < 8; ++v) {
      uint32_t most = 0;
      for (int i = 0; i < 4; ++i) {
        const uint32_t magnitude = float_to_bits(x[4 * v + i]) & 0x7fffffffu;
        most = magnitude > most ? magnitude : most;
      }
      keys.add(quad_key(most, v));
    }
    const GroupScale scale = group_scale(keys.first, keys.third);
    int32_t sum[2] = {0, 0};
    int8_t hi[kGroup];
    for (int i = 0; i < kGroup; ++i) {
      const int32_t q = scale.factor == 0.0f ? 0 : static_cast<int32_t>(std::nearbyintf(x[i] * scale.factor));
      groups[g].lo[i] = static_cast<int8_t>(q & 255);
      hi[i] = static_cast<int8_t>((q - groups[g].lo[i]) >> 8);
      sum[i / 16] += q;
    }
    put_group(groups[g], scale.d, sum[0], sum[1], keys.first, keys.second);
    for (int i = 0; i < 8; ++i) groups[g].hi[i / 4][i % 4] = hi[groups[g].at[i / 4] / 16 + i % 4];
  }
  zero_padding(groups, K / kGroup);
}

}  // namespace

void fill_linear_portable(Kernels* k) {
  k->quantize_row = quantize_row;
  k->linear = linear;
  k->table_row = table_row;
}

}  // namespace lg
