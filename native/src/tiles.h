// What AMX tiles are told, and the instructions themselves. The kernels take a class of tiles as their parameter, so that
// the tests can give them one in plain C++ (native/tests/emulated_tiles.h) on a machine without AMX.
//
// Knows: palette 1 of the processor's tiles. Does not know: what is multiplied, whether the processor has tiles.
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18, and volume 2.
#pragma once
#include <cstdint>

namespace lg {

// The operand of LDTILECFG: bytes of a row and rows, a tile; all zero for a tile that is not used.
struct alignas(64) TileConfig {
  uint8_t palette, start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "LDTILECFG reads 64 bytes");

#if defined(__AMX_TILE__) && defined(__AMX_INT8__)

namespace {

// Written out rather than by the compiler's intrinsics: those of GCC paste the tile's number into the text before a
// template's parameter has a value, and do not say which memory they read.
struct HardwareTiles {
  void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
  void release() { asm volatile("tilerelease" ::); }

  template <int T>
  void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  template <int T>
  void load(const void* rows, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  void store(void* rows, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(stride), "i"(T) : "memory");
  }
  // C += A * B of signed bytes: C[m][n] += the sum over k, b of A[m][4k + b] * B[k][4n + b].
  template <int C, int A, int B>
  void multiply() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};

}  // namespace

#endif

}  // namespace lg
