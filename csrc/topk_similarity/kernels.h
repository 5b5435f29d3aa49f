// The inner loops of the search, once per instruction set: exact float64 products, and the screen, which bounds the
// products of many pairs cheaply and reports only those that may still matter.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "isa.h"

namespace ofa {

// Rows of unit length in the form the screen multiplies. Row r is scale[r] * code[r] to within residual[r] (the norm of
// the difference); a zero row has scale 0. Codes lie in tiles of [depth / step][tile][step].
struct Encoded {
  void* codes;
  float* scale;
  float* residual;
  int32_t* offset;  // where the sums of a query's products begin; null for keys
};

// A block of queries against a range of key tiles. A pair is reported where
//   product * key_scale[key] > threshold[query] - slope[query] * tile_norm[tile] - reach[query] * tile_residual[tile].
struct Screen {
  const void* queries;
  const int32_t* offset;
  const float *threshold, *slope, *reach;  // [query_tiles * query_tile]; `hit` may raise a threshold
  int64_t query_tiles;
  const void* keys;
  const float* key_scale;                  // [key_tiles * key_tile]
  const float *tile_norm, *tile_residual;  // [key_tiles]: the largest of the tile
  int64_t key_tiles, depth;
  // Pairs of one query that pass: keys key + i for every bit i of mask. Keys ascend from call to call of a query.
  void (*hit)(void* context, int64_t query, int64_t key, uint64_t mask, const float* products);
  void* context;
};

struct TopkExact {
  // Sums run over eight lanes, lane j taking elements j, j + 8, ... in order; then lane j + 4 is added to lane j, j + 2
  // to j and 1 to 0. Products are exact in float64, so fused multiply-adds change nothing.
  void (*squared_norms)(const void* rows, Dtype dtype, int64_t count, int64_t depth, double* norms, float* scratch);
  void (*dots)(const double* query, const void* keys, Dtype dtype, const int32_t* index, int64_t count, int64_t depth,
               double* dots, float* scratch);
  void (*widen)(const void* row, Dtype dtype, int64_t depth, double* wide);  // padded with zeros to a multiple of 8
};

struct TopkScreen {
  int query_tile, key_tile;  // rows of a tile
  int step, code_size;       // codes of a step lie together; bytes of one code
  bool exact_products;       // the products of codes are summed without rounding
  // One tile of `count` rows, at most `tile`; the rest is zero. `norms` are the rows' own.
  void (*encode)(const void* rows, Dtype dtype, int64_t count, int64_t depth, const double* norms, int tile,
                 const Encoded& out, float* scratch);
  void (*run)(const Screen& screen);
};

OFA_DECLARE_TABLE(TopkExact, topk_exact)
OFA_DECLARE_TABLE(TopkScreen, topk_screen)

// Floats of scratch that these need.
static inline int64_t scratch_size(int64_t depth) { return 2 * ((depth + 63) / 64 * 64); }

}  // namespace ofa
