// What the screens have in common: which products pass. For *_simd.cpp.
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
static inline vfloat larger(vfloat a, vfloat b) { return a > b ? a : b; }
#if defined(__AVX512F__)
static inline uint64_t above(vint a, vint b) {
  return _mm512_cmpgt_epi32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
}
static inline vint larger(vint a, vint b) { return a > b ? a : b; }
#endif
static inline vfloat to_float(vfloat x) { return x; }
static inline vfloat to_float(vint x) { return __builtin_convertvector(x, vfloat); }

// How far the scores of the queries in one register may lie from what the products with the keys of a tile say.
static inline vfloat slack(const Screen& s, int64_t query, const KeyTile& tile) {
  return load(s.slope + query) * splat(tile.norm) + load(s.reach + query) * splat(tile.residual);
}

// What those products have to exceed.
static inline vfloat limits(const Screen& s, int64_t query, const KeyTile& tile) {
  return (load(s.threshold + query) - slack(s, query, tile)) * splat(tile.inverse_scale);
}

static inline void store_lows(const Screen& s, vfloat largest, int64_t query, int64_t tile) {
  store(s.lows + tile * s.query_tiles * query_tile + query,
        largest * splat(s.tiles[tile].scale) - slack(s, query, s.tiles[tile]));
}

// Which of the products [keys][queries] of one query exceed its limit.
template <int keys, int queries>
static inline uint64_t column_above(const float* products, float limit) {
  uint64_t mask = 0;
#pragma GCC unroll 14
  for (int i = 0; i < keys; ++i) mask |= static_cast<uint64_t>(products[i * queries] > limit) << i;
  return mask;
}

#if defined(__AVX512F__)
template <int keys, int queries>
static inline uint64_t column_above(const int32_t* products, int32_t limit) {
  const __m512i bound = _mm512_set1_epi32(limit),
                row = _mm512_mullo_epi32(_mm512_set1_epi32(queries),
                                         _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
  uint64_t mask = 0;
  for (int i = 0; i < keys; i += 16) {
    const __mmask16 inside = keys - i < 16 ? (1 << (keys - i)) - 1 : 0xffff;
    const __m512i column = _mm512_mask_i32gather_epi32(bound, inside, row, products + i * queries, 4);
    mask |= static_cast<uint64_t>(_mm512_cmpgt_epi32_mask(column, bound)) << i;
  }
  return mask;
}
#endif

// Reports the products [keys][queries] of a tile that exceed the limits of their queries. Those of `some` queries do.
template <int keys, int queries, class Product>
static inline void report(const Screen& s, const Product* products, const Product* limit, uint64_t some, int64_t query,
                          int64_t key) {
  for (; some; some &= some - 1) {
    const int lane = __builtin_ctzll(some);
    s.hit(s.context, query + lane, key, column_above<keys, queries>(products + lane, limit[lane]));
  }
}

// The same for products in registers.
template <int keys, int vectors, class Vector, class Product>
static inline void gate(const Screen& s, const Vector (&products)[keys][vectors], const Vector (&limit)[vectors],
                        int64_t query, int64_t tile) {
  uint64_t some = 0;
#pragma GCC unroll 4
  for (int j = 0; j < vectors; ++j) {
    Vector largest = products[0][j];
#pragma GCC unroll 14
    for (int i = 1; i < keys; ++i) largest = larger(largest, products[i][j]);
    some |= above(largest, limit[j]) << (j * lanes);
    if (s.lows) store_lows(s, to_float(largest), query + j * lanes, tile);
  }
  if (__builtin_expect(some == 0, 1) || s.lows) return;
  Product stored[keys * vectors * lanes], bound[vectors * lanes];
  std::memcpy(stored, products, sizeof stored);
  std::memcpy(bound, limit, sizeof bound);
  report<keys, vectors * lanes>(s, stored, bound, some, query, tile * keys);
}

}  // namespace OFA_ISA
}  // namespace ofa
