// Sums of the vectors of the words in which each subword occurs.
#pragma once

#include "tensor.h"

namespace ofa::subword_sums {

// For each word w and each distinct subword s among ids[id_starts[w]:id_starts[w + 1]]:
//   sums[s] += Σ vectors[row_starts[w]:row_starts[w + 1]]   and   totals[s] += row_starts[w + 1] - row_starts[w],
// in the order of the words, whatever the number of threads. `ids` is left with each word's ids sorted.
void add(Tensor ids,         // [n] int64, overwritten
         Tensor id_starts,   // [words + 1] int64
         Tensor vectors,     // [rows, d] float32
         Tensor row_starts,  // [words + 1] int64
         Tensor sums,        // [V, d] float64
         Tensor totals,      // [V] float64
         int threads);

// For each row i and each of the subwords s among ids[id_starts[words[i]]:id_starts[words[i] + 1]]:
//   sums[s] += weights[s] * vectors[i],
// in float64 and in the order of the rows, whatever the number of threads.
void add_weighted(Tensor ids,        // [n] int64
                  Tensor id_starts,  // [words + 1] int64
                  Tensor words,      // [rows] int64
                  Tensor vectors,    // [rows, d] float32
                  Tensor weights,    // [V] float64
                  Tensor sums,       // [V, d] float64
                  int threads);

}  // namespace ofa::subword_sums
