// What the screens have in common: which products pass, and rows as bytes. For *_simd.cpp.
#pragma once

#include "topk_similarity/kernels.h"
#include "topk_similarity/rows.h"

namespace ofa {
namespace OFA_ISA {

// Bit i is set where a[i] > b[i].
static inline uint64_t above(vfloat a, vfloat b) {
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

static inline vfloat to_float(vfloat x) { return x; }
static inline vfloat to_float(vint x) { return __builtin_convertvector(x, vfloat); }

// limit[i]: what the scaled products of query i with the keys of a tile have to exceed.
template <int queries>
static inline void limits(const Screen& s, int64_t first_query, int64_t tile, float* limit) {
  const float norm = s.tile_norm[tile], residual = s.tile_residual[tile];
  for (int i = 0; i < queries; ++i)
    limit[i] = s.threshold[first_query + i] - s.slope[first_query + i] * norm - s.reach[first_query + i] * residual;
}

// Reports those of one query's products, in `vectors` registers, that exceed its limit.
template <int vectors, class Products>
static inline void gate(const Screen& s, int64_t query, int64_t key, const Products* products, const vfloat* scale,
                        float limit) {
  const vfloat bound = splat(limit);
  uint64_t mask = 0;
#pragma GCC unroll 4
  for (int j = 0; j < vectors; ++j) mask |= above(to_float(products[j]) * scale[j], bound) << (j * lanes);
  if (__builtin_expect(mask == 0, 1)) return;
  float values[vectors * lanes];
#pragma GCC unroll 4
  for (int j = 0; j < vectors; ++j) store(values + j * lanes, to_float(products[j]));
  s.hit(s.context, query, key, mask, values);
}

}  // namespace OFA_ISA
}  // namespace ofa
