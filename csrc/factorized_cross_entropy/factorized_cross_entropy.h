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

}  // namespace ofa::factorized_cross_entropy
