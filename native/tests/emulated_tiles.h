// AMX tiles in plain C++, for machines without them: palette 1, as the instructions' operation sections define it, with
// an exception wherever the processor would raise #GP or #UD.
//
// Knows: LDTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILESTORED, TDPBSSD, TDPBUSD. Does not know: kernels.
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2 (the instructions' operation).
#pragma once
#include <cstring>
#include <stdexcept>
#include <string>

#include "../src/tiles.h"

class EmulatedTiles {
 public:
  static constexpr int kTiles = 8, kMaxRows = 16, kMaxRowBytes = 64;

  ~EmulatedTiles() {
    if (configured_) std::terminate();  // whoever uses tiles must release them
  }

  void configure(const lg::TileConfig& c) {
    if (c.palette == 0) return release();
    require(c.palette == 1, "#GP: unknown palette");
    require(c.start_row < kMaxRows, "#GP: start row");
    for (uint8_t byte : c.reserved) require(byte == 0, "#GP: reserved bytes");
    for (int t = 0; t < 16; ++t) {
      require(t < kTiles || (c.rows[t] == 0 && c.row_bytes[t] == 0), "#GP: a tile that palette 1 does not have");
      require((c.rows[t] == 0) == (c.row_bytes[t] == 0), "#GP: rows without bytes or bytes without rows");
      require(c.rows[t] <= kMaxRows && c.row_bytes[t] <= kMaxRowBytes, "#GP: a tile too large");
    }
    config_ = c;
    std::memset(tiles_, 0, sizeof tiles_);
    configured_ = true;
  }
  void release() {
    std::memset(tiles_, 0, sizeof tiles_);
    configured_ = false;
  }

  template <int T>
  void zero() {
    in_use(T);
    std::memset(tiles_[T], 0, sizeof tiles_[T]);
  }
  // Whatever is not read becomes zero.
  template <int T>
  void load(const void* rows, int64_t stride) {
    in_use(T);
    std::memset(tiles_[T], 0, sizeof tiles_[T]);
    for (int r = 0; r < config_.rows[T]; ++r)
      std::memcpy(tiles_[T][r], static_cast<const char*>(rows) + r * stride, config_.row_bytes[T]);
  }
  template <int T>
  void store(void* rows, int64_t stride) {
    in_use(T);
    for (int r = 0; r < config_.rows[T]; ++r)
      std::memcpy(static_cast<char*>(rows) + r * stride, tiles_[T][r], config_.row_bytes[T]);
  }
  template <int C, int A, int B>
  void multiply() {
    dot<C, A, B>([](uint8_t a) { return static_cast<int32_t>(static_cast<int8_t>(a)); });
  }
  // TDPBUSD: A's bytes are unsigned.
  template <int C, int A, int B>
  void multiply_unsigned() {
    dot<C, A, B>([](uint8_t a) { return static_cast<int32_t>(a); });
  }

 private:
  static void require(bool holds, const char* otherwise) {
    if (!holds) throw std::logic_error(otherwise);
  }
  void in_use(int t) const {
    require(configured_, "#UD: tiles are not configured");
    require(config_.rows[t] > 0, "#UD: a tile without rows");
  }

  template <int C, int A, int B, class ToInt>
  void dot(ToInt of_a) {
    static_assert(C != A && C != B && A != B, "#UD: the three tiles must differ");
    for (int t : {C, A, B}) in_use(t);
    require(config_.row_bytes[C] % 4 == 0 && config_.row_bytes[A] % 4 == 0 && config_.row_bytes[B] % 4 == 0,
            "#UD: rows are not whole words");
    require(config_.rows[C] == config_.rows[A], "#UD: rows of the sums and of the first factor");
    require(config_.row_bytes[C] == config_.row_bytes[B], "#UD: columns of the sums and of the second factor");
    require(config_.row_bytes[A] / 4 == config_.rows[B], "#UD: depth of the two factors");
    for (int m = 0; m < config_.rows[C]; ++m) {
      for (int k = 0; k < config_.row_bytes[A] / 4; ++k) {
        for (int n = 0; n < config_.row_bytes[C] / 4; ++n) {
          uint32_t sum;
          std::memcpy(&sum, tiles_[C][m] + 4 * n, 4);
          for (int b = 0; b < 4; ++b) {
            const int32_t second = static_cast<int8_t>(tiles_[B][k][4 * n + b]);
            sum += static_cast<uint32_t>(of_a(tiles_[A][m][4 * k + b]) * second);  // wraps, does not saturate
          }
          std::memcpy(tiles_[C][m] + 4 * n, &sum, 4);
        }
      }
    }
  }

  lg::TileConfig config_ = {};
  bool configured_ = false;
  uint8_t tiles_[kTiles][kMaxRows][kMaxRowBytes] = {};
};
