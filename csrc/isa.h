// The instruction sets that kernels are compiled for, and the one in use.
#pragma once

#include <cstddef>

namespace ofa {

enum class Isa { scalar, avx2, avx512, avx512_vnni, amx };
constexpr const char* isa_names[] = {"scalar", "avx2", "avx512", "avx512_vnni", "amx"};
constexpr int isa_count = 5;

Isa best_isa();                  // what this CPU and operating system can run, by CPUID
Isa isa();                       // in use: best_isa() unless set
void set_isa(const char* name);  // for tests and benchmarks; throws std::invalid_argument

}  // namespace ofa

// In the header of a kernel table: declares `table` of `type` once per instruction set.
// `OFA_SELECT(table)` is the one in use.
#if defined(__x86_64__)
#  define OFA_DECLARE_TABLE(type, table) \
    namespace scalar {                   \
    extern const type table;             \
    }                                    \
    namespace avx2 {                     \
    extern const type table;             \
    }                                    \
    namespace avx512 {                   \
    extern const type table;             \
    }                                    \
    namespace avx512_vnni {              \
    extern const type table;             \
    }                                    \
    namespace amx {                      \
    extern const type table;             \
    }
#  define OFA_SELECT(table)                \
    (*[]() {                               \
      switch (ofa::isa()) {                \
        case ofa::Isa::avx2:               \
          return &ofa::avx2::table;        \
        case ofa::Isa::avx512:             \
          return &ofa::avx512::table;      \
        case ofa::Isa::avx512_vnni:        \
          return &ofa::avx512_vnni::table; \
        case ofa::Isa::amx:                \
          return &ofa::amx::table;         \
        default:                           \
          return &ofa::scalar::table;      \
      }                                    \
    }())
#else
#  define OFA_DECLARE_TABLE(type, table) \
    namespace scalar {                   \
    extern const type table;             \
    }
#  define OFA_SELECT(table) (ofa::scalar::table)
#endif
