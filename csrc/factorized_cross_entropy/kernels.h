// The per-instruction-set half of the op: one tile of the logits at a time, some vocabulary rows by the columns of
// one block of labelled rows, so that maxima, sums and bias need no reduction across lanes.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "isa.h"

namespace ofa {
namespace factorized_cross_entropy {

constexpr int64_t block = 224;         // most labelled rows of a block
constexpr int64_t block_stride = 240;  // floats from one row of a tile to the next; see padded()

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Floats from one row of `width` floats to the next: whole cache lines, and an odd number of them, so that a column
// of lines spreads over all sets of the cache.
static inline int64_t padded(int64_t width) { return ((width + 15) / 16 | 1) * 16; }

struct Table {
  const void* coordinates;  // [V, R]
  Dtype dtype;
  const void* bias;  // [V] or null
  Dtype bias_dtype;
  int64_t rank;
  bool coarse;  // coordinates, basis and hidden states are bfloat16: 16 bits of what is computed from them are enough
};

struct Block {
  int64_t count;               // labelled rows
  const int64_t* labels;       // [count]
  const float* projected;      // [count, padded(R)], the rows of hidden basisT
  const float* score_operand;  // the same as the products want it
  const float* gradient_operand;
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
  bool finite;
};

struct Scratch {    // of one worker
  float* panel;     // [panel_size(R)] coordinates of the tile
  float* bias;      // [tile]
  float* scores;    // [tile, block_stride]
  float* gradient;  // [tile, padded(R)]; backward only
};

struct Kernels {
  int64_t tile;  // vocabulary rows
  // Floats of an operand of one block, and of a worker's panel.
  int64_t (*score_operand_size)(int64_t rank);
  int64_t (*gradient_operand_size)(int64_t rank);
  int64_t (*panel_size)(int64_t rank);
  // Writes the operands of a block from its projected rows; gradient_operand may be null.
  void (*prepare)(const Table& table, const float* projected, int64_t count, float* score_operand,
                  float* gradient_operand);
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
