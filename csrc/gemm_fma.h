// Packed panels and the micro-kernel in float32 arithmetic, for gemm_simd.cpp: a panel is [depth, width] floats.
#pragma once

#include "gemm.h"
#include "simd.h"

namespace ofa {
namespace OFA_ISA {
namespace {
namespace floats {

// Accumulators fill the register file: 14 x 2 of 32 zmm, 6 x 2 of 16 ymm or xmm.
constexpr int mr = lanes == 16 ? 14 : 6;
constexpr int nr = 2 * lanes;
constexpr int64_t depth_block = 256;  // keeps both panels in the first-level cache

int64_t panel_size(int64_t depth, int width) { return depth * width; }

template <bool accumulate>
inline void micro_kernel(const float* __restrict a, const float* __restrict b, int64_t depth, float* __restrict c,
                         int64_t stride) {
  vfloat sum[mr][2];
#pragma GCC unroll 14
  for (int i = 0; i < mr; ++i) sum[i][0] = sum[i][1] = vfloat{};
  for (int64_t d = 0; d < depth; ++d) {
    const vfloat b0 = load(b + d * nr), b1 = load(b + d * nr + lanes);
#pragma GCC unroll 14
    for (int i = 0; i < mr; ++i) {
      const vfloat ai = splat(a[d * mr + i]);
      sum[i][0] += ai * b0;
      sum[i][1] += ai * b1;
    }
  }
#pragma GCC unroll 14
  for (int i = 0; i < mr; ++i) {
    float* row = c + i * stride;
    store(row, accumulate ? load(row) + sum[i][0] : sum[i][0]);
    store(row + lanes, accumulate ? load(row + lanes) + sum[i][1] : sum[i][1]);
  }
}

void multiply_block(const float* a, int64_t a_panel, const float* b, int64_t b_panel, int64_t m, int64_t n,
                    int64_t depth, float* c, int64_t stride, bool accumulate) {
  for (int64_t j = 0; j < n; j += nr) {
    const float* right = b + j / nr * b_panel;
    for (int64_t i = 0; i < m; i += mr) {
      const float* left = a + i / mr * a_panel;
      float* out = c + i * stride + j;
      const int64_t rows = m - i < mr ? m - i : mr, columns = n - j < nr ? n - j : nr;
      if (rows == mr && columns == nr) {
        if (accumulate)
          micro_kernel<true>(left, right, depth, out, stride);
        else
          micro_kernel<false>(left, right, depth, out, stride);
        continue;
      }
      float edge[mr * nr];
      micro_kernel<false>(left, right, depth, edge, nr);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t s = 0; s < columns; ++s)
          out[r * stride + s] = edge[r * nr + s] + (accumulate ? out[r * stride + s] : 0.0f);
    }
  }
}

void multiply(const float* a, const float* b, int64_t m, int64_t n, int64_t depth, float* c, int64_t stride,
              bool accumulate) {
  for (int64_t d = 0; d == 0 || d < depth; d += depth_block)
    multiply_block(a + d * mr, depth * mr, b + d * nr, depth * nr, m, n,
                   depth - d < depth_block ? depth - d : depth_block, c, stride, accumulate || d > 0);
}

void pack_rows(const void* src, Dtype dtype, int64_t stride, const int64_t* index, int64_t rows, int64_t depth,
               int width, float* packed) {
  with_dtype(dtype, [&](auto constant) {
    for (int64_t first = 0; first < rows; first += width, packed += depth * width) {
      for (int r = 0; r < width; ++r) {
        if (first + r >= rows) {
          for (int64_t d = 0; d < depth; ++d) packed[d * width + r] = 0.0f;
          continue;
        }
        const int64_t row = (index ? index[first + r] : first + r) * stride;
        for (int64_t d = 0; d < depth; ++d) packed[d * width + r] = load_as_float(src, constant.value, row + d);
      }
    }
  });
}

void pack_columns(const void* src, Dtype dtype, int64_t stride, int64_t rows, int64_t depth, int width, float* packed) {
  with_dtype(dtype, [&](auto constant) {
    for (int64_t d = 0; d < depth; ++d)  // in the order of memory
      for (int64_t first = 0; first < rows; first += width) {
        float* out = packed + first * depth + d * width;
        const int64_t count = rows - first < width ? rows - first : width;
        for (int64_t r = 0; r < count; ++r) out[r] = load_as_float(src, constant.value, d * stride + first + r);
        for (int64_t r = count; r < width; ++r) out[r] = 0.0f;
      }
  });
}

void pack_both(const void* src, Dtype dtype, int64_t stride, int64_t rows, int64_t depth, float* left, float* right) {
  pack_columns(src, dtype, stride, rows, depth, mr, left);
  pack_columns(src, dtype, stride, rows, depth, nr, right);
}

}  // namespace floats
}  // namespace
}  // namespace OFA_ISA
}  // namespace ofa
