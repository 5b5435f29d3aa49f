// Element types of tensors.
#pragma once

#include <cstdint>

namespace ofa {

enum class Dtype { f32, f16, bf16, f64, i64, i32, u8, i8, boolean, other };

static inline const char* name(Dtype dtype) {
  constexpr const char* names[] = {"float32", "float16", "bfloat16", "float64", "int64",
                                   "int32",   "uint8",   "int8",     "bool",    "unsupported"};
  return names[static_cast<int>(dtype)];
}

template <class T>
constexpr Dtype dtype_of();
template <>
constexpr Dtype dtype_of<float>() {
  return Dtype::f32;
}
template <>
constexpr Dtype dtype_of<double>() {
  return Dtype::f64;
}
template <>
constexpr Dtype dtype_of<int64_t>() {
  return Dtype::i64;
}
template <>
constexpr Dtype dtype_of<int32_t>() {
  return Dtype::i32;
}
template <>
constexpr Dtype dtype_of<uint8_t>() {
  return Dtype::u8;
}
template <>
constexpr Dtype dtype_of<int8_t>() {
  return Dtype::i8;
}

// Bytes of an element of the kernels' dtypes: float32, float16 or bfloat16.
static inline int64_t item_size(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

}  // namespace ofa
