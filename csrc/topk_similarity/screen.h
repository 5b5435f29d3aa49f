// What the screens have in common: what becomes of their products. For *_simd.cpp.
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

// What the products have to exceed.
static inline void find_limits(const Screen& s, int64_t query, const KeyTile& tile, vfloat& limit) {
  limit = (load(s.threshold + query) - slack(s, query, tile)) * splat(tile.inverse_scale);
}

#if defined(__AVX512F__)
// A product exceeds a number where it exceeds the whole number below. No product lies outside the range of int32.
static inline void find_limits(const Screen& s, int64_t query, const KeyTile& tile, vint& whole) {
  vfloat limit;
  find_limits(s, query, tile, limit);
  const __m512 inside = _mm512_max_ps(_mm512_min_ps(reinterpret_cast<__m512>(limit), _mm512_set1_ps(0x1.fffffep30f)),
                                      _mm512_set1_ps(-0x1p31f));
  whole = reinterpret_cast<vint>(_mm512_cvt_roundps_epi32(inside, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
}
#endif

static inline void raise_lows(const Screen& s, vfloat largest, int64_t query, int64_t tile) {
  const int group = static_cast<int>(tile) / s.group;
  float* at = s.lows + query / query_tile * s.lows_stride + group * query_tile + query % query_tile;
  const vfloat low = largest * splat(s.tiles[tile].scale) - slack(s, query, s.tiles[tile]);
  store(at, tile == group * s.group ? low : larger(low, load(at)));
}

// Reports the products that exceed their limits. limit_of(v) is that of register v of the products, and pair_of(i) the
// pair of product i. Masks come first, as about every second register holds one that exceeds: branches would be
// mispredicted.
template <int vectors, class Product, class Limit, class Pair>
static inline void report(const Screen& s, const Product* products, int64_t query, int64_t tile, Limit&& limit_of,
                          Pair&& pair_of) {
  uint64_t masks[(vectors * lanes + 63) / 64] = {};
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    const auto limit = limit_of(v);
    masks[v * lanes / 64] |= above(reinterpret_cast<const decltype(limit)*>(products)[v], limit) << v * lanes % 64;
  }
  float error[query_tile];
  for (int j = 0; j < query_tile; j += lanes) store(error + j, slack(s, query + j, s.tiles[tile]));
  Hits hits;
  int64_t count = 0;
  for (int word = 0; word < (vectors * lanes + 63) / 64; ++word)
    for (uint64_t some = masks[word]; some; some &= some - 1) {
      const int i = word * 64 + __builtin_ctzll(some), pair = pair_of(i);
      hits.pair[count] = pair;
      hits.upper[count++] = static_cast<float>(products[i]) * s.tiles[tile].scale + error[pair & 255];
    }
  if (count) s.take(s.context, hits, count, query, tile * key_tile);
}

// What becomes of the products of a tile of keys with some registers of queries.
template <int keys, int vectors, class Vector, class Product>
static inline void gate(const Screen& s, const Vector (&products)[keys][vectors], int64_t query, int64_t tile) {
  Vector limit[vectors];
  uint64_t some = 0;
#pragma GCC unroll 4
  for (int j = 0; j < vectors; ++j) {
    Vector largest = products[0][j];
#pragma GCC unroll 14
    for (int i = 1; i < keys; ++i) largest = larger(largest, products[i][j]);
    if (s.lows) {
      raise_lows(s, to_float(largest), query + j * lanes, tile);
    } else {
      find_limits(s, query + j * lanes, s.tiles[tile], limit[j]);
      some |= above(largest, limit[j]);
    }
  }
  if (!some) return;
  Product stored[keys * vectors * lanes];
  std::memcpy(stored, products, sizeof stored);
  report<keys * vectors>(
      s, stored, query, tile, [&](int v) { return limit[v % vectors]; },
      [](int i) { return i / (vectors * lanes) << 8 | i % (vectors * lanes); });
}

// Floats as integers of the same order, and back.
static inline vint in_order(vint bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

// By bisection, all queries at once. As many groups as k reach the least of the maxima of k parts.
static void kth_largest(const float* lows, int64_t count, int64_t k, float* result) {
  for (int at = 0; at < query_tile; at += lanes) {
    vfloat least = splat(__builtin_inff()), most = splat(-__builtin_inff());
    for (int64_t part = 0; part < k; ++part) {
      vfloat largest = splat(-__builtin_inff());
      for (int64_t i = count * part / k; i < count * (part + 1) / k; ++i)
        largest = larger(largest, load(lows + i * query_tile + at));
      least = largest < least ? largest : least;
      most = larger(most, largest);
    }
    vint low = in_order(reinterpret_cast<vint&>(least)), high = in_order(reinterpret_cast<vint&>(most));
    // A thousandth is fine enough: bounds are coarser.
    for (int step = 0; step < 32 && above(to_float(high - low), splat(0x1p13f)); ++step) {
      const vint middle = (low & high) + ((low ^ high) >> 1), order = in_order(middle);
      const vfloat bound = reinterpret_cast<const vfloat&>(order);
      vint reached{};
      for (int64_t i = 0; i < count; ++i) reached -= load(lows + i * query_tile + at) >= bound;
      const vint enough = reached >= static_cast<int>(k);
      low = enough ? middle : low;
      high = enough ? high : middle;
    }
    const vint bits = in_order(low);
    store(result + at, reinterpret_cast<const vfloat&>(bits));
  }
}

// No upper bound of a group exceeds its largest lower bound by more than twice its slack.
static int64_t visitors(const Screen& s, int32_t* list) {
  KeyTile group = s.tiles[0];
  for (int64_t tile = 1; tile < s.key_tiles; ++tile) {
    if (s.tiles[tile].norm > group.norm) group.norm = s.tiles[tile].norm;
    if (s.tiles[tile].residual > group.residual) group.residual = s.tiles[tile].residual;
  }
  int64_t count = 0;
  for (int64_t query = 0; query < s.query_tiles * query_tile; query += lanes) {
    const float* low = s.lows + query / query_tile * s.lows_stride + query % query_tile;
    const vfloat upper = load(low) + splat(2) * slack(s, query, group);
    uint64_t some = above(upper, load(s.threshold + query));
#if defined(__AVX512F__)
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    _mm512_storeu_si512(list + count,
                        _mm512_maskz_compress_epi32(some, _mm512_add_epi32(lane, _mm512_set1_epi32(query))));
    count += __builtin_popcountll(some);
#else
    for (; some; some &= some - 1) list[count++] = static_cast<int32_t>(query + __builtin_ctzll(some));
#endif
  }
  return count;
}

}  // namespace OFA_ISA
}  // namespace ofa
