// The screen in int8, for *_simd.cpp. VNNI multiplies unsigned by signed bytes: keys are shifted by 128, which is taken
// back in what a query's sums begin with.
#pragma once

#include "topk_similarity/screen.h"

namespace ofa {
namespace OFA_ISA {

using Code = int8_t;
constexpr bool exact_products = true;
#if defined(__AMX_INT8__)
constexpr int step = 64, query_tile = 32, key_tile = 32;
constexpr uint32_t key_shift = 0;
#else
constexpr int step = 4, query_tile = 6, key_tile = 64;
constexpr uint32_t key_shift = 0x80808080;
#endif

// code[d] = round(row[d] / (norm * scale)). Returns the norm of what rounding leaves of row / norm.
static inline double round_to_bytes(const float* row, int64_t depth, double norm, float scale, int8_t* code) {
  const __m512d unit = _mm512_set1_pd(1.0 / norm), ratio = _mm512_set1_pd(1.0 / (norm * scale)),
                factor = _mm512_set1_pd(scale);
  __m512d squares = _mm512_setzero_pd();
  for (int64_t d = 0; d < depth; d += 8) {
    const __mmask8 inside = depth - d < 8 ? (1 << (depth - d)) - 1 : 0xff;
    const __m512d x = _mm512_cvtps_pd(_mm256_maskz_loadu_ps(inside, row + d));
    const __m256i rounded = _mm512_cvtpd_epi32(_mm512_mul_pd(x, ratio));
    const __m512d rest = _mm512_sub_pd(_mm512_mul_pd(x, unit), _mm512_mul_pd(_mm512_cvtepi32_pd(rounded), factor));
    squares = _mm512_fmadd_pd(rest, rest, squares);
    _mm256_mask_cvtepi32_storeu_epi8(code + d, inside, rounded);
  }
  return __builtin_sqrt(_mm512_reduce_add_pd(squares));
}

static inline float largest_magnitude(const float* row, int64_t depth) {
  __m512 largest = _mm512_setzero_ps();
  for (int64_t d = 0; d < depth; d += 16) {
    const __mmask16 inside = depth - d < 16 ? (1 << (depth - d)) - 1 : 0xffff;
    largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_maskz_loadu_ps(inside, row + d)));
  }
  return _mm512_reduce_max_ps(largest);
}

// Where word i (four codes) of row r lies in a tile. AMX wants the left operand's rows of 64 bytes whole.
static inline int64_t place(int64_t i, int r, int tile, bool query) {
#if defined(__AMX_INT8__)
  if (query) return (i / 16 * tile + r) * 64 + i % 16 * 4;
#endif
  (void)query;
  return (i * tile + r) * 4;
}

static void encode(const void* rows, Dtype dtype, int64_t count, int64_t depth, const double* norms, int tile,
                   const Encoded& out, float* scratch) {
  const bool query = out.offset;
  const int64_t words = (depth + step - 1) / step * (step / 4);
  int8_t* code = reinterpret_cast<int8_t*>(scratch + scratch_size(depth) / 2);
  char* codes = static_cast<char*>(out.codes);
  std::memset(code, 0, words * 4);
  for (int r = 0; r < tile; ++r) {
    const bool zero = r >= count || norms[r] == 0;
    out.scale[r] = out.residual[r] = 0.0f;
    if (zero) {
      std::memset(code, 0, depth);
    } else {
      const float* row = as_floats(rows, dtype, r, depth, scratch);
      const float scale = static_cast<float>(largest_magnitude(row, depth) / norms[r] / 127 * (1 + 0x1p-22));
      out.scale[r] = scale;
      out.residual[r] = static_cast<float>(round_to_bytes(row, depth, norms[r], scale, code) * (1 + 0x1p-20));
    }
    for (int64_t i = 0; i < words; ++i) {
      uint32_t word;
      std::memcpy(&word, code + 4 * i, 4);
      if (!query) word ^= key_shift;
      std::memcpy(codes + place(i, r, tile, query), &word, 4);
    }
    if (!query) continue;
    out.offset[r] = 0;
    if (key_shift)
      for (int64_t d = 0; d < depth; ++d) out.offset[r] -= 128 * code[d];
  }
}

#if defined(__AMX_INT8__)

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_of_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static const TileConfig tile_config;

// The products of 32 queries and 32 keys.
static inline void multiply_tile(const int8_t* queries, const int8_t* keys, int64_t steps, int32_t* products) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t t = 0; t < steps; ++t, queries += query_tile * step, keys += key_tile * step) {
    _tile_loadd(4, queries, 64);
    _tile_loadd(6, keys, 4 * key_tile);
    _tile_loadd(7, keys + 64, 4 * key_tile);
    _tile_loadd(5, queries + 16 * step, 64);
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_stored(0, products, 4 * key_tile);
  _tile_stored(1, products + 16, 4 * key_tile);
  _tile_stored(2, products + 16 * key_tile, 4 * key_tile);
  _tile_stored(3, products + 16 * key_tile + 16, 4 * key_tile);
}

