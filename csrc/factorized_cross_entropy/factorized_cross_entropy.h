// The cross entropy of logits = (hidden basisT) coordinatesT + bias over the labelled positions, and its gradients.
// Neither the logits [N, V] nor the table coordinates basis [V, D] is ever formed.
// N positions, n of them labelled, V vocabulary rows, R rank, D width. hidden, coordinates, basis and bias are each
// float32, float16 or bfloat16; a gradient has the dtype of what it belongs to. "or [0]" marks what may be left out.
#pragma once

#include "tensor.h"

namespace ofa::factorized_cross_entropy {

int64_t forward_workspace(Tensor coordinates, int64_t labelled, int64_t width, int threads);  // bytes
int64_t backward_workspace(Tensor coordinates, int64_t labelled, int64_t width, int threads);

void forward(Tensor hidden,       // [N, D]
             Tensor coordinates,  // [V, R]
             Tensor basis,        // [R, D]
             Tensor bias,         // [V] or [0]
             Tensor labels,       // [N] int64
             Tensor rows,         // [n] int64, the labelled positions
             Tensor loss,         // [N] float32; only the labelled positions of these three are written
             Tensor lse,          // [2, N] float32: log-sum-exp of the logits, and what rounding it left over
             Tensor others,       // [N, R] float32 or [0]: sum of p_v coordinates_v over all v but the label
             Tensor workspace,    // [bytes] uint8
             int threads);

void backward(Tensor grad_loss,         // [N] float32
              Tensor grad_lse,          // [N] float32
              Tensor hidden,            // [N, D]
              Tensor coordinates,       // [V, R]
              Tensor basis,             // [R, D]
              Tensor bias,              // [V] or [0]
              Tensor labels,            // [N] int64
              Tensor rows,              // [n] int64
              Tensor loss,              // [N] float32
              Tensor lse,               // [2, N] float32
              Tensor others,            // [N, R] float32, or [0] where grad_hidden and grad_basis are
              Tensor grad_hidden,       // [N, D] or [0], zero on entry; only labelled positions are written
              Tensor grad_coordinates,  // [V, R] or [0]
              Tensor grad_basis,        // [R, D] or [0]
              Tensor grad_bias,         // [V] or [0]
              Tensor workspace,         // [bytes] uint8
              int threads);

// On GPUs of compute capability 9.0 the two passes over all logits, between the Triton kernels of triton_positions.py;
// for coordinates of float16 or bfloat16 whose rank is a multiple of 8, up to 256. A block owns 128 rows, of the
// positions or of the vocabulary. The n labelled positions come first, in the order of their labels.

// How many rows pass a block at a time, or 0 if these coordinates, contiguous, are none that the passes take.
int64_t cuda_step(Tensor coordinates);

void cuda_forward(Tensor states,       // [N or more, R or more] hidden basisT, of the coordinates' dtype
                  Tensor coordinates,  // [V, R]
                  Tensor bias,         // [V, padded to steps] float32 in bits, -infinity behind the last one; or [0]
                  Tensor keys,         // [N] int32, the labels, and V for all others
                  Tensor counted,      // [] int32, n
                  int64_t programs,    // blocks that share the work
                  Tensor largest,      // [splits, N] float32: of a split of the vocabulary without the label's logit
                                       // the largest, in bits; there are as many splits at most
                  Tensor sums,         // [splits, N] float32: of 2^(logit - largest)
                  Tensor partial);     // float32 or [0]: of 2^(logit - largest) coordinates, of float16 times 2^15;
                                       // [min(splits N, max(128 programs, N)), R], of which [splits, n, R] are used

void cuda_backward(Tensor states,            // [N', R or more], N or more rows in whole steps; zeros from n on
                   Tensor coordinates,       // [V, R]
                   Tensor bias,              // [V] or [0]
                   Tensor keys,              // [N] int32
                   Tensor bounds,            // [ceil(V / 128) + 1] int32: the first position whose key is 128 i or more
                   Tensor log_sums,          // [N'] float32: log-sum-exp of the logits, in bits; infinity from n on
                   Tensor slopes,            // [N'] float32: the gradient of a position's log-sum-exp, over `unit`
                   Tensor label_slopes,      // [N'] float32: and of the logit at its label; of float16 both times 2^15
                   Tensor unit,              // [] float32
                   Tensor grad_coordinates,  // [V, R] or [0]
                   Tensor grad_bias);        // [V] or [0]

}  // namespace ofa::factorized_cross_entropy
