// The per-instruction-set half of the op, besides the products of gemm.h.
#pragma once

#include <cstdint>

#include "isa.h"

namespace ofa {

constexpr int probes = 16;

// images += rowsᵀ (rows vectors), for rows [count, columns]; vectors and images are [columns, probes].
using AddImages = void (*)(const float* rows, int64_t count, int64_t columns, const float* vectors, float* images);

OFA_DECLARE_TABLE(AddImages, add_images)

}  // namespace ofa
