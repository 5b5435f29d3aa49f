// The k best keys of every query, exactly: ordered by score descending, then index ascending, where a score is the
// float64 product of the float32, float16 or bfloat16 inputs summed in one fixed order. Q queries, K keys, d wide.
#pragma once

#include "tensor.h"

namespace ofa::topk_similarity {

// Bytes, for so many threads of a CPU, or for this one of the GPUs.
int64_t workspace(int64_t queries, int64_t keys, int64_t depth, int64_t k, int threads_or_device);

void forward(Tensor queries,    // [Q, d]
             Tensor keys,       // [K, d], of the same dtype
             int64_t k,         // 1 <= k <= K
             bool cosine,       // divide by both norms; else plain products
             Tensor scores,     // [Q, k] float32
             Tensor indices,    // [Q, k] int64
             Tensor report,     // [2] int64: queries for which the screen let more than half of the keys pass, and
                                // pairs whose float64 score was computed. On CUDA, where nothing waits for the
                                // device, [4]: then the first rows of queries and of keys that are not finite, or -1,
                                // and it counts queries for which more keys passed than there is room for
             Tensor workspace,  // [bytes] uint8
             int threads);      // of the CPU

}  // namespace ofa::topk_similarity
