// Where the bytes of a packed linear lie, and what the three CPU levels share of it.
//
// Knows: the layout that linear_pack.cpp writes and the linear kernels read. Does not know: instructions, epilogues.
// Everything is unnamed: the same helper compiled with other flags must not be merged with this one by the linker.
//
// A block holds 16 outputs ("lanes") as records, one after the other, padded to 64 bytes. A kernel reads it front to
// back as one stream: scales kept apart at a block's head cost half of the memory bandwidth.
//   plane of nibbles, 256 bytes a group of 32 k: 4 vectors of 16 lanes x 4 bytes; vector j holds k = 8j..8j+3 in the
//   low halves and k = 8j+4..8j+7 in the high ones. Split in two they are 8 "quads": quad v is k = 4v..4v+3, which is
//   an operand of vpdpbusd and a row of an AMX tile.
//     Q4_0  2 groups: [2 x f16 d[16], 2 x nibbles]; the second is zero where K has an odd number of groups
//     Q5_0  2 groups: [2 x f16 d[16], 2 x (nibbles, bit plane)]
//     Q8_0  2 groups: [2 x f16 d[16], 2 x 8 quads of q + 128]
//     Q4_1  1 group:  [f16 d[16], f16 m[16], nibbles]
//     Q5_1  1 group:  [f16 d[16], f16 m[16], nibbles, bit plane]
//     Q4_K  8 groups: [f16 d[16], f16 dmin[16], low scales, high scales, 8 x nibbles]
//     Q5_K  8 groups: [the same four, 8 x (nibbles, bit plane)]
//     Q6_K  8 groups: [f16 d[16], int8 scale[16][16], 8 x (nibbles, 2-bit planes)]
//     F32, F16      [2][16] of two k
//     BF16          [16][2] of two k; zeros stand behind an odd K
//   bit plane (64 bytes): byte b of a lane has, as bit v, bit 4 of k = 4v + b.
//   2-bit planes (2 x 64 bytes): plane h, byte b of a lane has, as bits 2i and 2i + 1, bits 4-5 of k = 4(4h + i) + b.
//   low scales (8 groups x 16 bytes): low half the low 4 bits of the group's scale, high half those of its minimum.
//   high scales (4 x 16 bytes): byte of groups 2p (bits 0-3) and 2p + 1 (bits 4-7): 2 bits of scale, 2 of minimum.
#pragma once
#include "kernels.h"
#include "unroll.h"

namespace lg {
namespace {

struct WeightLayout {
  int32_t unit;        // k of a unit of the file
  int32_t file_bytes;  // its bytes
  int32_t span;        // k of a record of a block
  int32_t bytes;       // its bytes
};

constexpr WeightLayout kLayouts[W_KINDS] = {
    {1, 4, 2, 128},         // F32
    {1, 2, 2, 64},          // F16
    {1, 2, 2, 64},          // BF16
    {32, 34, 64, 1088},     // Q8_0
    {32, 18, 64, 576},      // Q4_0
    {32, 20, 32, 320},      // Q4_1
    {32, 22, 64, 704},      // Q5_0
    {32, 24, 32, 384},      // Q5_1
    {256, 144, 256, 2304},  // Q4_K
    {256, 176, 256, 2816},  // Q5_K
    {256, 210, 256, 3360},  // Q6_K
};

constexpr int64_t align_up(int64_t x) { return (x + kAlign - 1) / kAlign * kAlign; }
constexpr int64_t block_bytes(int kind, int64_t K) {
  return align_up((K + kLayouts[kind].span - 1) / kLayouts[kind].span * kLayouts[kind].bytes);
}

constexpr bool is_k_quant(int kind) { return kind >= W_Q4_K; }
constexpr bool takes_quants(int kind) { return kind >= W_Q8_0; }

// Where group g of a block has its quants (planes one after the other) and its scales. The scales of a K-quant are
// those of its record: d first.
constexpr int64_t quant_bytes(int kind) {
  return kind == W_Q8_0 ? 512 : kind == W_Q4_0 || kind == W_Q4_1 || kind == W_Q4_K ? 256 : kind == W_Q6_K ? 384 : 320;
}
constexpr int64_t record_of(int kind, int64_t g) { return g / (kLayouts[kind].span / kGroup) * kLayouts[kind].bytes; }
constexpr int64_t quants_at(int kind, int64_t g) {
  const int groups = kLayouts[kind].span / kGroup;
  return record_of(kind, g) + kLayouts[kind].bytes - (groups - g % groups) * quant_bytes(kind);
}
constexpr int64_t scales_at(int kind, int64_t g) {
  return record_of(kind, g) + (is_k_quant(kind) ? 0 : g % (kLayouts[kind].span / kGroup) * 32);
}

// Where a block of a float kind has value k of a lane.
constexpr int64_t float_at(int kind, int64_t k, int lane) {
  return k / 2 * kLayouts[kind].bytes +
         (kind == W_BF16 ? 2 * lane + k % 2 : k % 2 * kLanes + lane) * kLayouts[kind].file_bytes;
}

// A group's part of its record.
constexpr int64_t group_bytes(int kind) { return kLayouts[kind].bytes / (kLayouts[kind].span / kGroup); }

// Sends for what several rows will read in some while, into the second cache. Their arithmetic on a line takes as long as
// several lines need to come, and a processor's own prefetcher, which looks ahead by lines and not by time, falls behind:
// reading and arithmetic then add up. On a Zen 4, 2 to 16 rows gain 10-20 % by it, those of Q8_0 a third.
constexpr int64_t kFarBytes = 2560;
inline __attribute__((always_inline)) void send_far(const uint8_t* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + kFarBytes + i, 0, 2);
}

// What a kind's numbers mean to a kernel: value = scale * (q - (1 << offset)) with offset < 0 for none, + minimum.
constexpr bool has_min(int kind) { return kind == W_Q4_1 || kind == W_Q5_1 || kind == W_Q4_K || kind == W_Q5_K; }
constexpr int offset_bits(int kind) {
  return kind == W_Q8_0 ? 7 : kind == W_Q4_0 ? 3 : kind == W_Q5_0 ? 4 : kind == W_Q6_K ? 5 : -1;
}

// A group of a record of quantize_row.
struct alignas(64) QGroup {
  int8_t lo[kGroup];
  int8_t hi[2][4];
  uint16_t at[2];
  float d, s;
  int32_t minus[3];
};
static_assert(sizeof(QGroup) == 64, "the record of kernels.h");

// Groups whose largest magnitude is below this become zeros: 1 / d must not overflow.
constexpr float kTinyAmax = 0x1p-100f;

// Scratch of the AMX level: rows gathered tile by tile (16 rows), each tile's sums, and a fixed part. What is gathered
// together stays in half of a second-level cache, and all of it meets each unpacked weight.
constexpr int64_t kAmxRowGroupBytes = 1152, kAmxTileSumBytes = 2048, kAmxFixedBytes = 16 << 10;
constexpr int64_t kAmxSweepBytes = 640 << 10, kAmxLeastTiles = 2, kAmxMostTiles = 32;
constexpr int64_t amx_tile_bytes(int64_t K) { return (K + kGroup - 1) / kGroup * kAmxRowGroupBytes; }
constexpr int amx_sweep_tiles(int64_t K) {
  const int64_t fit = kAmxSweepBytes / amx_tile_bytes(K);
  return static_cast<int>(fit < kAmxLeastTiles ? kAmxLeastTiles : fit > kAmxMostTiles ? kAmxMostTiles : fit);
}

}  // namespace
}  // namespace lg
