// Instruction-set levels: see dispatch.h.
//
// Knows: cpuid, the state the system saves (XCR0), the kernels' fill functions. Does not know: what kernels compute.
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, CPUID; volume 1, section 13.3.
#include "dispatch.h"

#include <cstring>
#include <string>

#include "amx.h"
#include "status.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace lg {
namespace {

struct Level {
  const char* name;
  const char* (*obstacle)();
  void (*fill_linear)(Kernels*);
  void (*fill_attention)(Kernels*);
  void (*fill_rows)(Kernels*);
};

const char* none() { return ""; }

#if defined(LEGATO_X86_LEVELS)

struct Bit {
  int reg;  // 0 ebx, 1 ecx, 2 edx of leaf 7
  int bit;
  const char* missing;
};

bool has_leaf1(int bit) {
  unsigned a, b, c = 0, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c >> bit & 1);
}

bool has_leaf7(const Bit& need) {
  unsigned a, r[3] = {0, 0, 0};
  return __get_cpuid_count(7, 0, &a, &r[0], &r[1], &r[2]) && (r[need.reg] >> need.bit & 1);
}

// Which register files the system saves: bits of XCR0 (0 where the system uses no XSAVE).
uint64_t saved_state() {
  if (!has_leaf1(27)) return 0;
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

const char* avx2_obstacle() {
  if ((saved_state() & 0x6) != 0x6) return "the system does not save AVX registers";
  if (!has_leaf1(28)) return "the processor has no AVX";
  if (!has_leaf1(12)) return "the processor has no FMA";
  if (!has_leaf1(29)) return "the processor has no F16C";
  if (!has_leaf7({0, 5, ""})) return "the processor has no AVX2";
  return "";
}

const char* avx512_obstacle() {
  if (*avx2_obstacle()) return avx2_obstacle();
  if ((saved_state() & 0xe6) != 0xe6) return "the system does not save AVX-512 registers";
  static const Bit needs[] = {
      {0, 16, "the processor has no AVX-512"},  {0, 17, "the processor has no AVX512DQ"},
      {0, 30, "the processor has no AVX512BW"}, {0, 31, "the processor has no AVX512VL"},
      {1, 11, "the processor has no AVX512_VNNI"},
  };
  for (const Bit& need : needs)
    if (!has_leaf7(need)) return need.missing;
  return "";
}

const char* obstacle_to_tiles();

const Level kLevels[] = {
    {"portable", none, fill_linear_portable, fill_attention_portable, fill_rows_portable},
    {"avx2", avx2_obstacle, fill_linear_avx2, fill_attention_avx2, fill_rows_avx2},
    {"avx512", avx512_obstacle, fill_linear_avx512, fill_attention_avx512, fill_rows_avx512},
    {"amx", obstacle_to_tiles, fill_linear_amx, fill_attention_avx512, fill_rows_avx512},
};

#else

const char* not_compiled() { return "this build is for another kind of processor"; }

const Level kLevels[] = {
    {"portable", none, fill_linear_portable, fill_attention_portable, fill_rows_portable},
    {"avx2", not_compiled, nullptr, nullptr, nullptr},
    {"avx512", not_compiled, nullptr, nullptr, nullptr},
    {"amx", not_compiled, nullptr, nullptr, nullptr},
};

#endif

Kernels fill(const Level& level) {
  Kernels kernels{};
  level.fill_linear(&kernels);
  level.fill_attention(&kernels);
  level.fill_rows(&kernels);
  kernels.name = level.name;
  return kernels;
}

// A compiler too old for a level's instructions leaves its tables empty.
bool is_complete(const Kernels& k) {
  return k.linear && k.quantize_row && k.table_row && k.attend && k.merge && k.conclude && k.kv_write && k.prepare_q && k.rms_norm &&
         k.layer_norm && k.rope && k.add && k.activate && k.softcap && k.argmax;
}

#if defined(LEGATO_X86_LEVELS)

// Compared once a process: the answer cannot change.
const char* obstacle_to_tiles() {
  if (*avx512_obstacle()) return avx512_obstacle();
  if (!has_leaf7({2, 24, ""}) || !has_leaf7({2, 25, ""})) return "the processor has no AMX for bytes";
  if ((saved_state() & 0x60000) != 0x60000) return "the system does not save AMX tiles";
  static const char* const verdict = amx_obstacle(permit_tiles, fill(kLevels[3]), fill(kLevels[2]));
  return verdict;
}

#endif

}  // namespace

int32_t isa_count() { return sizeof kLevels / sizeof *kLevels; }
const char* isa_name(int32_t level) { return kLevels[level].name; }

const char* isa_obstacle(int32_t level) {
  const char* obstacle = kLevels[level].obstacle();
  if (*obstacle) return obstacle;
  return is_complete(fill(kLevels[level])) ? "" : "this build's compiler did not know its instructions";
}

int32_t choose_level(const char* name, const char* (*obstacle_to)(int32_t level)) {
  const bool any = strcmp(name, "auto") == 0;
  std::string known;
  for (int32_t i = isa_count() - 1; i >= 0; --i) {
    const Level& level = kLevels[i];
    known = std::string(level.name) + (known.empty() ? "" : ", ") + known;
    if (!any && strcmp(name, level.name) != 0) continue;
    const char* obstacle = obstacle_to(i);
    if (*obstacle && any) continue;
    if (*obstacle) throw Error(LG_UNSUPPORTED, std::string("isa ") + name + " cannot be used here: " + obstacle);
    return i;
  }
  throw Error(LG_UNSUPPORTED, std::string("unknown isa ") + name + "; known: " + known);
}

Kernels select_kernels(const char* name) { return fill(kLevels[choose_level(name, isa_obstacle)]); }

}  // namespace lg
