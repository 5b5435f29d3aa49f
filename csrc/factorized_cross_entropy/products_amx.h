// The products of a tile on AMX, for *_simd.cpp. Coordinates that are bfloat16 are one part; where everything is, two
// parts of what meets them do. An infinity has no parts, so a tile whose logits do not come out finite is computed
// again in float32 arithmetic, slowly.
#pragma once

#include "amx.h"
#include "factorized_cross_entropy/kernels.h"

namespace ofa {
namespace OFA_ISA {

using namespace factorized_cross_entropy;

constexpr int64_t tile = 128;  // vocabulary rows
constexpr int64_t strip =
    32;  // of these, rows that the backward pass takes at a time: their scores fit the first cache

static inline int64_t score_operand_size(int64_t rank) { return operand_words(block, rank); }
static inline int64_t gradient_operand_size(int64_t rank) { return operand_words(rank, block); }
// The coordinates as left and as right operand, the scores as left operand in either orientation, and one product.
static inline int64_t panel_size(int64_t rank) {
  return operand_words(tile, rank) + operand_words(rank, tile) + operand_words(block, tile) + 32 * 32;
}

struct Panel {
  uint32_t *coordinates, *coordinate_pairs, *scores;
  float* product;

  Panel(const Scratch& scratch, int64_t rank)
      : coordinates(reinterpret_cast<uint32_t*>(scratch.panel)),
        coordinate_pairs(coordinates + operand_words(tile, rank)),
        scores(coordinate_pairs + operand_words(rank, tile)),
        product(reinterpret_cast<float*>(scores + operand_words(block, tile))) {}
};

static inline int64_t blocks_of(int64_t width) { return ceil_div(width, 16); }
static inline int64_t steps_of(int64_t depth) { return ceil_div(depth, 32); }

// The functor with the numbers of parts of the coordinates and of what meets them as constants.
template <int parts>
struct Parts {
  static constexpr int value = parts;
};

template <class Function>
static inline void with_parts(const Table& table, Function&& function) {
  if (table.coarse) return function(Parts<1>{}, Parts<2>{});
  if (table.dtype == Dtype::bf16) return function(Parts<1>{}, Parts<3>{});
  function(Parts<3>{}, Parts<3>{});
}

// The projected rows as right operands: ranks by rows, and rows by ranks.
static void prepare(const Table& table, const float* projected, int64_t count, float* score_operand,
                    float* gradient_operand) {
  const int64_t rank = table.rank, stride = padded(rank);
  auto row = [&](int64_t t, int64_t r) {
    return load_some<Dtype::f32>(projected, t * stride + r, t < count ? rank - r : 0);
  };
  with_parts(table, [&](auto, auto others) {
    constexpr int parts = others.value;
    const Operand score{reinterpret_cast<uint32_t*>(score_operand), steps_of(rank), parts};
    for (int64_t t = 0; t < count; t += 16)
      for (int64_t r = 0; r < rank; r += 32) {
        float rows[16 * 32];
        vfloat lower[16], upper[16];
        for (int i = 0; i < 16; ++i) {
          store(rows + i * 32, row(t + i, r));
          store(rows + i * 32 + 16, row(t + i, r + 16));
        }
        load_transposed(rows, 32, lower);
        load_transposed(rows + 16, 32, upper);
        for (int i = 0; i < 16; ++i)
          store_row<parts>(score.at(t / 16, r / 32), i, split<parts>(lower[i]), split<parts>(upper[i]));
      }
    if (!gradient_operand) return;
    const Operand gradient{reinterpret_cast<uint32_t*>(gradient_operand), steps_of(count), parts};
    for (int64_t r = 0; r < rank; r += 16)
      for (int64_t t = 0; t < count; t += 32)
        for (int i = 0; i < 16; ++i)
          store_row<parts>(gradient.at(r / 16, t / 32), i, split<parts>(row(t + i, r)),
                           split<parts>(row(t + 16 + i, r)));
  });
}

// Coordinates and bias of the vocabulary rows [first, first + count), zero up to whole tiles; as right operand if
// wanted.
static void load_tile(const Table& table, int64_t first, int64_t count, bool as_right, const Scratch& scratch) {
  const int64_t rank = table.rank;
  const Panel panel(scratch, rank);
  // The splitting takes long enough for rows this far ahead to arrive from memory; past the table's end nothing
  // happens.
  constexpr int64_t rows_ahead = 8;
  with_dtype(table.dtype, [&](auto dtype) {
    constexpr int parts = dtype.value == Dtype::bf16 ? 1 : 3;
    const Operand left{panel.coordinates, steps_of(rank), parts}, right{panel.coordinate_pairs, steps_of(tile), parts};
    for (int64_t v = 0; v < count; v += 32)
      for (int i = 0; i < 16; ++i)
        for (int64_t r = 0; r < rank; r += 32) {
          auto load_split = [&](int64_t row, int64_t column) {
            const int64_t at = (first + row) * rank + column;
            _mm_prefetch(static_cast<const char*>(table.coordinates) +
                             (at + rows_ahead * rank) * (dtype.value == Dtype::f32 ? 4 : 2),
                         _MM_HINT_T0);
            return split<parts>(load_some<dtype.value>(table.coordinates, at, row < count ? rank - column : 0));
          };
          const Split a = load_split(v + i, r), b = load_split(v + i, r + 16);
          const Split c = load_split(v + i + 16, r), d = load_split(v + i + 16, r + 16);
          store_row<parts>(left.at(v / 16, r / 32), i, a, b);
          store_row<parts>(left.at(v / 16 + 1, r / 32), i, c, d);
          if (!as_right) continue;
          store_row<parts>(right.at(r / 16, v / 32), i, a, c);
          if (r + 16 < rank) store_row<parts>(right.at(r / 16 + 1, v / 32), i, b, d);
        }
  });
  for (int64_t v = 0; v < count; ++v)
    scratch.bias[v] = table.bias ? load_as_float(table.bias, table.bias_dtype, first + v) : 0.0f;
}

// The same three products without AMX.
static void plain_score(const Table& table, const Block& rows, int64_t first, int64_t count, const Scratch& scratch) {
  const int64_t rank = table.rank, stride = padded(rank);
  with_dtype(table.dtype, [&](auto dtype) {
    for (int64_t v = 0; v < count; ++v)
      for (int64_t t = 0; t < rows.count; ++t) {
        vfloat sum{};
        for (int64_t r = 0; r < rank; r += lanes)
          sum += load_some<dtype.value>(table.coordinates, (first + v) * rank + r, rank - r) *
                 load(rows.projected + t * stride + r);
        scratch.scores[v * block_stride + t] =
            _mm512_reduce_add_ps(reinterpret_cast<__m512>(sum)) + (table.bias ? scratch.bias[v] : 0.0f);
      }
  });
}

static void plain_others(const Table& table, const Block& rows, int64_t first, int64_t count, const Scratch& scratch,
                         float* others) {
  const int64_t rank = table.rank, stride = padded(rank);
  with_dtype(table.dtype, [&](auto dtype) {
    for (int64_t v = 0; v < count; ++v)
      for (int64_t r = 0; r < rank; r += lanes) {
        const vfloat x = load_some<dtype.value>(table.coordinates, (first + v) * rank + r, rank - r);
        for (int64_t t = 0; t < rows.count; ++t) {
          float* at = others + t * stride + r;
          store(at, load(at) + splat(scratch.scores[v * block_stride + t]) * x);
        }
      }
  });
}

static void plain_gradient(const Table& table, const Block& rows, int64_t count, bool accumulate,
                           const Scratch& scratch) {
  const int64_t stride = padded(table.rank);
  for (int64_t v = 0; v < count; ++v)
    for (int64_t r = 0; r < table.rank; r += lanes) {
      float* at = scratch.gradient + v * stride + r;
      vfloat sum = accumulate ? load(at) : vfloat{};
      for (int64_t t = 0; t < rows.count; ++t)
        sum += splat(scratch.scores[v * block_stride + t]) * load(rows.projected + t * stride + r);
      store(at, sum);
    }
}

// Adds the bias to rows of scores; false if one of them was not finite.
static bool add_bias(const Table& table, const Block& rows, int64_t first, int64_t last, const Scratch& scratch) {
  vfloat zero{};
  for (int64_t v = first; v < last; ++v) {
    vfloat zero_of_row{};  // rows do not wait for each other
    for (int64_t t = 0; t < rows.count; t += lanes) {
      float* at = scratch.scores + v * block_stride + t;
      const vfloat x = load(at);
      zero_of_row += x * 0.0f;
      if (table.bias) store(at, x + splat(scratch.bias[v]));
    }
    zero += zero_of_row;
  }
  for (int i = 0; i < lanes; ++i)
    if (!(zero[i] == 0.0f)) return false;
  return true;
}

// scores[v, t] = the logits of a loaded tile; false if the products did not come out finite.
static bool score(const Table& table, const Block& rows, int64_t first, int64_t count, const Scratch& scratch) {
  bool finite = true;
  with_parts(table, [&](auto coordinates, auto others) {
    constexpr int left = coordinates.value, right = others.value;
    const int64_t steps = steps_of(table.rank);
    const Operand a{Panel(scratch, table.rank).coordinates, steps, left};
    const Operand b{reinterpret_cast<uint32_t*>(const_cast<float*>(rows.score_operand)), steps, right};
    for (int64_t v = 0; v < count; v += 32) {
      for (int64_t t = 0; t < rows.count; t += 32)
        multiply<left, right>(a, v / 16, v / 16 + 2, b, t / 16, blocks_of(rows.count),
                              scratch.scores + v * block_stride + t, block_stride);
      finite &= add_bias(table, rows, v, smaller(v + 32, count), scratch);
    }
  });
  if (!finite) plain_score(table, rows, first, count, scratch);
  return finite;
}

// others[t] += sum over the tile of scores[v, t] coordinates_v
static void add_others(const Table& table, const Block& rows, int64_t first, int64_t count, bool finite,
                       const Scratch& scratch, float* out) {
  if (!finite) return plain_others(table, rows, first, count, scratch, out);
  const int64_t stride = padded(table.rank), steps = steps_of(count);
  const Panel panel(scratch, table.rank);
  with_parts(table, [&](auto coordinates, auto others) {
    constexpr int left = others.value, right = coordinates.value;
    const Operand a{panel.scores, steps, left}, b{panel.coordinate_pairs, steps_of(tile), right};
    for (int64_t t = 0; t < rows.count; t += 16)
      for (int64_t v = 0; v < count; v += 32) {
        vfloat lower[16], upper[16];
        load_transposed(scratch.scores + v * block_stride + t, block_stride, lower);
        load_transposed(scratch.scores + (v + 16) * block_stride + t, block_stride, upper);
        for (int i = 0; i < 16; ++i)
          store_row<left>(a.at(t / 16, v / 32), i, split<left>(lower[i]), split<left>(upper[i]));
      }
    for (int64_t r = 0; r < table.rank; r += 32)
      for (int64_t t = 0; t < rows.count; t += 32) {
        multiply<left, right>(a, t / 16, blocks_of(rows.count), b, r / 16, blocks_of(table.rank), panel.product, 32);
        for (int64_t i = 0; i < smaller(32, rows.count - t); ++i)
          for (int64_t j = 0; j < smaller(32, table.rank - r); j += lanes) {
            float* at = out + (t + i) * stride + r + j;
            store(at, load(at) + load(panel.product + i * 32 + j));
          }
      }
  });
}

// gradient[v] (+)= sum over the rows of scores[v, t] projected_t
static void add_gradient(const Table& table, const Block& rows, int64_t count, bool finite, bool accumulate,
                         const Scratch& scratch) {
  if (!finite) return plain_gradient(table, rows, count, accumulate, scratch);
  const int64_t stride = padded(table.rank), steps = steps_of(rows.count);
  const Panel panel(scratch, table.rank);
  with_parts(table, [&](auto, auto others) {
    constexpr int parts = others.value;
    const Operand a{panel.scores, steps, parts};
    const Operand b{reinterpret_cast<uint32_t*>(const_cast<float*>(rows.gradient_operand)), steps, parts};
    for (int64_t v = 0; v < count; ++v)
      for (int64_t t = 0; t < rows.count; t += 32) {
        auto part = [&](int64_t column) {
          return split<parts>(column < rows.count ? load(scratch.scores + v * block_stride + column) : vfloat{});
        };
        store_row<parts>(a.at(v / 16, t / 32), v % 16, part(t), part(t + 16));
      }
    for (int64_t r = 0; r < table.rank; r += 32)
      for (int64_t v = 0; v < count; v += 32) {
        float* out = scratch.gradient + v * stride + r;
        multiply<parts, parts>(a, v / 16, v / 16 + 2, b, r / 16, blocks_of(table.rank),
                               accumulate ? panel.product : out, accumulate ? 32 : stride);
        if (!accumulate) continue;
        for (int64_t i = 0; i < 32; ++i)
          for (int64_t j = 0; j < smaller(32, table.rank - r); j += lanes)
            store(out + i * stride + j, load(out + i * stride + j) + load(panel.product + i * 32 + j));
      }
  });
}

}  // namespace OFA_ISA
}  // namespace ofa
