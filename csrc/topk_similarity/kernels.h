// The inner loops of the search, once per instruction set: exact float64 products, and the screen, which bounds the
// products of many pairs cheaply.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "isa.h"

namespace ofa {

struct TopkExact {
  // Sums run over eight lanes, lane j taking elements j, j + 8, ... in order; then lane j + 4 is added to lane j, j + 2
  // to j and 1 to 0. Products are exact in float64, so fused multiply-adds change nothing.
  void (*squared_norms)(const void* rows, Dtype dtype, int64_t count, int64_t depth, double* norms, float* scratch);
  // Of one query, given as its row, and the keys listed.
  void (*dots)(const void* query, const void* keys, Dtype dtype, const int32_t* key, int64_t count, int64_t depth,
               double* dots, float* scratch);
};

// Rows, each times its factor, in the form the screen multiplies. Codes stand for the rows turned by a fixed rotation,
// which changes no product: a turned row is scale * its code to within residual (the norm of the difference).
struct Encoded {
  void* codes;      // of queries: row by row; of keys: a tile
  float* scale;     // of each query; one for a tile of keys
  float* residual;  // of each query; the largest of a tile of keys
  int32_t* offset;  // of each query: where the sums of its products begin. Null for keys
};

struct KeyTile {
  float scale, inverse_scale;
  float norm, residual;  // the largest of its keys
};

// Pairs of a tile of queries and a tile of keys, counted from its first ones, and upper bounds of their scores.
struct Hits {
  static constexpr int most = 32 * 32;
  int32_t pair[most];  // key << 8 | query
  float upper[most];
};

// A block of queries against a range of key tiles. With slack = slope[query] * norm[tile] + reach[query] *
// residual[tile], the score of a pair lies within product * scale[tile] - slack and product * scale[tile] + slack.
struct Screen {
  const void* queries;
  const int32_t* offset;
  const float *threshold, *slope, *reach;  // [query_tiles * query_tile]
  int64_t query_tiles;
  const void* keys;
  const KeyTile* tiles;
  int64_t key_tiles, depth;
  // Takes the pairs whose upper bound exceeds the query's threshold, tile by tile.
  void (*take)(void* context, const Hits& hits, int64_t count, int64_t query, int64_t key);
  void* context;
  // If not null, nothing is compared; this becomes the largest lower bound of every query in every group of key tiles.
  float* lows;  // [query_tiles][lows_stride / query_tile groups][query_tile]
  int64_t lows_stride;
  int group;  // tiles
};

struct TopkScreen {
  int query_tile, key_tile;  // rows of a tile: the lanes of its products, and the rows of those
  int step, code_size;       // codes of a row come in multiples of step; bytes of one code
  double rounding;           // of the rotation and of sums of products, relative to the norms: fixed + depth * per_term
  double rounding_per_term;
  // Rows with a factor of 0 are zero. Queries: `count` rows. Keys: one tile, filled up by copies of its first row.
  void (*encode_queries)(const void* rows, Dtype dtype, int64_t count, int64_t depth, const double* factor,
                         const Encoded& out, float* scratch);
  void (*encode_keys)(const void* rows, Dtype dtype, int64_t count, int64_t depth, const double* factor,
                      const Encoded& out, float* scratch);
  // A tile of the encoded queries listed (or the first ones, if `which` is null), filled up with zeros.
  void (*pack)(const void* codes, const int32_t* which, int64_t count, int64_t depth, void* tile);
  void (*run)(const Screen& screen);
  // Of every query of a tile: a number that at least k of its `count` lows reach, close to the largest such number.
  void (*kth_largest)(const float* lows, int64_t count, int64_t k, float* result);
  // Lists the queries that may have candidates in the key tiles, which are one group.
  int64_t (*visitors)(const Screen& screen, int32_t* list);
  int64_t (*scratch_size)(int64_t depth);  // floats that encoding and TopkExact need
};

OFA_DECLARE_TABLE(TopkExact, topk_exact)
OFA_DECLARE_TABLE(TopkScreen, topk_screen)

}  // namespace ofa
