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

static void encode_queries(const void* rows, Dtype dtype, int64_t count, int64_t depth, const double* factor,
                           const Encoded& out, float* scratch) {
  float* codes = static_cast<float*>(out.codes);
  for (int64_t r = 0; r < count; ++r) {
    const float* row = as_floats(rows, dtype, r, depth, scratch);
    for (int64_t d = 0; d < depth; ++d) codes[r * depth + d] = static_cast<float>(row[d] * factor[r]);
    out.scale[r] = factor[r] == 0 ? 0.0f : 1.0f;
    out.residual[r] = 0.0f;
    out.offset[r] = 0;
  }
}

static void encode_keys(const void* rows, Dtype dtype, int64_t count, int64_t depth, const double* factor,
                        const Encoded& out, float* scratch) {
  float* codes = static_cast<float*>(out.codes);
  for (int r = 0; r < key_tile; ++r) {
    const int64_t from = r < count ? r : 0;
    const float* row = as_floats(rows, dtype, from, depth, scratch);
    for (int64_t d = 0; d < depth; ++d) codes[d * key_tile + r] = static_cast<float>(row[d] * factor[from]);
  }
  *out.scale = 1.0f;
  *out.residual = 0.0f;
}

static void pack(const void* codes, const int32_t* which, int64_t count, int64_t depth, void* tile) {
  const float* rows = static_cast<const float*>(codes);
  float* out = static_cast<float*>(tile);
  for (int r = 0; r < query_tile; ++r) {
    const float* row = rows + (which && r < count ? which[r] : r) * depth;
    for (int64_t d = 0; d < depth; ++d) out[d * query_tile + r] = r < count ? row[d] : 0.0f;
  }
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
  gate<key_tile, 2, vfloat, float>(s, sum, query, tile);
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
