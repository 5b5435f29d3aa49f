// The products of a tile in float32 arithmetic, for *_simd.cpp: every operand is read as it lies.
#pragma once

#include "factorized_cross_entropy/kernels.h"
#include "simd.h"

namespace ofa {
namespace OFA_ISA {

using namespace factorized_cross_entropy;

constexpr int64_t tile = 168;             // vocabulary rows: a multiple of every micro-kernel's 14 or 6 rows
constexpr int64_t strip = tile;           // of these, rows that the backward pass takes at a time
constexpr int mr = lanes == 16 ? 14 : 6;  // with two vectors a row the accumulators fill the register file
constexpr int64_t depth_block = 224;      // keeps a panel of the right operand in the first-level cache

static_assert(tile % mr == 0 && block_stride % lanes == 0 && block_stride >= (block + mr - 1) / mr * mr);

static inline int64_t panel_size(int64_t rank) { return tile * padded(rank); }
static inline int64_t score_operand_size(int64_t rank) { return rank * block_stride; }
static inline int64_t gradient_operand_size(int64_t) { return 0; }
static inline void start_products() {}
static inline void finish_products() {}

// The left operand of a product, element (row i, depth d) in either order in memory.
struct ByRow {
  const float* data;
  int64_t stride;
  float at(int i) const { return (data + i / 3 * 3 * stride)[i % 3 * stride]; }
  ByRow block(int64_t row, int64_t depth) const { return {data + row * stride + depth, stride}; }
  void advance() { ++data; }
};

struct ByDepth {
  const float* data;
  int64_t stride;
  float at(int i) const { return data[i]; }
  ByDepth block(int64_t row, int64_t depth) const { return {data + row + depth * stride, stride}; }
  void advance() { data += stride; }
};

template <int vectors, class Left>
static inline void micro_kernel(Left a, const float* __restrict b, int64_t b_stride, int64_t depth, float* __restrict c,
                                int64_t c_stride, const float* addend, bool accumulate) {
  vfloat sum[mr][vectors];
#pragma GCC unroll 14
  for (int i = 0; i < mr; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) sum[i][j] = vfloat{};
  for (int64_t d = 0; d < depth; ++d, b += b_stride, a.advance()) {
    vfloat right[vectors];
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) right[j] = load(b + j * lanes);
#pragma GCC unroll 14
    for (int i = 0; i < mr; ++i) {
      const vfloat left = splat(a.at(i));
#pragma GCC unroll 2
      for (int j = 0; j < vectors; ++j) sum[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 14
  for (int i = 0; i < mr; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < vectors; ++j) {
      float* out = c + i * c_stride + j * lanes;
      if (accumulate) sum[i][j] += load(out);
      store(out, addend ? sum[i][j] + splat(addend[i]) : sum[i][j]);
    }
}

// c = a b (+ c) (+ addend of each row). Rows are rounded up to mr, columns to a vector; all operands have room for it.
template <class Left>
static inline void multiply(Left a, const float* b, int64_t b_stride, int64_t rows, int64_t columns, int64_t depth,
                            float* c, int64_t c_stride, bool accumulate, const float* addend = nullptr) {
  const int64_t parts = depth > depth_block ? (depth + depth_block - 1) / depth_block : 1,
                step = (depth + parts - 1) / parts;
  for (int64_t d = 0; d == 0 || d < depth; d += step) {
    const int64_t length = smaller(step, depth - d);
    const bool add = accumulate || d > 0;
    const float* last_addend = d + step >= depth ? addend : nullptr;
    for (int64_t j = 0; j < columns; j += 2 * lanes)
      for (int64_t i = 0; i < rows; i += mr) {
        const float* right = b + d * b_stride + j;
        float* out = c + i * c_stride + j;
        const float* extra = last_addend ? last_addend + i : nullptr;
        if (columns - j > lanes)
          micro_kernel<2>(a.block(i, d), right, b_stride, length, out, c_stride, extra, add);
        else
          micro_kernel<1>(a.block(i, d), right, b_stride, length, out, c_stride, extra, add);
      }
  }
}

// The projected rows as columns.
static void prepare(const Table& table, const float* projected, int64_t count, float* score_operand, float*) {
  const int64_t rank = table.rank, stride = padded(rank);
  for (int64_t r = 0; r < rank; ++r)
    for (int64_t t = 0; t < block_stride; ++t)
      score_operand[r * block_stride + t] = t < count ? projected[t * stride + r] : 0.0f;
}

// Coordinates and bias of the vocabulary rows [first, first + count) as floats; zeros up to whole vectors and
// micro-kernels.
static void load_tile(const Table& table, int64_t first, int64_t count, bool, const Scratch& scratch) {
  const int64_t rank = table.rank, stride = padded(rank), rows = round_up(count, mr);
  with_dtype(table.dtype, [&](auto constant) {
    for (int64_t v = 0; v < count; ++v) {
      float* out = scratch.panel + v * stride;
      for (int64_t r = 0; r < rank; ++r)
        out[r] = load_as_float(table.coordinates, constant.value, (first + v) * rank + r);
      for (int64_t r = rank; r < stride; ++r) out[r] = 0.0f;
    }
  });
  for (int64_t i = count * stride; i < rows * stride; ++i) scratch.panel[i] = 0.0f;
  for (int64_t v = 0; v < rows; ++v)
    scratch.bias[v] = table.bias && v < count ? load_as_float(table.bias, table.bias_dtype, first + v) : 0.0f;
}

// scores[v, t] = the logits of a loaded tile. True: the other products may go on in the same arithmetic.
static bool score(const Table& table, const Block& rows, int64_t, int64_t count, const Scratch& scratch) {
  multiply(ByRow{scratch.panel, padded(table.rank)}, rows.score_operand, block_stride, count, rows.count, table.rank,
           scratch.scores, block_stride, false, table.bias ? scratch.bias : nullptr);
  return true;
}

// others[t] += sum over the tile of scores[v, t] coordinates_v
static void add_others(const Table& table, const Block& rows, int64_t, int64_t count, bool, const Scratch& scratch,
                       float* others) {
  multiply(ByDepth{scratch.scores, block_stride}, scratch.panel, padded(table.rank), rows.count, table.rank, count,
           others, padded(table.rank), true);
}

// gradient[v] (+)= sum over the rows of scores[v, t] projected_t
static void add_gradient(const Table& table, const Block& rows, int64_t count, bool, bool accumulate,
                         const Scratch& scratch) {
  const int64_t stride = padded(table.rank);
  multiply(ByRow{scratch.scores, block_stride}, rows.projected, stride, count, table.rank, rows.count, scratch.gradient,
           stride, accumulate);
}

}  // namespace OFA_ISA
}  // namespace ofa
