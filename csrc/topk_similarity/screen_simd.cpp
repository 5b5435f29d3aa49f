#include "simd.h"
#include "topk_similarity/kernels.h"
#include "topk_similarity/rows.h"

#if defined(__SSE2__)
#  include <immintrin.h>
#endif

namespace ofa {
namespace OFA_ISA {
namespace {

// Bit i is set where a[i] > b[i].
inline uint64_t above(vfloat a, vfloat b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), _CMP_GT_OQ);
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), _CMP_GT_OQ));
#elif defined(__SSE2__)
  return _mm_movemask_ps(_mm_cmpgt_ps(reinterpret_cast<__m128>(a), reinterpret_cast<__m128>(b)));
#else
  uint64_t mask = 0;
  for (int i = 0; i < lanes; ++i) mask |= static_cast<uint64_t>(a[i] > b[i]) << i;
  return mask;
#endif
}

constexpr int query_tile = lanes == 16 ? 14 : 6;
constexpr int key_vectors = 2;
constexpr int key_tile = key_vectors * lanes;

void encode(const void* rows, Dtype dtype, int64_t count, int64_t depth, const double* norms, int tile,
            const Encoded& out, float* scratch) {
  float* codes = static_cast<float*>(out.codes);
  for (int r = 0; r < tile; ++r) {
    const bool zero = r >= count || norms[r] == 0;
    out.scale[r] = zero ? 0.0f : 1.0f;
    out.residual[r] = 0.0f;
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

__attribute__((noinline)) void report(const Screen& s, int64_t query, int64_t key, uint64_t mask,
                                      const float* products) {
  for (; mask; mask &= mask - 1) {
    const int at = __builtin_ctzll(mask);
    s.hit(s.context, query, key + at, products[at]);
  }
}

inline void screen_tile(const Screen& s, const float* queries, const float* keys, int64_t first_query, int64_t tile) {
  vfloat sum[query_tile][key_vectors];
#pragma GCC unroll 14
  for (int i = 0; i < query_tile; ++i) sum[i][0] = sum[i][1] = vfloat{};
  for (int64_t d = 0; d < s.depth; ++d) {
    const vfloat key0 = load(keys + d * key_tile), key1 = load(keys + d * key_tile + lanes);
#pragma GCC unroll 14
    for (int i = 0; i < query_tile; ++i) {
      const vfloat query = splat(queries[d * query_tile + i]);
      sum[i][0] += query * key0;
      sum[i][1] += query * key1;
    }
  }
  float limit[query_tile];
  const float norm = s.tile_norm[tile], residual = s.tile_residual[tile];
  for (int i = 0; i < query_tile; ++i)
    limit[i] = s.threshold[first_query + i] - s.slope[first_query + i] * norm - s.reach[first_query + i] * residual;
  const float* scale = s.key_scale + tile * key_tile;
  const vfloat scale0 = load(scale), scale1 = load(scale + lanes);
#pragma GCC unroll 14
  for (int i = 0; i < query_tile; ++i) {
    const vfloat bound = splat(limit[i]);
    const uint64_t mask = above(sum[i][0] * scale0, bound) | above(sum[i][1] * scale1, bound) << lanes;
    if (__builtin_expect(mask != 0, 0)) {
      float products[key_tile];
      store(products, sum[i][0]);
      store(products + lanes, sum[i][1]);
      report(s, first_query + i, tile * key_tile, mask, products);
    }
  }
}

void screen(const Screen& s) {
  const float *queries = static_cast<const float*>(s.queries), *keys = static_cast<const float*>(s.keys);
  for (int64_t tile = 0; tile < s.key_tiles; ++tile)
    for (int64_t block = 0; block < s.query_tiles; ++block)
      screen_tile(s, queries + block * query_tile * s.depth, keys + tile * key_tile * s.depth, block * query_tile,
                  tile);
}

}  // namespace

extern const TopkScreen topk_screen = {query_tile, key_tile, 1, 4, false, encode, screen};

}  // namespace OFA_ISA
}  // namespace ofa
