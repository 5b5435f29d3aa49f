// Products of float32 matrices on AMX, for *_simd.cpp. AMX multiplies bfloat16 and sums in float32: a float is split
// into three bfloat16 parts, x = x0 + x1 + x2 exactly, and a product into the six partial products above float32's last
// place. With fewer parts of an operand fewer partial products are left.
#pragma once

#include <immintrin.h>

#include "gemm.h"
#include "simd.h"

namespace ofa {
namespace OFA_ISA {

constexpr int most_parts = 3;
constexpr int64_t unit = 256;  // words of one AMX tile: 16 rows of 64 bytes

// One operand of a product: blocks of 16 rows (of the left one) or columns (of the right one) by steps of 32 depths.
// Each is an AMX tile for every part; a word of it holds depths d and d + 16 of its step.
struct Operand {
  uint32_t* data;
  int64_t steps;
  int parts;

  uint32_t* at(int64_t block, int64_t step) const { return data + (block * steps + step) * parts * unit; }
};

static inline int64_t operand_words(int64_t width, int64_t depth) {
  return ceil_div(width, 16) * ceil_div(depth, 32) * most_parts * unit;
}

// Static, because the compiler believes that only its first 8 bytes are read.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_of_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static const TileConfig tile_config;

static inline void start_products() { _tile_loadconfig(&tile_config); }
static inline void finish_products() { _tile_release(); }

// c[16 m, 16 n] = the product of m blocks of a and n blocks of b. Eight tiles: four sums and two of each operand, which
// stay for as many partial products as need them, as loads from the second-level cache take longer than products.
template <int m, int n, int a_parts, int b_parts>
static inline void multiply_block(const uint32_t* a, int64_t a_next, const uint32_t* b, int64_t b_next, int64_t steps,
                                  float* c, int64_t c_stride) {
  constexpr int top = (a_parts > b_parts ? a_parts : b_parts) - 1;
  _tile_zero(0);
  if (n > 1) _tile_zero(1);
  if (m > 1) _tile_zero(2);
  if (m > 1 && n > 1) _tile_zero(3);
  auto load_left = [&](const uint32_t* from) {
    _tile_loadd(4, from, 64);
    if (m > 1) _tile_loadd(5, from + a_next, 64);
  };
  auto load_right = [&](const uint32_t* from) {
    _tile_loadd(6, from, 64);
    if (n > 1) _tile_loadd(7, from + b_next, 64);
  };
  auto add = [] {
    _tile_dpbf16ps(0, 4, 6);
    if (n > 1) _tile_dpbf16ps(1, 4, 7);
    if (m > 1) _tile_dpbf16ps(2, 5, 6);
    if (m > 1 && n > 1) _tile_dpbf16ps(3, 5, 7);
  };
  // What is small is summed first, over the whole depth, where its rounding is small, too.
  if (top > 0)
    for (int64_t s = 0; s < steps; ++s) {
      const uint32_t *left = a + s * a_parts * unit, *right = b + s * b_parts * unit;
      int loaded = -1;
#pragma GCC unroll 3
      for (int i = 0; i < a_parts; ++i) {
        load_left(left + i * unit);
#pragma GCC unroll 3
        for (int j = b_parts - 1; j >= 0; --j) {
          if (i + j > top || i + j == 0) continue;
          if (j != loaded) load_right(right + j * unit);
          loaded = j;
          add();
        }
      }
    }
  for (int64_t s = 0; s < steps; ++s) {
    load_left(a + s * a_parts * unit);
    load_right(b + s * b_parts * unit);
    add();
  }
  const int64_t bytes = c_stride * 4;
  _tile_stored(0, c, bytes);
  if (n > 1) _tile_stored(1, c + 16, bytes);
  if (m > 1) _tile_stored(2, c + 16 * c_stride, bytes);
  if (m > 1 && n > 1) _tile_stored(3, c + 16 * c_stride + 16, bytes);
}

// c = up to two blocks of a from `row` on times up to two blocks of b from `column` on; of these numbers of blocks.
template <int a_parts, int b_parts>
static inline void multiply(const Operand& a, int64_t row, int64_t rows, const Operand& b, int64_t column,
                            int64_t columns, float* c, int64_t c_stride) {
  auto* kernel =
      rows - row > 1
          ? (columns - column > 1 ? multiply_block<2, 2, a_parts, b_parts> : multiply_block<2, 1, a_parts, b_parts>)
          : (columns - column > 1 ? multiply_block<1, 2, a_parts, b_parts> : multiply_block<1, 1, a_parts, b_parts>);
  kernel(a.at(row, 0), a.steps * a_parts * unit, b.at(column, 0), b.steps * b_parts * unit, a.steps, c, c_stride);
}

// Elements [at, at + 16) as floats, zero from at + count on.
template <Dtype dtype>
static inline vfloat load_some(const void* data, int64_t at, int64_t count) {
  const unsigned mask = count >= 16 ? 0xffff : count <= 0 ? 0 : (1u << count) - 1;
  if (dtype == Dtype::f32)
    return reinterpret_cast<vfloat>(_mm512_maskz_loadu_ps(mask, static_cast<const float*>(data) + at));
  const __m256i half = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(data) + at);
  if (dtype == Dtype::f16) return reinterpret_cast<vfloat>(_mm512_cvtph_ps(half));
  return reinterpret_cast<vfloat>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

struct Split {
  vint part[most_parts];  // a bfloat16 in the upper half of each word
};

// The first part is cut off, as rounding could overflow; the second is rounded, so that what is left out has either
// sign; the last is what is left, which has eight digits. A single part is for what has no more than those.
template <int parts>
static inline Split split(vfloat x) {
  Split result;
#pragma GCC unroll 3
  for (int i = 0; i < parts; ++i) {
    const vint bits = reinterpret_cast<vint>(x);
    result.part[i] = i == 2 || parts == 1 ? bits : (bits + (i ? 0x8000 : 0)) & ~0xffff;
    if (i + 1 < parts) x -= reinterpret_cast<vfloat>(result.part[i]);
  }
  return result;
}

// Part i of a row of a tile: depths d from `a` and d + 16 from `b`.
static inline __m512i words(const Split& a, const Split& b, int i) {
  const __m512i lower = _mm512_srli_epi32(reinterpret_cast<__m512i>(a.part[i]), 16);
  const __m512i upper = reinterpret_cast<__m512i>(b.part[i]), mask = _mm512_set1_epi32(~0xffff);
  return _mm512_ternarylogic_epi32(lower, upper, mask, 0xf8);  // lower | upper & mask
}

template <int parts>
static inline void store_row(uint32_t* out, int64_t row, const Split& a, const Split& b) {
#pragma GCC unroll 3
  for (int i = 0; i < parts; ++i) _mm512_store_si512(out + i * unit + row * 16, words(a, b, i));
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

// out[j] = column j of 16 rows of 16 floats
static inline void load_transposed(const float* in, int64_t stride, vfloat* out) {
#pragma GCC unroll 4
  for (int j = 0; j < 16; j += 4) {
    __m512 row[4];  // rows i, i + 4, i + 8 and i + 12 of four columns
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const float* at = in + i * stride + j;
      row[i] = _mm512_castps128_ps512(_mm_loadu_ps(at));
      row[i] = _mm512_insertf32x4(row[i], _mm_loadu_ps(at + 4 * stride), 1);
      row[i] = _mm512_insertf32x4(row[i], _mm_loadu_ps(at + 8 * stride), 2);
      row[i] = _mm512_insertf32x4(row[i], _mm_loadu_ps(at + 12 * stride), 3);
    }
    const __m512 a = _mm512_unpacklo_ps(row[0], row[1]), b = _mm512_unpackhi_ps(row[0], row[1]);
    const __m512 c = _mm512_unpacklo_ps(row[2], row[3]), d = _mm512_unpackhi_ps(row[2], row[3]);
    out[j] = reinterpret_cast<vfloat>(_mm512_shuffle_ps(a, c, 0x44));
    out[j + 1] = reinterpret_cast<vfloat>(_mm512_shuffle_ps(a, c, 0xee));
    out[j + 2] = reinterpret_cast<vfloat>(_mm512_shuffle_ps(b, d, 0x44));
    out[j + 3] = reinterpret_cast<vfloat>(_mm512_shuffle_ps(b, d, 0xee));
  }
}

}  // namespace OFA_ISA
}  // namespace ofa
