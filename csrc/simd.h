// Vectors of the instruction set a *_simd.cpp is being compiled for, in the compiler's own vector language, so that one
// source serves SSE, AVX2, AVX-512 and NEON. Everything here has internal linkage per instruction set: no std::
// templates, or the linker might keep the AVX-512 copy of one for every CPU.
#pragma once

#include <cstdint>
#include <cstring>

#include "dtype.h"

#if !defined(OFA_ISA)
#  error "simd.h is for files that CMake compiles once per instruction set"
#endif

namespace ofa {
namespace OFA_ISA {

#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX2__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif

typedef float vfloat __attribute__((vector_size(4 * lanes), aligned(4), may_alias));
typedef int32_t vint __attribute__((vector_size(4 * lanes), aligned(4), may_alias));

static inline vfloat load(const float* p) { return *reinterpret_cast<const vfloat*>(p); }
static inline void store(float* p, vfloat v) { *reinterpret_cast<vfloat*>(p) = v; }
static inline vfloat splat(float x) { return x - vfloat{}; }

static inline float bf16_to_float(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

static inline uint16_t float_to_bf16(float value) {  // round to nearest even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

static inline float f16_to_float(uint16_t bits) {
  // Shifted into float's fields the exponent is 112 short; one multiplication mends it, subnormals included.
  const uint32_t magnitude = (bits & 0x7fffu) << 13, sign = (bits & 0x8000u) << 16;
  float scaled;
  std::memcpy(&scaled, &magnitude, 4);
  scaled *= 0x1p112f;
  uint32_t wide;
  std::memcpy(&wide, &scaled, 4);
  if ((bits & 0x7c00u) == 0x7c00u) wide = 0x7f800000u | (bits & 0x3ffu) << 13;
  wide |= sign;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

static inline uint16_t float_to_f16(float value) {  // round to nearest even
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return sign | 0x7e00u;
  if (bits >= 0x477ff000u) return sign | 0x7c00u;  // rounds to 65536 or more
  if (bits < 0x38800000u) {                        // subnormal: adding 0.5 leaves the rounded bits at the bottom
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, 4);
    return sign | static_cast<uint16_t>(bits - 0x3f000000u);
  }
  return sign | static_cast<uint16_t>((bits - 0x38000000u + 0xfffu + (bits >> 13 & 1)) >> 13);
}

static inline float load_as_float(const void* data, Dtype dtype, int64_t at) {
  if (dtype == Dtype::f32) return static_cast<const float*>(data)[at];
  const uint16_t bits = static_cast<const uint16_t*>(data)[at];
  return dtype == Dtype::bf16 ? bf16_to_float(bits) : f16_to_float(bits);
}

static inline void store_from_float(void* data, Dtype dtype, int64_t at, float value) {
  if (dtype == Dtype::f32)
    static_cast<float*>(data)[at] = value;
  else
    static_cast<uint16_t*>(data)[at] = dtype == Dtype::bf16 ? float_to_bf16(value) : float_to_f16(value);
}

// The functor with the dtype as a constant, so that loops over elements have no branch in them.
template <Dtype dtype>
struct DtypeConstant {
  static constexpr Dtype value = dtype;
};

template <class Function>
static inline void with_dtype(Dtype dtype, Function&& function) {
  if (dtype == Dtype::f32) return function(DtypeConstant<Dtype::f32>{});
  if (dtype == Dtype::f16) return function(DtypeConstant<Dtype::f16>{});
  return function(DtypeConstant<Dtype::bf16>{});
}

}  // namespace OFA_ISA
}  // namespace ofa