// All comparisons before the first branch: what passes is rare, and a mispredicted branch would stop the
// multiplication.
static inline void gate_tile(const Screen& s, const int32_t* products, int64_t query, int64_t tile) {
  float limit[query_tile];
  limits<query_tile>(s, query, tile, limit);
  const float* scales = s.key_scale + tile * key_tile;
  const vfloat scale[2] = {load(scales), load(scales + 16)};
  const vint* rows = reinterpret_cast<const vint*>(products);
  alignas(64) uint32_t masks[query_tile];
#  pragma GCC unroll 8
  for (int i = 0; i < query_tile; ++i) {
    const vfloat bound = splat(limit[i]);
    masks[i] = static_cast<uint32_t>(above(to_float(rows[2 * i]) * scale[0], bound) |
                                     above(to_float(rows[2 * i + 1]) * scale[1], bound) << 16);
  }
  const __m512i low = _mm512_load_si512(masks), high = _mm512_load_si512(masks + 16);
  uint32_t hits = _mm512_test_epi32_mask(low, low) | _mm512_test_epi32_mask(high, high) << 16;
  for (; hits; hits &= hits - 1) {
    const int i = __builtin_ctz(hits);
    float values[key_tile];
    store(values, to_float(rows[2 * i]));
    store(values + 16, to_float(rows[2 * i + 1]));
    s.hit(s.context, query + i, tile * key_tile, masks[i], values);
  }
}

// The multiplication of a tile is under way while the products of the one before are compared.
static void screen(const Screen& s) {
  const int64_t steps = (s.depth + step - 1) / step;
  const int8_t *queries = static_cast<const int8_t*>(s.queries), *keys = static_cast<const int8_t*>(s.keys);
  alignas(64) int32_t products[2][query_tile * key_tile];
  _tile_loadconfig(&tile_config);
  int64_t last_query = 0, last_tile = -1;
  int parity = 0;
  for (int64_t tile = 0; tile < s.key_tiles; ++tile)
    for (int64_t query = 0; query < s.query_tiles * query_tile; query += query_tile) {
      multiply_tile(queries + query * steps * step, keys + tile * key_tile * steps * step, steps, products[parity]);
      parity = 1 - parity;
      if (last_tile >= 0) gate_tile(s, products[parity], last_query, last_tile);
      last_query = query;
      last_tile = tile;
    }
  if (last_tile >= 0) gate_tile(s, products[1 - parity], last_query, last_tile);
  _tile_release();
}

#else

static inline void screen_tile(const Screen& s, const int8_t* queries, const int8_t* keys, int64_t steps, int64_t query,
                               int64_t tile) {
  vint sum[query_tile][4];
#  pragma GCC unroll 6
  for (int i = 0; i < query_tile; ++i)
#  pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sum[i][j] = s.offset[query + i] - vint{};
  for (int64_t t = 0; t < steps; ++t) {
    __m512i key[4];
#  pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) key[j] = _mm512_loadu_si512(keys + (t * 4 + j) * 64);
#  pragma GCC unroll 6
    for (int i = 0; i < query_tile; ++i) {
      int32_t word;
      std::memcpy(&word, queries + (t * query_tile + i) * 4, 4);
      const __m512i value = _mm512_set1_epi32(word);
#  pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        sum[i][j] = reinterpret_cast<vint>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum[i][j]), key[j], value));
    }
  }
  float limit[query_tile];
  limits<query_tile>(s, query, tile, limit);
  const float* scales = s.key_scale + tile * key_tile;
  const vfloat scale[4] = {load(scales), load(scales + 16), load(scales + 32), load(scales + 48)};
#  pragma GCC unroll 6
  for (int i = 0; i < query_tile; ++i) gate<4>(s, query + i, tile * key_tile, sum[i], scale, limit[i]);
}

static void screen(const Screen& s) {
  const int64_t steps = (s.depth + step - 1) / step;
  const int8_t *queries = static_cast<const int8_t*>(s.queries), *keys = static_cast<const int8_t*>(s.keys);
  for (int64_t tile = 0; tile < s.key_tiles; ++tile)
    for (int64_t block = 0; block < s.query_tiles; ++block)
      screen_tile(s, queries + block * query_tile * steps * step, keys + tile * key_tile * steps * step, steps,
                  block * query_tile, tile);
}

#endif

}  // namespace OFA_ISA
}  // namespace ofa
