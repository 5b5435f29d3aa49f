#include "isa.h"

#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#  include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#  include <sys/syscall.h>
#  include <unistd.h>
#endif

namespace ofa {
namespace {

std::atomic<int> chosen{-1};

#if defined(__x86_64__)
// Linux grants a process the state of AMX tiles only when it asks.
bool may_use_tiles() {
#  if defined(__linux__)
  constexpr int request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#  else
  return false;
#  endif
}
#endif

}  // namespace

// CPUID by hand: some compilers' __builtin_cpu_supports answers 0 to everything inside a shared library.
Isa best_isa() {
#if defined(__x86_64__)
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return Isa::scalar;
  const bool osxsave = c >> 27 & 1, fma = c >> 12 & 1, f16c = c >> 29 & 1;
  if (!osxsave || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return Isa::scalar;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  const bool ymm = (low & 0x6) == 0x6, zmm = (low & 0xe6) == 0xe6;
  const bool avx2 = b >> 5 & 1;
  const bool avx512 = (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1);
  const bool vnni = c >> 11 & 1;
  if (!(ymm && avx2 && fma && f16c)) return Isa::scalar;
  if (!(zmm && avx512)) return Isa::avx2;
  if (!vnni) return Isa::avx512;
  const bool tiles = (d >> 22 & 1) && (d >> 24 & 1) && (d >> 25 & 1) && (low & 0x60000) == 0x60000;  // bf16, tile, int8
  const bool amx = tiles && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);                 // AVX512-BF16
  return amx && may_use_tiles() ? Isa::amx : Isa::avx512_vnni;
#else
  return Isa::scalar;
#endif
}

Isa isa() {
  int value = chosen.load(std::memory_order_relaxed);
  if (value < 0) chosen.store(value = static_cast<int>(best_isa()), std::memory_order_relaxed);
  return static_cast<Isa>(value);
}

void set_isa(const char* name) {
  for (int i = 0; i < isa_count; ++i) {
    if (std::strcmp(name, isa_names[i])) continue;
    if (i > static_cast<int>(best_isa())) throw std::invalid_argument(std::string(name) + " cannot run on this CPU");
    chosen.store(i);
    return;
  }
  throw std::invalid_argument(std::string("isa must be scalar, avx2, avx512, avx512_vnni or amx, got ") + name);
}

}  // namespace ofa
