// For tests of the linear kernels: each level that this machine has, AMX on emulated tiles, and a count of the checks.
//
// Knows: the levels' tables, cpuid through the compiler. Does not know: what is checked.
#pragma once
#include <cstdio>
#include <string>

#include "../src/kernels.h"
#include "emulated_amx.h"

inline int failures = 0;
inline int checks = 0;

inline void expect(bool ok, const std::string& what) {
  ++checks;
  if (!ok && ++failures <= 20) std::printf("FAILED: %s\n", what.c_str());
}

#if defined(__x86_64__)
inline bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
inline bool has_avx512() {
  return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#else
inline bool has_avx2() { return false; }
inline bool has_avx512() { return false; }
#endif

// Calls `check` with each level's table; the program's exit code.
template <class Check>
int check_levels(Check check) {
#if defined(__x86_64__)
  void (*const fills[])(lg::Kernels*) = {lg::fill_linear_portable, lg::fill_linear_avx2, lg::fill_linear_avx512,
                                         fill_linear_emulated_amx};
#else
  const auto nothing = [](lg::Kernels*) {};
  void (*const fills[])(lg::Kernels*) = {lg::fill_linear_portable, nothing, nothing, nothing};
#endif
  const char* const names[] = {"portable", "avx2", "avx512", "emulated amx"};
  const bool present[] = {true, has_avx2(), has_avx512(), has_avx512()};
  for (int level = 0; level < 4; ++level) {
    lg::Kernels k{};
    k.name = names[level];
    fills[level](&k);
    if (!present[level] || !k.linear) {
      std::printf("%s: skipped, %s\n", k.name, present[level] ? "not compiled in" : "this CPU lacks it");
      continue;
    }
    const int before = checks, failed = failures;
    check(k);
    std::printf("%s: %d checks, %d failed\n", k.name, checks - before, failures - failed);
  }
  return failures == 0 ? 0 : 1;
}
