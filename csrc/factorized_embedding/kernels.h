// The per-instruction-set half of the op, besides the products of gemm.h.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "isa.h"

namespace ofa {

// sums[s, columns] = the sum, in order, of the rows order[first[s]] to order[first[s + 1] - 1] of src, for each of
// `segments`, none of them empty. Row r lies at src + r * stride elements, sum s at sums + s * stride.
using SumSegments = void (*)(const void* src, Dtype dtype, int64_t stride, const int64_t* order, const int64_t* first,
                             int64_t segments, int64_t columns, float* sums);

OFA_DECLARE_TABLE(SumSegments, sum_segments)

}  // namespace ofa
