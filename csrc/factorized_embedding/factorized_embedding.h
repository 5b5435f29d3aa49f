// out[t] = coordinates[ids[t]] basis, and its gradients; the table coordinates basis [V, D] is never formed.
// N tokens, U distinct ids among them, V vocabulary rows, R rank, D width. Tables, out and gradients share one dtype:
// float32, float16 or bfloat16.
#pragma once

#include "tensor.h"

namespace ofa::factorized_embedding {

int64_t forward_workspace(int64_t tokens, int64_t rank, int64_t width, int threads);  // bytes
int64_t group_workspace(int64_t tokens);
int64_t backward_workspace(int64_t tokens, int64_t distinct, int64_t rank, int64_t width, int threads);

void forward(Tensor ids,          // [N] int64; one outside [0, V) gives a row of zeros on CUDA, else an error
             Tensor coordinates,  // [V, R]
             Tensor basis,        // [R, D]
             Tensor out,          // [N, D]
             Tensor workspace,    // [bytes] uint8
             int threads);

// Tokens sorted by id, equal ids in token order, without those whose id is padding_idx (-1: none) or, on CUDA, outside
// [0, V); elsewhere that is an error.
void group(Tensor ids,  // [N] int64
           int64_t vocabulary, int64_t padding_idx,
           Tensor order,  // [N] int64, the sorted tokens, those that count first
           Tensor first,  // [N + 1] int64: the tokens of distinct id u are order[first[u]] to order[first[u + 1] - 1]
           Tensor distinct,    // [N] int64, the first U ascending
           Tensor count,       // [1] int64: U
           Tensor workspace);  // [bytes] uint8

void backward(
    Tensor grad_out,          // [N, D]
    Tensor order,             // as group() left them: [N],
    Tensor first,             // [N + 1],
    Tensor distinct,          // [N]
    Tensor count,             // and [1]
    Tensor coordinates,       // [V, R]
    Tensor basis,             // [R, D]
    Tensor grad_coordinates,  // [V, R], zero on entry; or [U, R], its rows of distinct ids; or [0]: not wanted
    Tensor grad_basis,        // [R, D], or [0]
    Tensor workspace,         // [bytes] uint8
    int threads);             // of the CPU

}  // namespace ofa::factorized_embedding
