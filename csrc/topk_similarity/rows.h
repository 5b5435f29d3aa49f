// Rows of any input dtype as floats, for *_simd.cpp.
#pragma once

#include "simd.h"

#if defined(__SSE2__)
#  pragma GCC diagnostic push
#  pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // what GCC 12 says of its own intrinsics
#  include <immintrin.h>
#  pragma GCC diagnostic pop
#endif

namespace ofa {
namespace OFA_ISA {

// The row as floats: itself, or converted into scratch.
static inline const float* as_floats(const void* rows, Dtype dtype, int64_t row, int64_t depth, float* scratch) {
  if (dtype == Dtype::f32) return static_cast<const float*>(rows) + row * depth;
  with_dtype(dtype, [&](auto constant) {
    for (int64_t d = 0; d < depth; ++d) scratch[d] = load_as_float(rows, constant.value, row * depth + d);
  });
  return scratch;
}

}  // namespace OFA_ISA
}  // namespace ofa
