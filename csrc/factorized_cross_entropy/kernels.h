// The per-instruction-set half of the op: one tile of the logits at a time, `tile` vocabulary rows by the columns of
// one block of labelled rows, so that maxima, sums and bias need no reduction across lanes and no operand needs
// packing.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "isa.h"

namespace ofa {
namespace factorized_cross_entropy {

constexpr int64_t tile = 168;          // vocabulary rows: a multiple of every micro-kernel's 14 or 6 rows
constexpr int64_t block = 224;         // most labelled rows of a block
constexpr int64_t block_stride = 240;  // floats from one row of a tile to the next; see padded()

// Floats from one row of `width` floats to the next: whole cache lines, and an odd number of them, so that a column
// of lines spreads over all sets of the cache.
static inline int64_t padded(int64_t width) { return ((width + 15) / 16 | 1) * 16; }

struct Table {
  const void* coordinates;  // [V, R]
  Dtype dtype;
  const void* bias;  // [V] or null
  Dtype bias_dtype;
  int64_t rank;
};

struct Block {
  int64_t count;            // labelled rows
  const int64_t* labels;    // [count]
  const float* projected;   // [count, padded(R)], the rows of hidden basisT
  const float* transposed;  // [R, block_stride], the same as columns, zero beyond count
};

// What one chunk of the vocabulary adds to the sums of one block; `others` may be null.
struct Partial {
  float* maximum;  // [block_stride] of the logits
  double* sum;     // [block_stride] of exp(logit - maximum), the label's own left out
  float* others;   // [block, padded(R)] sum of exp(logit - maximum) coordinates, the label's own left out
};

// The logits' gradient is exp(logit - lse) weight, and target_weight at the label; all [block_stride].
struct Weights {
  const float *lse, *weight, *target_weight;
};

struct Scratch {    // of one worker
  float* panel;     // [tile, padded(R)] coordinates of the tile
  float* bias;      // [tile]
  float* scores;    // [tile, block_stride]
  float* gradient;  // [tile, padded(R)]; backward only
};

struct Kernels {
  // Vocabulary rows [first, last). Writes `partial` and, for the labels in the range, target[row] = the label's logit.
  void (*forward)(const Table& table, const Block& rows, int64_t first, int64_t last, const Scratch& scratch,
                  const Partial& partial, float* target);
  // Gradients of the vocabulary rows [first, last) from all blocks; either may be null.
  void (*backward)(const Table& table, const Block* blocks, const Weights* weights, int64_t block_count, int64_t first,
                   int64_t last, const Scratch& scratch, void* grad_coordinates, void* grad_bias);
};

}  // namespace factorized_cross_entropy

OFA_DECLARE_TABLE(factorized_cross_entropy::Kernels, cross_entropy)

}  // namespace ofa
