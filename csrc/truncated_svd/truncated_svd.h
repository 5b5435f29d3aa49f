// The Gram matrix of a tall matrix, which is what its truncated SVD costs: gram = matrixᵀ matrix, n rows, d columns.
#pragma once

#include "tensor.h"

namespace ofa::truncated_svd {

int64_t gram_workspace(int64_t columns, int threads);  // bytes

// Products are summed in float32 over panels of 256 rows and in float64 across panels.
void gram(Tensor matrix,     // [n, d] float32, float16 or bfloat16
          Tensor gram,       // [d, d] float64, both triangles
          Tensor workspace,  // [bytes] uint8
          int threads);

}  // namespace ofa::truncated_svd
