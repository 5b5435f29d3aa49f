// The products of a tile on AMX, for *_simd.cpp. AMX multiplies bfloat16 and sums in float32: a float is split into
// three bfloat16 parts, x = x0 + x1 + x2 exactly, and a product into the six partial products above float32's last
// place, smallest first. Coordinates that are bfloat16 are one part; where everything is, two parts of what meets them
// do.
#pragma once

#include <immintrin.h>

#include "factorized_cross_entropy/kernels.h"
#include "simd.h"

namespace ofa {
namespace OFA_ISA {

using namespace factorized_cross_entropy;

constexpr int64_t tile = 128;  // vocabulary rows
constexpr int parts = 3;

// The left operand of a product: parts of rows of bfloat16. The right operand: parts of rows of pairs, two bfloat16 of
// consecutive depths in one word.
struct Left {
  const uint16_t* data;
  int64_t stride, part;
  int parts;
};
struct Right {
  const uint32_t* data;
  int64_t stride, part;
  int parts;
};

// Words from one part to the next: a third of 4 KiB off a multiple of it, or loads would wait for stores to other
// parts.
static inline int64_t part_words(int64_t words) { return round_up(words, 1024) + 352; }
static inline int64_t left_stride(int64_t depth) { return (round_up(depth, 32) / 32 | 1) * 32; }
static inline int64_t left_part(int64_t rows, int64_t depth) { return part_words(rows * left_stride(depth) / 2) * 2; }
static inline int64_t right_part(int64_t depth, int64_t stride) { return part_words(round_up(depth, 32) / 2 * stride); }
static inline int64_t left_words(int64_t rows, int64_t depth) { return parts * left_part(rows, depth) / 2; }
static inline int64_t right_words(int64_t depth, int64_t stride) { return parts * right_part(depth, stride); }

static inline int64_t score_operand_size(int64_t rank) { return right_words(rank, block_stride); }
static inline int64_t gradient_operand_size(int64_t rank) { return right_words(block, padded(rank)); }
// The coordinates as left and as right operand, and the scores as left operand in either orientation.
static inline int64_t panel_size(int64_t rank) {
  return left_words(tile, rank) + right_words(tile, padded(rank)) + left_words(block, tile) + left_words(tile, block);
}

struct Panel {
  uint16_t* coordinates;
  uint32_t* coordinate_pairs;
  uint16_t* scores;

