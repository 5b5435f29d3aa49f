// Rows of the normal numbers that numpy's legacy generator, np.random.RandomState, draws.
#pragma once

#include "tensor.h"

namespace ofa::legacy_normal {

// out[r, j] = mean[j] + std[j] * g[r * R + j] for the rows r of `kept`, g being the standard normal numbers that come
// from the state `key` of a Mersenne Twister whose words are used up: Marsaglia's polar method on doubles of 53 bits,
// two numbers an accepted pair, the second coordinate's first. The other rows are drawn too, but not computed.
void rows(Tensor key,   // [624] int32
          Tensor kept,  // [V] uint8, 0 or 1
          Tensor mean,  // [R] float64
          Tensor std,   // [R] float64
          Tensor out,   // [V, R] float32
          int threads);

}  // namespace ofa::legacy_normal
