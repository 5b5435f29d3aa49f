// AMX for *_simd.cpp: float32 products out of bfloat16 tiles. A float is cut into three bfloat16 parts, exactly:
// x = x0 + x1 + x2. Of the nine partial products of two floats the six largest are summed; what is left out is below
// 2^-23 of the product and has either sign. A tile product sums 32 depths in float32 before they meet the accumulator,
// so there are six roundings per 32 depths, not 32.
#pragma once

#include <immintrin.h>

#include "simd.h"

namespace ofa {
namespace OFA_ISA {

constexpr int parts = 3;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_of_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
// Static, because the compiler believes that only its first 8 bytes are read.
static const TileConfig tile_config;

// words[p] = part p of the floats a in the lower and of b in the upper halves, for the first `count` parts.
template <int count>
static inline void split(vfloat a, vfloat b, __m512i* words) {
  const __m512i upper = _mm512_set1_epi32(0xffff0000), half = _mm512_set1_epi32(0x8000);
#pragma GCC unroll 3
  for (int p = 0; p < count; ++p) {
    const __m512i x = _mm512_add_epi32(reinterpret_cast<__m512i>(a), half),  // rounds to the nearest
        y = _mm512_add_epi32(reinterpret_cast<__m512i>(b), half);
    words[p] = _mm512_ternarylogic_epi32(upper, y, _mm512_srli_epi32(x, 16), 0xca);  // upper ? y : x >> 16
    if (p + 1 == count) break;
    a -= reinterpret_cast<vfloat>(_mm512_and_si512(x, upper));
    b -= reinterpret_cast<vfloat>(_mm512_and_si512(y, upper));
  }
}

struct Permutations {
  alignas(64) int32_t lower[4][16] = {}, upper[4][16] = {};
  constexpr Permutations() {
    for (int stage = 0; stage < 4; ++stage)
      for (int lane = 0; lane < 16; ++lane) {
        const int step = 1 << stage;
        lower[stage][lane] = lane & step ? 16 + lane - step : lane;
        upper[stage][lane] = lane & step ? 16 + lane : lane + step;
      }
  }
};
static constexpr Permutations permutations;

// 16 x 16 words: blocks off the diagonal change places, of 1, 2, 4 and 8 words.
static inline void transpose(__m512i* row) {
#pragma GCC unroll 4
  for (int stage = 0; stage < 4; ++stage) {
    const __m512i lower = _mm512_load_si512(permutations.lower[stage]),
                  upper = _mm512_load_si512(permutations.upper[stage]);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      const int step = 1 << stage;
      if (i & step) continue;
      const __m512i a = row[i], b = row[i + step];
      row[i] = _mm512_permutex2var_epi32(a, lower, b);
      row[i + step] = _mm512_permutex2var_epi32(a, upper, b);
    }
  }
}

}  // namespace OFA_ISA
}  // namespace ofa
