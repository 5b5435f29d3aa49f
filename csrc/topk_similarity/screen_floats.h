// The screen in float32, for *_simd.cpp.
#pragma once

#include "simd.h"

namespace ofa {
namespace OFA_ISA {

using Code = float;
constexpr int step = 1;
constexpr int key_tile = lanes == 16 ? 14 : 6;  // the sums of a tile fill the register file
constexpr int query_tile = 2 * lanes;

}  // namespace OFA_ISA
}  // namespace ofa

#include "topk_similarity/screen.h"

namespace ofa {
namespace OFA_ISA {

constexpr double rounding = 16.5 * 0x1p-24, rounding_per_term = 1.01 * 0x1p-24;  // that of the codes included

static int64_t scratch_size(int64_t depth) { return 2 * depth; }

static void encode(const void* rows, Dtype dtype, int64_t count, int64_t depth, const double* factor, int tile,
                   float* codes, float* scratch) {
  for (int r = 0; r < tile; ++r) {
    if (r >= count || factor[r] == 0) {
      for (int64_t d = 0; d < depth; ++d) codes[d * tile + r] = 0.0f;
      continue;
    }
    const float* row = as_floats(rows, dtype, r, depth, scratch);
    for (int64_t d = 0; d < depth; ++d) codes[d * tile + r] = static_cast<float>(row[d] * factor[r]);
  }
}

static void encode_queries(const void* rows, Dtype dtype, int64_t count, int64_t depth, const double* factor,
                           const Encoded& out, float* scratch) {
  encode(rows, dtype, count, depth, factor, query_tile, static_cast<float*>(out.codes), scratch);
  for (int r = 0; r < query_tile; ++r) {
    out.scale[r] = r >= count || factor[r] == 0 ? 0.0f : 1.0f;
    out.residual[r] = 0.0f;
    out.offset[r] = 0;
  }
}

static void encode_keys(const void* rows, Dtype dtype, int64_t count, int64_t depth, const double* factor,
                        const Encoded& out, float* scratch) {
  encode(rows, dtype, count, depth, factor, key_tile, static_cast<float*>(out.codes), scratch);
  *out.scale = 1.0f;
  *out.residual = 0.0f;
}

static inline void screen_tile(const Screen& s, const float* queries, const float* keys, int64_t query, int64_t tile) {
  vfloat sum[key_tile][2];
#pragma GCC unroll 14
  for (int i = 0; i < key_tile; ++i) sum[i][0] = sum[i][1] = vfloat{};
  for (int64_t d = 0; d < s.depth; ++d) {
    const vfloat query0 = load(queries + d * query_tile), query1 = load(queries + d * query_tile + lanes);
#pragma GCC unroll 14
    for (int i = 0; i < key_tile; ++i) {
      const vfloat value = splat(keys[d * key_tile + i]);
      sum[i][0] += value * query0;
      sum[i][1] += value * query1;
    }
  }
  const vfloat limit[2] = {limits(s, query, s.tiles[tile]), limits(s, query + lanes, s.tiles[tile])};
  gate<key_tile, 2, vfloat, float>(s, sum, limit, query, tile);
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
