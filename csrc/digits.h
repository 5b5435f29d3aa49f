// Products of float32 matrices by int8 digits on AMX, for *_simd.cpp. A vector (along the depth of a product) becomes
// fixed-point numbers t = round(x 2^k), the largest of 23 bits, and t three signed bytes: d0 2^16 + d1 2^8 + d2. Of the
// nine products of digits the six of orders i + j <= 2 are taken; AMX sums them exactly. So the error is that of
// the rounding to t, at most 2^-23 of the largest element of the vector each, and what order 3 would add: random, about
// 2^-24 of the product of the vectors' norms or less, but not of each single product as in float32 arithmetic.
#pragma once

#include "amx.h"

namespace ofa {
namespace OFA_ISA {

constexpr int digit_count = 3;
constexpr int64_t tile_depth = 64;   // depths of one tile: a word holds depths i, i + 16, i + 32 and i + 48
constexpr int orders = 4;            // of products that are taken: d2 d2 is left out
constexpr int64_t most_steps = 682;  // tiles to sum before 3 x 128 x 128 x 64 of each could exceed 2^31

static inline vint magnitude(vfloat x) { return reinterpret_cast<vint>(x) & 0x7fffffff; }
static inline vint larger_of(vint a, vint b) {
  return reinterpret_cast<vint>(_mm512_max_epi32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}

// k for vectors of which `largest` is the largest magnitude, as a float; NaN, which makes every product NaN, where that
// is not finite. t ends at 0x7f7f7f, so that d0 does not exceed 127.
static inline vfloat exponents(vint largest) {
  constexpr int32_t above = 0x10101, infinity = 0x7f800000, exponent_of_ulp = 149;
  const vint biased = (largest + above) >> 23;
  const __m512 k = _mm512_cvtepi32_ps(reinterpret_cast<__m512i>(exponent_of_ulp - biased));
  const __mmask16 finite = _mm512_cmplt_epi32_mask(reinterpret_cast<__m512i>(largest), _mm512_set1_epi32(infinity));
  return reinterpret_cast<vfloat>(_mm512_mask_mov_ps(_mm512_set1_ps(__builtin_nanf("")), finite, k));
}

struct Digits {
  __m512i digit[digit_count];  // the largest first; byte j of word i is that of element i of the j-th vector
};

static inline Digits digits_of(vfloat a, vfloat b, vfloat c, vfloat d, vfloat k) {
  auto fixed = [&](vfloat x) {  // the bytes are the digits + 128
    const __m512 scaled = _mm512_scalef_ps(reinterpret_cast<__m512>(x), reinterpret_cast<__m512>(k));
    return _mm512_add_epi32(_mm512_cvtps_epi32(scaled), _mm512_set1_epi32(0x808080));
  };
  auto merge = [](__m512i x, __m512i y, int32_t from_y) {
    return _mm512_ternarylogic_epi32(x, y, _mm512_set1_epi32(from_y), 0xd8);
  };
  const __m512i w = fixed(a), x = fixed(b), y = fixed(c), z = fixed(d);
  const int32_t odd = 0xff00ff00, upper = 0xffff0000;
  const __m512i even_wx = merge(w, _mm512_slli_epi32(x, 8), odd), even_yz = merge(y, _mm512_slli_epi32(z, 8), odd);
  const __m512i odd_wx = merge(_mm512_srli_epi32(w, 8), x, odd), odd_yz = merge(_mm512_srli_epi32(y, 8), z, odd);
  const __m512i bias = _mm512_set1_epi8(-128);
  return {{_mm512_xor_si512(merge(_mm512_srli_epi32(even_wx, 16), even_yz, upper), bias),
           _mm512_xor_si512(merge(odd_wx, _mm512_slli_epi32(odd_yz, 16), upper), bias),
           _mm512_xor_si512(merge(even_wx, _mm512_slli_epi32(even_yz, 16), upper), bias)}};
}

constexpr int64_t sums_of_order = 4 * unit;  // 2 x 2 tiles

// sums[order][block of a][block of b] = the products of m blocks of a and n blocks of b, up to most_steps deep. An
// operand is blocks of 16 rows (of the left one) or columns (of the right one), for each its steps, for each a tile for
// every digit.
template <int m, int n>
static inline void multiply_digits(const uint32_t* a, int64_t a_next, const uint32_t* b, int64_t b_next, int64_t steps,
                                   int32_t* sums) {
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) {
      const uint32_t *left = a + i * a_next, *right = b + j * b_next;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t s = 0; s < steps; ++s, left += digit_count * unit, right += digit_count * unit) {
        _tile_loadd(4, left, 64);
        _tile_loadd(7, right + 2 * unit, 64);
        _tile_dpbssd(2, 4, 7);
        _tile_loadd(6, right + unit, 64);
        _tile_dpbssd(1, 4, 6);
        _tile_loadd(5, right, 64);
        _tile_dpbssd(0, 4, 5);
        _tile_loadd(4, left + unit, 64);
        _tile_dpbssd(2, 4, 6);
        _tile_dpbssd(3, 4, 7);
        _tile_dpbssd(1, 4, 5);
        _tile_loadd(4, left + 2 * unit, 64);
        _tile_dpbssd(2, 4, 5);
        _tile_dpbssd(3, 4, 6);
      }
      int32_t* out = sums + (i * 2 + j) * unit;
      _tile_stored(0, out, 64);
      _tile_stored(1, out + sums_of_order, 64);
      _tile_stored(2, out + 2 * sums_of_order, 64);
      _tile_stored(3, out + 3 * sums_of_order, 64);
    }
}

// Sixteen products, columns `column`.. of a row of 2 x 2 tiles of sums, times 2^k for k the sum of both exponents.
static inline __m512 product_of(const int32_t* sums, int64_t row, int64_t column, __m512 k) {
  const int32_t* at = sums + (row / 16 * 2 + column / 16) * unit + row % 16 * 16;
  auto sum = [&](int order) { return _mm512_cvtepi32_ps(_mm512_load_si512(at + order * sums_of_order)); };
  const __m512 base = _mm512_set1_ps(0x1p8f);
  const __m512 low = _mm512_fmadd_ps(sum(2), base, sum(3));
  const __m512 value = _mm512_fmadd_ps(_mm512_fmadd_ps(sum(0), base, sum(1)), _mm512_set1_ps(0x1p16f), low);
  return _mm512_scalef_ps(value, _mm512_sub_ps(_mm512_set1_ps(8), k));
}

}  // namespace OFA_ISA
}  // namespace ofa
