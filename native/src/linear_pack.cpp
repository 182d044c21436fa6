// Packs weights from file order into the blocks of linear_layout.h, and reads rows of a table.
//
// Knows: GGUF's quantised blocks and our layout. Does not know: instructions, models.
// Block formats as defined by ggml (ggml-common.h) and the GGUF specification. Four values are handled as the four
// bytes of a 32-bit word throughout: word v of a group of 32 is k = 4v .. 4v + 3, as in the layout.
#include <cstring>

#include "linear_layout.h"
#include "linear_rows.h"

namespace lg {
namespace {

constexpr uint32_t kNibbles = 0x0f0f0f0f;

uint32_t word(const uint8_t* p) {
  uint32_t w;
  std::memcpy(&w, p, 4);
  return w;
}

void put_word(uint8_t* p, uint32_t w) { std::memcpy(p, &w, 4); }

// Four bits to the lowest bits of four bytes.
uint32_t spread(uint32_t bits) { return ((bits & 15) * 0x00204081u) & 0x01010101u; }

// The 8 words of group `g` of a unit: quants as unsigned bytes.
void decode_group(int kind, const uint8_t* unit, int g, uint32_t q[8]) {
  switch (kind) {
    case W_Q8_0:
      for (int v = 0; v < 8; ++v) q[v] = word(unit + 2 + 4 * v) ^ 0x80808080u;
      return;
    case W_Q4_0:
    case W_Q4_1:
    case W_Q5_0:
    case W_Q5_1: {
      const bool five = kind == W_Q5_0 || kind == W_Q5_1;
      const int scales = kind == W_Q4_1 || kind == W_Q5_1 ? 4 : 2;
      const uint32_t high = five ? word(unit + scales) : 0;
      const uint8_t* low = unit + scales + (five ? 4 : 0);
      for (int v = 0; v < 4; ++v) {
        q[v] = (word(low + 4 * v) & kNibbles) | spread(high >> (4 * v)) << 4;
        q[v + 4] = (word(low + 4 * v) >> 4 & kNibbles) | spread(high >> (4 * v + 16)) << 4;
      }
      return;
    }
    case W_Q4_K:
    case W_Q5_K: {
      const uint8_t* low = unit + (kind == W_Q4_K ? 16 : 48) + g / 2 * 32;
      const uint8_t* high = unit + 16;
      for (int v = 0; v < 8; ++v) {
        q[v] = word(low + 4 * v) >> (g % 2 * 4) & kNibbles;
        if (kind == W_Q5_K) q[v] |= (word(high + 4 * v) >> g & 0x01010101u) << 4;
      }
      return;
    }
    default: {  // Q6_K: a half of 128 holds four groups
      const uint8_t* low = unit + g / 4 * 64 + g % 2 * 32;
      const uint8_t* high = unit + 128 + g / 4 * 32;
      for (int v = 0; v < 8; ++v) {
        q[v] = word(low + 4 * v) >> (g % 4 / 2 * 4) & kNibbles;
        q[v] |= (word(high + 4 * v) >> (g % 4 * 2) & 0x03030303u) << 4;
      }
    }
  }
}

// Scale and minimum of group g of a Q4_K or Q5_K unit: twelve bytes of 6-bit numbers.
void decode_scales(const uint8_t* unit, int g, uint8_t* scale, uint8_t* minimum) {
  const uint8_t* s = unit + 4;
  if (g < 4) {
    *scale = s[g] & 63;
    *minimum = s[g + 4] & 63;
  } else {
    *scale = static_cast<uint8_t>((s[g + 4] & 15) | (s[g - 4] >> 6) << 4);
    *minimum = static_cast<uint8_t>(s[g + 4] >> 4 | (s[g] >> 6) << 4);
  }
}

void put_nibbles(const uint32_t q[8], uint8_t* dst, int lane) {
  for (int j = 0; j < 4; ++j) put_word(dst + 64 * j + 4 * lane, (q[2 * j] & kNibbles) | (q[2 * j + 1] & kNibbles) << 4);
}

void put_bit_plane(const uint32_t q[8], uint8_t* dst, int lane) {
  uint32_t plane = 0;
  for (int v = 0; v < 8; ++v) plane |= (q[v] >> 4 & 0x01010101u) << v;
  put_word(dst + 4 * lane, plane);
}

void put_two_bit_planes(const uint32_t q[8], uint8_t* dst, int lane) {
  uint32_t plane[2] = {0, 0};
  for (int v = 0; v < 8; ++v) plane[v / 4] |= (q[v] >> 4 & 0x03030303u) << (2 * (v % 4));
  put_word(dst + 4 * lane, plane[0]);
  put_word(dst + 64 + 4 * lane, plane[1]);
}

void put_half(uint8_t* dst, int lane, const uint8_t* f16) { std::memcpy(dst + 2 * lane, f16, 2); }

void put_planes(int kind, const uint32_t q[8], uint8_t* dst, int lane) {
  if (kind == W_Q8_0) {
    for (int v = 0; v < 8; ++v) put_word(dst + 64 * v + 4 * lane, q[v]);
    return;
  }
  put_nibbles(q, dst, lane);
  if (kind == W_Q5_0 || kind == W_Q5_1 || kind == W_Q5_K) put_bit_plane(q, dst + 256, lane);
  if (kind == W_Q6_K) put_two_bit_planes(q, dst + 256, lane);
}

// A unit's scales; `dst` is where the layout says for its first group.
void put_scales(int kind, const uint8_t* unit, uint8_t* dst, int lane) {
  if (kind == W_Q6_K) {
    put_half(dst, lane, unit + 208);
    for (int h = 0; h < 16; ++h) dst[32 + 16 * h + lane] = unit[192 + h];
    return;
  }
  put_half(dst, lane, unit);
  if (has_min(kind)) put_half(dst + 32, lane, unit + 2);
  if (!is_k_quant(kind)) return;
  uint8_t high[4] = {0, 0, 0, 0};
  for (int g = 0; g < 8; ++g) {
    uint8_t scale, minimum;
    decode_scales(unit, g, &scale, &minimum);
    dst[64 + 16 * g + lane] = static_cast<uint8_t>((scale & 15) | (minimum & 15) << 4);
    high[g / 2] = static_cast<uint8_t>(high[g / 2] | (scale >> 4 | (minimum >> 4) << 2) << (g % 2 * 4));
  }
  for (int p = 0; p < 4; ++p) dst[192 + 16 * p + lane] = high[p];
}

void pack_row(int kind, const uint8_t* src, int64_t K, uint8_t* block, int lane) {
  const WeightLayout& layout = kLayouts[kind];
  const int groups = layout.unit / kGroup;
  for (int64_t u = 0; u < K / layout.unit; ++u, src += layout.file_bytes) {
    if (groups == 0) {
      std::memcpy(block + float_at(kind, u, lane), src, static_cast<size_t>(layout.file_bytes));
      continue;
    }
    put_scales(kind, src, block + scales_at(kind, u * groups), lane);
    for (int g = 0; g < groups; ++g) {
      uint32_t q[8];
      decode_group(kind, src, g, q);
      put_planes(kind, q, block + quants_at(kind, u * groups + g), lane);
    }
  }
}

float half(const uint8_t* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  return half_to_float(h);
}

// One unit of a quantised row to float: each value as the format defines it, then * factor.
void dequantize_unit(int kind, const uint8_t* unit, float factor, float* out) {
  for (int g = 0; g < kLayouts[kind].unit / kGroup; ++g) {
    uint32_t words[8];
    decode_group(kind, unit, g, words);
    uint8_t q[32];
    std::memcpy(q, words, 32);
    float scale[2], minimum = 0.0f;
    if (kind == W_Q4_K || kind == W_Q5_K) {
      uint8_t s, m;
      decode_scales(unit, g, &s, &m);
      scale[0] = scale[1] = half(unit) * static_cast<float>(s);
      minimum = -(half(unit + 2) * static_cast<float>(m));
    } else if (kind == W_Q6_K) {
      for (int h = 0; h < 2; ++h)
        scale[h] = half(unit + 208) * static_cast<float>(static_cast<int8_t>(unit[192 + 2 * g + h]));
    } else {
      scale[0] = scale[1] = half(unit);
      if (has_min(kind)) minimum = half(unit + 2);
    }
    const int offset = offset_bits(kind) < 0 ? 0 : 1 << offset_bits(kind);
    for (int k = 0; k < 32; ++k) {
      const float value = scale[k / 16] * static_cast<float>(q[k] - offset) + minimum;
      out[32 * g + k] = value * factor;
    }
  }
}

}  // namespace

int64_t packed_bytes(int32_t kind, int64_t rows, int64_t cols) {
  return (rows + kLanes - 1) / kLanes * block_bytes(kind, cols);
}

void pack_rows(int32_t kind, const uint8_t* src, int64_t n, int64_t cols, uint8_t* dst, int64_t row,
               int32_t gated_slot) {
  const int64_t row_bytes = cols / kLayouts[kind].unit * kLayouts[kind].file_bytes;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t block = (row + i) / kLanes;
    const int64_t slot = gated_slot < 0 ? block : 2 * block + gated_slot;
    pack_row(kind, src + i * row_bytes, cols, dst + slot * block_bytes(kind, cols),
             static_cast<int>((row + i) % kLanes));
  }
}

// Only the level with AMX uses any. No K has more rows gathered than the largest one, or than kAmxSweepBytes.
int64_t linear_scratch_bytes(int64_t max_cols) {
  const int64_t least = kAmxLeastTiles * amx_tile_bytes(max_cols);
  return (least > kAmxSweepBytes ? least : kAmxSweepBytes) + kAmxMostTiles * kAmxTileSumBytes + kAmxFixedBytes;
}

void table_row(int32_t kind, const uint8_t* row, int64_t cols, float scale, float* out) {
  const WeightLayout& layout = kLayouts[kind];
  for (int64_t u = 0; u < cols / layout.unit; ++u, row += layout.file_bytes) {
    if (kind == W_F32) {
      float x;
      std::memcpy(&x, row, 4);
      out[u] = x * scale;
    } else if (kind == W_F16) {
      out[u] = half(row) * scale;
    } else if (kind == W_BF16) {
      uint16_t x;
      std::memcpy(&x, row, 2);
      out[u] = bf16_to_float(x) * scale;
    } else {
      dequantize_unit(kind, row, scale, out + u * layout.unit);
    }
  }
}

}  // namespace lg
