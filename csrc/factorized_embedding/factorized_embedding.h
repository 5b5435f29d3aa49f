// out[t] = coordinates[ids[t]] basis, and its gradients; the table coordinates basis [V, D] is never formed.
// N tokens, V vocabulary rows, R rank, D width. Tables, out and gradients share one dtype: float32, float16 or
// bfloat16.
#pragma once

#include "tensor.h"

namespace ofa::factorized_embedding {

int64_t forward_workspace(int64_t tokens, int64_t rank, int64_t width, int threads);  // bytes
int64_t backward_workspace(int64_t tokens, int64_t rank, int64_t width, int threads);

void forward(Tensor ids,          // [N] int64
             Tensor coordinates,  // [V, R]
             Tensor basis,        // [R, D]
             Tensor out,          // [N, D]
             Tensor workspace,    // [bytes] uint8
             int threads);

void backward(Tensor grad_out,          // [N, D]
              Tensor ids,               // [N] int64
              Tensor coordinates,       // [V, R]
              Tensor basis,             // [R, D]
              Tensor grad_coordinates,  // [V, R], zero on entry; only rows named by ids are written
              Tensor grad_basis,        // [R, D]
              Tensor workspace,         // [bytes] uint8
              int threads);

}  // namespace ofa::factorized_embedding
