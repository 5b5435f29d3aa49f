// The inner loops of the search, once per instruction set: exact float64 products, and the screen, which bounds the
// products of many pairs cheaply and reports only those that may still matter.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "isa.h"

namespace ofa {

struct Pair {
  int32_t query, key;
};

struct TopkExact {
  // Sums run over eight lanes, lane j taking elements j, j + 8, ... in order; then lane j + 4 is added to lane j, j + 2
  // to j and 1 to 0. Products are exact in float64, so fused multiply-adds change nothing.
  void (*squared_norms)(const void* rows, Dtype dtype, int64_t count, int64_t depth, double* norms, float* scratch);
  void (*dots)(const void* queries, const void* keys, Dtype dtype, const Pair* pairs, int64_t count, int64_t depth,
               double* dots, float* scratch);
};

// A tile of rows, each times its factor, in the form the screen multiplies. Codes stand for the rows turned by a fixed
// rotation, which changes no product: a turned row is scale * its code to within residual (the norm of the difference).
struct Encoded {
  void* codes;
  float* scale;     // of each query; one for a tile of keys
  float* residual;  // of each query; the largest of a tile of keys
  int32_t* offset;  // of each query: where the sums of its products begin. Null for keys
};

struct KeyTile {
  float scale, inverse_scale;
  float norm, residual;  // the largest of its keys
};

// A block of queries against a range of key tiles. A pair is reported where
//   product > (threshold[query] - slope[query] * norm[tile] - reach[query] * residual[tile]) * inverse_scale[tile].
struct Screen {
  const void* queries;
  const int32_t* offset;
  const float *threshold, *slope, *reach;  // [query_tiles * query_tile]; `hit` may raise a threshold
  int64_t query_tiles;
  const void* keys;
  const KeyTile* tiles;
  int64_t key_tiles, depth;
  // Pairs of one query that pass: keys key + i for every bit i of mask. Keys ascend from call to call of a query.
  void (*hit)(void* context, int64_t query, int64_t key, uint64_t mask);
  void* context;
  // If not null, nothing is reported; this becomes, for every tile of keys and every query, a number below the score of
  // one of the keys: largest product * scale[tile] - slope[query] * norm[tile] - reach[query] * residual[tile].
  float* lows;  // [key_tiles][query_tiles * query_tile]
};

struct TopkScreen {
  int query_tile, key_tile;  // rows of a tile: the lanes of its products, and the rows of those
  int step, code_size;       // codes of a row come in multiples of step; bytes of one code
  double rounding;           // of the rotation and of sums of products, relative to the norms: fixed + depth * per_term
  double rounding_per_term;
  // One tile of `count` rows, at most query_tile or key_tile; the rest is zero, and so are rows with a factor of 0.
  void (*encode_queries)(const void* rows, Dtype dtype, int64_t count, int64_t depth, const double* factor,
                         const Encoded& out, float* scratch);
  void (*encode_keys)(const void* rows, Dtype dtype, int64_t count, int64_t depth, const double* factor,
                      const Encoded& out, float* scratch);
  void (*run)(const Screen& screen);
  int64_t (*scratch_size)(int64_t depth);  // floats that encoding and TopkExact need
};

OFA_DECLARE_TABLE(TopkExact, topk_exact)
OFA_DECLARE_TABLE(TopkScreen, topk_screen)

}  // namespace ofa
