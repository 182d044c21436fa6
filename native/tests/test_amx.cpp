// The AMX level: emulated tiles against products worked out by hand, the level's kernels on emulated tiles (and on the
// processor's own where it has them) bit for bit against AVX-512, and what happens when they differ.
//
// Knows: tiles' documented behaviour, the levels' tables. Does not know: packed layouts. Exit code 0: all held.
#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "../src/amx.h"
#include "../src/dispatch.h"
#include "../src/status.h"
#include "emulated_amx.h"
#include "emulated_tiles.h"

using namespace lg;

namespace {

int failures = 0;
int checks = 0;

void expect(bool ok, const std::string& what) {
  ++checks;
  if (!ok && ++failures <= 20) std::printf("FAILED: %s\n", what.c_str());
}

template <class Action>
void expect_fault(const char* says, Action action) {
  std::string said = "nothing";
  try {
    action();
  } catch (const std::logic_error& error) {
    said = error.what();
  }
  expect(said.find(says) != std::string::npos, std::string("expected \"") + says + "\", heard " + said);
}

// ---------------------------------------------------------------- tiles, by hand
// Two rows and two columns, eight deep: tile 0 the sums, 1 the first factor, 2 the second.
TileConfig two_by_two() {
  TileConfig c = {};
  c.palette = 1;
  for (int t = 0; t < 3; ++t) c.rows[t] = 2, c.row_bytes[t] = 8;
  return c;
}

struct Released {
  EmulatedTiles tiles;
  ~Released() { tiles.release(); }
};

// Row 0: 1*1 - 2*2 + 3*3 - 4*4 + 5*1 + 6*0 - 7*1 + 8*0 = -12 and 1*-1 - 2 - 3 + 4*1 ... as written beside each.
void check_signed_product() {
  const int8_t a[2][8] = {{1, -2, 3, -4, 5, 6, -7, 8}, {-128, -128, -128, -128, 127, 127, 127, 127}};
  // A row of the second factor: four values of column 0, four of column 1; first of k = 0..3, then of k = 4..7.
  const int8_t b[2][8] = {{1, 2, 3, 4, -1, 1, -1, 1}, {1, 0, 1, 0, -128, -128, -128, -128}};
  int32_t c[2][2] = {{100, 200}, {0, INT_MAX}};
  Released r;
  r.tiles.configure(two_by_two());
  r.tiles.load<0>(c, 8);
  r.tiles.load<1>(a, 8);
  r.tiles.load<2>(b, 8);
  r.tiles.multiply<0, 1, 2>();
  r.tiles.store<0>(c, 8);
  expect(c[0][0] == 100 + (1 - 4 + 9 - 16) + (5 - 7), "TDPBSSD row 0, column 0: 88");
  expect(c[0][1] == 200 + (-1 - 2 - 3 - 4) - 128 * (5 + 6 - 7 + 8), "TDPBSSD row 0, column 1: -1346");
  expect(c[1][0] == -128 * 10 + 127 * 2, "TDPBSSD row 1, column 0: -1026");
  // 2147483647 + 0 - 65024 stays below the largest number; the next product takes it past.
  expect(c[1][1] == INT_MAX - 65024, "TDPBSSD row 1, column 1");
  const int8_t most[2][8] = {{-128, -128, -128, -128, 0, 0, 0, 0}, {-128, -128, -128, -128, 0, 0, 0, 0}};
  r.tiles.load<2>(most, 8);
  r.tiles.multiply<0, 1, 2>();  // row 1, column 0: 4 * 16384 - 4 * 16256 = 512
  r.tiles.store<0>(c, 8);
  expect(c[1][0] == -1026 + 512 && c[1][1] == INT_MAX - 65024, "TDPBSSD adds to what was there");
}

void check_unsigned_and_wrap() {
  uint8_t a[2][8], b[2][8];
  std::memset(a, 0xff, sizeof a);  // 255, or -1
  std::memset(b, 0x7f, sizeof b);  // 127
  int32_t c[2][2] = {{0, INT_MAX}, {-5, 0}};
  Released r;
  r.tiles.configure(two_by_two());
  r.tiles.load<0>(c, 8);
  r.tiles.load<1>(a, 8);
  r.tiles.load<2>(b, 8);
  r.tiles.multiply_unsigned<0, 1, 2>();
  r.tiles.store<0>(c, 8);
  expect(c[0][0] == 259080 && c[1][0] == 259075, "TDPBUSD: 8 * 255 * 127 = 259080");
  expect(c[0][1] == INT_MIN + 259079, "TDPBUSD wraps, it does not saturate");
  r.tiles.zero<0>();
  r.tiles.multiply<0, 1, 2>();
  r.tiles.store<0>(c, 8);
  expect(c[0][0] == -1016 && c[1][1] == -1016, "TDPBSSD: 8 * -1 * 127 = -1016");
}

// A load reads rows of the configured length at their stride; a store writes no byte more.
void check_loads_and_stores() {
  uint8_t from[3][20], to[3][20];
  for (int i = 0; i < 60; ++i) from[i / 20][i % 20] = static_cast<uint8_t>(i), to[i / 20][i % 20] = 0xEE;
  Released r;
  r.tiles.configure(two_by_two());
  r.tiles.load<1>(from[0] + 3, 20);
  r.tiles.store<1>(to[0] + 1, 40);
  bool ok = true;
  for (int i = 0; i < 60; ++i) {
    const int row = i / 20, at = i % 20 - 1;
    const bool inside = (row == 0 || row == 2) && at >= 0 && at < 8;
    ok = ok && to[row][i % 20] == (inside ? 20 * (row / 2) + at + 3 : 0xEE);
  }
  expect(ok, "TILELOADD and TILESTORED keep to rows and bytes");
  r.tiles.zero<1>();
  r.tiles.store<1>(to[0] + 1, 40);
  expect(to[0][1] == 0 && to[2][8] == 0 && to[0][0] == 0xEE && to[0][9] == 0xEE, "TILEZERO");
  r.tiles.load<1>(from, 20);
  r.tiles.configure(two_by_two());
  r.tiles.store<1>(to, 20);
  expect(to[0][1] == 0 && to[1][7] == 0, "LDTILECFG empties the tiles");
}

void check_faults() {
  const auto with = [](auto change) {
    TileConfig c = two_by_two();
    change(c);
    Released r;
    r.tiles.configure(c);
    r.tiles.zero<0>(), r.tiles.zero<1>(), r.tiles.zero<2>();
    r.tiles.multiply<0, 1, 2>();
  };
  with([](TileConfig&) {});
  expect_fault("#GP: unknown palette", [&] { with([](TileConfig& c) { c.palette = 2; }); });
  expect_fault("#GP: reserved", [&] { with([](TileConfig& c) { c.reserved[13] = 1; }); });
  expect_fault("#GP: rows without bytes", [&] { with([](TileConfig& c) { c.rows[5] = 1; }); });
  expect_fault("#GP: a tile that palette 1", [&] { with([](TileConfig& c) { c.rows[8] = c.row_bytes[8] = 1; }); });
  expect_fault("#GP: a tile too large", [&] { with([](TileConfig& c) { c.rows[1] = 17; }); });
  expect_fault("#GP: a tile too large", [&] { with([](TileConfig& c) { c.row_bytes[1] = 68; }); });
  expect_fault("#UD: rows of the sums", [&] { with([](TileConfig& c) { c.rows[1] = 3; }); });
  expect_fault("#UD: columns of the sums", [&] { with([](TileConfig& c) { c.row_bytes[2] = 12; }); });
  expect_fault("#UD: depth", [&] { with([](TileConfig& c) { c.row_bytes[1] = 4; }); });
  expect_fault("#UD: rows are not whole words", [&] { with([](TileConfig& c) { c.row_bytes[1] = 7; }); });
  expect_fault("#UD: a tile without rows", [&] { with([](TileConfig& c) { c.rows[2] = c.row_bytes[2] = 0; }); });
  expect_fault("#UD: tiles are not configured", [&] { with([](TileConfig& c) { c.palette = 0; }); });
}

// ---------------------------------------------------------------- the level's kernels
constexpr int32_t kQuantized[] = {W_Q8_0, W_Q4_0, W_Q4_1, W_Q5_0, W_Q5_1, W_Q4_K, W_Q5_K, W_Q6_K};

// 16 rows are the fewest that go to tiles; up to six left over go to registers, seven and more to a tile of their own.
void check_products(const Kernels& amx, const Kernels& avx512, bool quick) {
  const int32_t rows[] = {1, 15, 16, 17, 22, 23, 31, 32, 33, 39, 48, 70}, outputs[] = {16, 1, 40, 33, 72, 7, 48};
  const int32_t plain[] = {EP_STORE, EP_ADD, EP_SILU, EP_GELU};
  uint64_t seed = 100;
  int turn = 0;
  const auto check = [&](LinearCase c) {
    expect(same_products(amx, avx512, c, ++seed),
           std::string(amx.name) + " kind " + std::to_string(c.kind) + ": " + std::to_string(c.rows) + " rows, " +
               std::to_string(c.outputs) + " outputs, " + std::to_string(c.cols) + " columns" + (c.gated ? " gated" : ""));
  };
  for (int32_t kind : kQuantized) {
    const int32_t unit = kind >= W_Q4_K ? 256 : 32;
    for (int32_t m : rows) {
      const int i = turn++;
      const int32_t blocks = i % 5 == 0 ? 1 : i % 5 == 1 ? 2 : i % 5 + (unit == 32 ? 6 : -1);
      if (quick && i % 3) continue;
      check({kind, outputs[i % 7], unit * blocks, 0, m, plain[i % 4]});
      check({kind, outputs[(i + 3) % 7], unit * (i % 3 + 1), 1, m, EP_GATED_SILU + i % 3});
    }
    check({kind, 48, unit == 32 ? 576 : 512, 0, 32, EP_STORE});
  }
  // More rows than are gathered at once, by their number and by their length; a column more than a chunk of groups.
  check({W_Q4_1, 16, 32, 0, 32 * 16 + 20, EP_ADD});
  check({W_Q4_0, 20, 9216, 0, 41, EP_STORE});
  check({W_Q6_K, 16, 9216, 0, 33, EP_STORE});
  check({W_Q8_0, 33, 32 * 9, 0, 64, EP_STORE});
}

// ---------------------------------------------------------------- when something is wrong
Kernels sound, reference;

// As the sound one, but for the lowest bit of one output of the last row.
void one_bit_off(const PackedLinear* w, const uint8_t* act, int64_t stride, int32_t M, int32_t begin, int32_t end,
                 float* out, int64_t out_stride, int32_t epilogue, uint8_t* scratch) {
  sound.linear(w, act, stride, M, begin, end, out, out_stride, epilogue, scratch);
  if (begin >= end || w->kind != W_Q6_K) return;
  uint32_t bits;
  std::memcpy(&bits, out + (M - 1) * out_stride + begin * kLanes, 4);
  bits ^= 1;
  std::memcpy(out + (M - 1) * out_stride + begin * kLanes, &bits, 4);
}

const char* no_obstacle() { return ""; }
bool yes() { return true; }
bool no() { return false; }

Kernels broken() {
  Kernels k = sound;
  k.linear = one_bit_off;
  return k;
}

const char* refuses_amx(int32_t level) {
  return std::strcmp(isa_name(level), "amx") == 0 ? amx_obstacle(yes, broken(), reference) : no_obstacle();
}

void check_admission() {
  const std::string differ = "its products differ from those of AVX-512";
  expect(std::string(amx_obstacle(yes, sound, reference)).empty(), "sound kernels are admitted");
  expect(amx_obstacle(yes, broken(), reference) == differ, "one wrong bit is noticed");
  expect(amx_obstacle(no, sound, reference) == std::string("the system does not permit AMX tiles"), "no permission");
  expect(amx_obstacle(yes, Kernels{}, reference) == std::string("this build's compiler did not know its instructions"),
         "an old compiler");
  Kernels portable = reference;  // rounds multiplications and additions apart: close, and not the same
  fill_linear_portable(&portable);
  expect(amx_obstacle(yes, portable, reference) == differ, "another rounding is noticed");

  expect(isa_name(choose_level("auto", refuses_amx)) == std::string("avx512"), "auto falls back to AVX-512");
  std::string said;
  try {
    choose_level("amx", refuses_amx);
  } catch (const Error& error) {
    said = error.what();
  }
  expect(said == "isa amx cannot be used here: " + differ, "asked for by name, it says why not: " + said);
}

bool has_avx512() {
  for (int32_t i = 0; i < isa_count(); ++i)
    if (std::strcmp(isa_name(i), "avx512") == 0) return *isa_obstacle(i) == 0;
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
  check_signed_product();
  check_unsigned_and_wrap();
  check_loads_and_stores();
  check_faults();
  std::printf("tiles: %d checks, %d failed\n", checks, failures);
  if (!has_avx512()) {
    std::printf("kernels: skipped, this CPU or this compiler has no AVX-512\n");
    return failures == 0 ? 0 : 1;
  }
  reference = select_kernels("avx512");
  sound = reference;
  sound.name = "emulated amx";
  fill_linear_emulated_amx(&sound);
  check_products(sound, reference, quick);
  check_admission();
  const char* obstacle = isa_obstacle(isa_count() - 1);
  if (*obstacle) {
    std::printf("the processor's own tiles: skipped, %s\n", obstacle);
  } else {
    check_products(select_kernels("amx"), reference, quick);
  }
  std::printf("all: %d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
