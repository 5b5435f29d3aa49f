// The screen in float32, for *_simd.cpp.
#pragma once

#include "topk_similarity/screen.h"

namespace ofa {
namespace OFA_ISA {

using Code = float;
constexpr int step = 1;
constexpr bool exact_products = false;
constexpr int query_tile = lanes == 16 ? 14 : 6;  // the sums of a tile fill the register file
constexpr int key_tile = 2 * lanes;

static void encode(const void* rows, Dtype dtype, int64_t count, int64_t depth, const double* norms, int tile,
                   const Encoded& out, float* scratch) {
  float* codes = static_cast<float*>(out.codes);
  for (int r = 0; r < tile; ++r) {
    const bool zero = r >= count || norms[r] == 0;
    out.scale[r] = zero ? 0.0f : 1.0f;
    out.residual[r] = 0.0f;  // the rounding of the codes is counted with that of their products
    if (out.offset) out.offset[r] = 0;
    if (zero) {
      for (int64_t d = 0; d < depth; ++d) codes[d * tile + r] = 0.0f;
      continue;
    }
    const double inverse = 1.0 / norms[r];
    const float* row = as_floats(rows, dtype, r, depth, scratch);
    for (int64_t d = 0; d < depth; ++d) codes[d * tile + r] = static_cast<float>(row[d] * inverse);
  }
}

static inline void screen_tile(const Screen& s, const float* queries, const float* keys, int64_t query, int64_t tile) {
  vfloat sum[query_tile][2];
#pragma GCC unroll 14
  for (int i = 0; i < query_tile; ++i) sum[i][0] = sum[i][1] = vfloat{};
  for (int64_t d = 0; d < s.depth; ++d) {
    const vfloat key0 = load(keys + d * key_tile), key1 = load(keys + d * key_tile + lanes);
#pragma GCC unroll 14
    for (int i = 0; i < query_tile; ++i) {
      const vfloat value = splat(queries[d * query_tile + i]);
      sum[i][0] += value * key0;
      sum[i][1] += value * key1;
    }
  }
  float limit[query_tile];
  limits<query_tile>(s, query, tile, limit);
  const float* scales = s.key_scale + tile * key_tile;
  const vfloat scale[2] = {load(scales), load(scales + lanes)};
#pragma GCC unroll 14
  for (int i = 0; i < query_tile; ++i) gate<2>(s, query + i, tile * key_tile, sum[i], scale, limit[i]);
}

static void screen(const Screen& s) {
  const float *queries = static_cast<const float*>(s.queries), *keys = static_cast<const float*>(s.keys);
  for (int64_t tile = 0; tile < s.key_tiles; ++tile)
    for (int64_t block = 0; block < s.query_tiles; ++block)
      screen_tile(s, queries + block * query_tile * s.depth, keys + tile * key_tile * s.depth, block * query_tile,
                  tile);
}

}  // namespace OFA_ISA
}  // namespace ofa