  Panel(const Scratch& scratch, int64_t rank)
      : coordinates(reinterpret_cast<uint16_t*>(scratch.panel)),
        coordinate_pairs(reinterpret_cast<uint32_t*>(scratch.panel + left_words(tile, rank))),
        scores(reinterpret_cast<uint16_t*>(coordinate_pairs + right_words(tile, padded(rank)))) {}
};

static inline int parts_of_coordinates(const Table& table) { return table.dtype == Dtype::bf16 ? 1 : 3; }
static inline int parts_of_others(const Table& table) { return table.coarse ? 2 : 3; }

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_of_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static const TileConfig tile_config;

static inline void start_products() { _tile_loadconfig(&tile_config); }
static inline void finish_products() { _tile_release(); }

// c[16 m, 16 n] of a product
template <int m, int n>
static inline void multiply_block(const Left& a, const Right& b, int64_t depth, float* c, int64_t c_stride,
                                  bool accumulate) {
  const int64_t c_bytes = c_stride * 4, a_bytes = a.stride * 2, b_bytes = b.stride * 4;
  if (accumulate) {
    _tile_loadd(0, c, c_bytes);
    if (n > 1) _tile_loadd(1, c + 16, c_bytes);
    if (m > 1) _tile_loadd(2, c + 16 * c_stride, c_bytes);
    if (m > 1 && n > 1) _tile_loadd(3, c + 16 * c_stride + 16, c_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  auto add = [&](int i, int j, int64_t d) {
    const uint16_t* left = a.data + i * a.part + d;
    const uint32_t* right = b.data + j * b.part + d / 2 * b.stride;
    _tile_loadd(4, left, a_bytes);
    _tile_loadd(6, right, b_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if (n > 1) {
      _tile_loadd(7, right + 16, b_bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (m > 1) {
      _tile_loadd(5, left + 16 * a.stride, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (m > 1 && n > 1) _tile_dpbf16ps(3, 5, 7);
  };
  // What is small is summed first, over the whole depth, where its rounding is small, too.
  const int orders = a.parts > b.parts ? a.parts : b.parts;
  for (int64_t d = 0; d < depth; d += 32) {
    for (int order = orders - 1; order > 0; --order)
      for (int i = 0; i <= order; ++i)
        if (i < a.parts && order - i < b.parts) add(i, order - i, d);
  }
  for (int64_t d = 0; d < depth; d += 32) add(0, 0, d);
  _tile_stored(0, c, c_bytes);
  if (n > 1) _tile_stored(1, c + 16, c_bytes);
  if (m > 1) _tile_stored(2, c + 16 * c_stride, c_bytes);
  if (m > 1 && n > 1) _tile_stored(3, c + 16 * c_stride + 16, c_bytes);
}

// c = a b (+ c). Rows and columns are rounded up to 16, the depth to 32: operands are zero there, c has room.
static void multiply(const Left& a, const Right& b, int64_t rows, int64_t columns, int64_t depth, float* c,
                     int64_t c_stride, bool accumulate) {
  for (int64_t j = 0; j < columns; j += 32)
    for (int64_t i = 0; i < rows; i += 32) {
      const Left left{a.data + i * a.stride, a.stride, a.part, a.parts};
      const Right right{b.data + j, b.stride, b.part, b.parts};
      float* out = c + i * c_stride + j;
      const bool tall = rows - i > 16, wide = columns - j > 16;
      auto* kernel = tall ? (wide ? multiply_block<2, 2> : multiply_block<2, 1>)
                          : (wide ? multiply_block<1, 2> : multiply_block<1, 1>);
      kernel(left, right, depth, out, c_stride, accumulate);
    }
}

typedef uint16_t half_words __attribute__((vector_size(32)));

struct Split {
  half_words part[parts];  // bfloat16

  vint words(int i) const { return __builtin_convertvector(part[i], vint); }
};

static inline Split split(vfloat x) {
  Split result;
#pragma GCC unroll 3
  for (int i = 0; i < parts; ++i) {
    result.part[i] = reinterpret_cast<half_words>(_mm512_cvtneps_pbh(x));
    if (i + 1 < parts) x -= reinterpret_cast<vfloat>(result.words(i) << 16);
  }
  return result;
}

static inline void store_left(uint16_t* out, half_words part) { std::memcpy(out, &part, sizeof part); }

static inline void store_words(void* out, vint words) { std::memcpy(out, &words, sizeof words); }

static inline void split_scalar(float x, uint16_t* part) {
  for (int i = 0; i < parts; ++i) {
    part[i] = float_to_bf16(x);
    x -= bf16_to_float(part[i]);
  }
}

// The projected rows as right operands: pairs of ranks by rows, and pairs of rows by ranks.
static void prepare(const float* projected, int64_t count, int64_t rank, float* score_operand,
                    float* gradient_operand) {
  const int64_t stride = padded(rank);
  auto fill = [&](float* operand, int64_t depth, int64_t columns, int64_t width, auto&& at) {
    uint32_t* out = reinterpret_cast<uint32_t*>(operand);
    const int64_t part = right_part(depth, width);
    for (int64_t d = 0; d < round_up(depth, 32); d += 2)
      for (int64_t j = 0; j < columns; ++j) {
        uint16_t lower[parts], upper[parts];
        split_scalar(at(d, j), lower);
        split_scalar(at(d + 1, j), upper);
        for (int i = 0; i < parts; ++i)
          out[i * part + d / 2 * width + j] = lower[i] | static_cast<uint32_t>(upper[i]) << 16;
      }
  };
  auto value = [&](int64_t t, int64_t r) { return t < count && r < rank ? projected[t * stride + r] : 0.0f; };
  fill(score_operand, rank, round_up(count, 16), block_stride, [&](int64_t r, int64_t t) { return value(t, r); });
  if (gradient_operand)
    fill(gradient_operand, block, round_up(rank, 16), stride, [&](int64_t t, int64_t r) { return value(t, r); });
}

// Splitting floats takes long enough for rows this far ahead to arrive from memory; past the table's end nothing
// happens.
constexpr int64_t rows_ahead = 8;

static inline void prefetch(const Table& table, int64_t row, int64_t column) {
  const int64_t at = row * table.rank + column;
  _mm_prefetch(static_cast<const char*>(table.coordinates) + at * (table.dtype == Dtype::f32 ? 4 : 2), _MM_HINT_T0);
}

// 16 coordinates of a row from `at` on, those that exist.
template <Dtype dtype>
static inline vfloat load_coordinates(const void* coordinates, int64_t at, int64_t width) {
  if (dtype == Dtype::f32 && width >= 16) return load(static_cast<const float*>(coordinates) + at);
  float row[16] = {};
  if (width >= 16)
    for (int64_t k = 0; k < 16; ++k) row[k] = load_as_float(coordinates, dtype, at + k);
  else
    for (int64_t k = 0; k < width; ++k) row[k] = load_as_float(coordinates, dtype, at + k);
  return load(row);
}

// Coordinates and bias of the vocabulary rows [first, first + count), zero up to whole tiles; as right operand if
// wanted.
static void load_tile(const Table& table, int64_t first, int64_t count, bool as_right, const Scratch& scratch) {
  const int64_t rank = table.rank, stride = left_stride(rank), part = left_part(tile, rank);
  const int64_t pair_stride = padded(rank), pair_part = right_part(tile, pair_stride);
  const Panel panel(scratch, rank);
  with_dtype(table.dtype, [&](auto dtype) {
    constexpr int used = dtype.value == Dtype::bf16 ? 1 : parts;
    for (int64_t v = 0; v < round_up(count, 32); v += 2) {
      uint16_t* left = panel.coordinates + v * stride;
      uint32_t* right = panel.coordinate_pairs + v / 2 * pair_stride;
      for (int64_t r = 0; r < round_up(rank, 32); r += 16) {
        auto row = [&](int64_t i) {
          const int64_t width = i < count ? rank - r : 0;
          prefetch(table, first + i + rows_ahead, r);
          return split(load_coordinates<dtype.value>(table.coordinates, (first + i) * rank + r, width));
        };
        const Split a = row(v), b = row(v + 1);
#pragma GCC unroll 3
        for (int i = 0; i < used; ++i) {
          store_left(left + i * part + r, a.part[i]);
          store_left(left + i * part + stride + r, b.part[i]);
          if (as_right && r < pair_stride) store_words(right + i * pair_part + r, a.words(i) | b.words(i) << 16);
        }
      }
    }
  });
  for (int64_t v = 0; v < count; ++v)
    scratch.bias[v] = table.bias ? load_as_float(table.bias, table.bias_dtype, first + v) : 0.0f;
}

// scores[v, t] = the logits of a loaded tile
static void score(const Table& table, const Block& rows, int64_t count, const Scratch& scratch) {
  const int64_t rank = table.rank;
  multiply({Panel(scratch, rank).coordinates, left_stride(rank), left_part(tile, rank), parts_of_coordinates(table)},
           {reinterpret_cast<const uint32_t*>(rows.score_operand), block_stride, right_part(rank, block_stride),
            parts_of_others(table)},
           count, rows.count, rank, scratch.scores, block_stride, false);
  if (!table.bias) return;
  for (int64_t v = 0; v < count; ++v)
    for (int64_t t = 0; t < rows.count; t += lanes) {
      float* at = scratch.scores + v * block_stride + t;
      store(at, load(at) + splat(scratch.bias[v]));
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

// others[t] += sum over the tile of scores[v, t] coordinates_v
static void add_others(const Table& table, const Block& rows, int64_t count, const Scratch& scratch, float* others) {
  const Panel panel(scratch, table.rank);
  const int64_t stride = left_stride(tile), part = left_part(block, tile);
  const int used = parts_of_others(table);
  for (int64_t t = 0; t < rows.count; t += 16)
    for (int64_t v = 0; v < round_up(count, 32); v += 32) {
      __m512i words[parts][16];
      for (int i = 0; i < 16; ++i) {
        auto row = [&](int64_t at) {
          return split(at < count ? load(scratch.scores + at * block_stride + t) : vfloat{});
        };
        const Split a = row(v + 2 * i), b = row(v + 2 * i + 1);
        for (int p = 0; p < parts; ++p) words[p][i] = reinterpret_cast<__m512i>(a.words(p) | b.words(p) << 16);
      }
      for (int p = 0; p < used; ++p) {
        transpose(words[p]);
        for (int i = 0; i < 16; ++i) _mm512_storeu_si512(panel.scores + p * part + (t + i) * stride + v, words[p][i]);
      }
    }
  multiply(
      {panel.scores, stride, part, used},
      {panel.coordinate_pairs, padded(table.rank), right_part(tile, padded(table.rank)), parts_of_coordinates(table)},
      rows.count, table.rank, count, others, padded(table.rank), true);
}

// gradient[v] (+)= sum over the rows of scores[v, t] projected_t
static void add_gradient(const Table& table, const Block& rows, int64_t count, const Scratch& scratch,
                         bool accumulate) {
  const Panel panel(scratch, table.rank);
  const int64_t stride = left_stride(block), part = left_part(tile, block), columns = padded(table.rank);
  const int used = parts_of_others(table);
  for (int64_t v = 0; v < count; ++v)
    for (int64_t t = 0; t < round_up(rows.count, 32); t += 16) {
      const bool inside = t < rows.count;
      const Split a = split(inside ? load(scratch.scores + v * block_stride + t) : vfloat{});
      for (int p = 0; p < used; ++p) store_left(panel.scores + p * part + v * stride + t, a.part[p]);
    }
  multiply({panel.scores, stride, part, used},
           {reinterpret_cast<const uint32_t*>(rows.gradient_operand), columns, right_part(block, columns), used}, count,
           table.rank, rows.count, scratch.gradient, columns, accumulate);
}

}  // namespace OFA_ISA
}  // namespace ofa
