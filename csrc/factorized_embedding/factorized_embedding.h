// out[t] = coordinates[ids[t]] basis, and its gradients; the table coordinates basis [V, D] is never formed.
// N tokens, U distinct ids among them, V vocabulary rows, R rank, D width. Tables, out and gradients share one dtype:
// float32, float16 or bfloat16.
#pragma once

#include "tensor.h"

namespace ofa::factorized_embedding {

int64_t forward_workspace(int64_t tokens, int64_t rank, int64_t width, int threads);  // bytes
int64_t group_workspace(int64_t tokens);
int64_t backward_workspace(int64_t tokens, int64_t distinct, int64_t rank, int64_t width, int threads);

void forward(Tensor ids,          // [N] int64; one outside [0, V) is an error
             Tensor coordinates,  // [V, R]
             Tensor basis,        // [R, D]
             Tensor out,          // [N, D]
             Tensor workspace,    // [bytes] uint8
             int threads);

// Tokens sorted by id, equal ids in token order, without those whose id is padding_idx (-1: none).
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
    int threads);

// On CUDA nothing waits for the device, so that all of it is one call in each direction. An id outside [0, V) gives a
// row of zeros and no gradient.
int64_t cuda_backward_workspace(int64_t tokens, int64_t rank, int64_t width);  // bytes

void cuda_forward(Tensor ids,          // [N] int64
                  Tensor coordinates,  // [V, R]
                  Tensor basis,        // [R, D]
                  Tensor out,          // [N, D]
                  Tensor report);      // [3] int64, of the host, page-locked: see report.h; or [0]

void cuda_backward(Tensor grad_out,          // [N, D]
                   Tensor ids,               // [N] int64
                   int64_t padding_idx,      // or -1
                   Tensor coordinates,       // [V, R]
                   Tensor basis,             // [R, D]
                   Tensor grad_coordinates,  // [V, R]; or if distinct are wanted [min(N, V), R], of which U; or [0]
                   Tensor grad_basis,        // [R, D], or [0]
                   Tensor distinct,          // [N + 1] int64, the first U ascending, and at last U; or [0]
                   Tensor workspace);        // [bytes] uint8

}  // namespace ofa::factorized_embedding
