// What the truncated SVD of a tall matrix costs: its Gram matrix and one product, both to float32 accuracy.
#pragma once

#include "tensor.h"

namespace ofa::truncated_svd {

int64_t gram_workspace(int64_t columns, int threads);                    // bytes
int64_t product_workspace(int64_t depth, int64_t columns, int threads);  // bytes

// gram = matrixᵀ matrix: products are summed in float32 over panels of 768 rows and in float64 across panels.
void gram(Tensor matrix,     // [n, d] float32, float16 or bfloat16
          Tensor gram,       // [d, d] float64, both triangles
          Tensor workspace,  // [bytes] uint8
          int threads);

// out = matrix right, and images = outᵀ (out vectors), which the vectors themselves are where out is orthonormal
void product(Tensor matrix,     // [n, d] float32, float16 or bfloat16
             Tensor right,      // [d, R] float32
             Tensor vectors,    // [R, 16] float32
             Tensor out,        // [n, R] float32
             Tensor images,     // [R, 16] float64
             Tensor workspace,  // [bytes] uint8
             int threads);

}  // namespace ofa::truncated_svd
