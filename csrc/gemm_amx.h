// Packed panels and the micro-kernel on AMX, for gemm_simd.cpp.
//
// A panel of `width` rows: 64 bytes that tell how many parts its floats have, then for every 32 depths and every part
// width / 16 tiles of 1 KiB. A tile of the left operand is 16 rows of 16 words, a word holds depths i and i + 16; one
// of the right operand is its transpose.
#pragma once

#include "amx.h"
#include "gemm.h"

namespace ofa {
namespace OFA_ISA {
namespace {

constexpr int mr = 16, nr = 32;
constexpr int64_t step = 32;         // depths of a tile
constexpr int64_t tile_words = 256;  // 1 KiB
constexpr int64_t header_words = 16;
constexpr int64_t depth_block = 32 * step;  // after which sums leave the tiles: panels of 96 and 192 KiB

constexpr int parts_of(Dtype dtype) { return dtype == Dtype::f32 ? 3 : dtype == Dtype::f16 ? 2 : 1; }

int64_t panel_size(int64_t depth, int width) {
  return header_words + ceil_div(depth, step) * parts * (width / 16) * tile_words;
}

int parts_in(const float* panel) {
  int32_t count;
  std::memcpy(&count, panel, sizeof count);
  return count;
}

// 16 elements from `at` on, of which `count` exist.
template <Dtype dtype>
inline vfloat load_elements(const void* src, int64_t at, int64_t count) {
  if (dtype == Dtype::f32) {
    const __mmask16 inside = count >= 16 ? 0xffff : count <= 0 ? 0 : (1 << count) - 1;
    return _mm512_maskz_loadu_ps(inside, static_cast<const float*>(src) + at);
  }
  float row[16] = {};
  if (count >= 16)
    for (int k = 0; k < 16; ++k) row[k] = load_as_float(src, dtype, at + k);
  else
    for (int64_t k = 0; k < count; ++k) row[k] = load_as_float(src, dtype, at + k);
  return load(row);
}

// The first of the tiles that hold rows r.. at depths d.. of part 0.
float* tile_at(float* packed, int width, int64_t size, int64_t r, int64_t d) {
  return packed + r / width * size + header_words + (d / step * parts * width + r % width) / 16 * tile_words;
}

void write_headers(float* packed, int64_t rows, int64_t size, int width, int used) {
  const int32_t header[header_words] = {used};
  for (int64_t r = 0; r < rows; r += width) std::memcpy(packed + r / width * size, header, sizeof header);
}

// Packs 16 rows by 32 depths at a time, as left or right operand or both. load_at(r, d) gives 16 elements in the order
// of memory: depths d, d + 1, ... of row r where `by_row`, else rows r, r + 1, ... at depth d.
template <Dtype dtype, bool by_row, class Load>
inline void pack(int64_t rows, int64_t depth, float* left, float* right, Load&& load_at) {
  constexpr int used = parts_of(dtype);
  const int64_t left_size = panel_size(depth, mr), right_size = panel_size(depth, nr);
  if (left) write_headers(left, rows, left_size, mr, used);
  if (right) write_headers(right, rows, right_size, nr, used);
  const int64_t end = ceil_div(rows, right ? nr : mr) * (right ? nr : mr);
  for (int64_t d = 0; d < depth; d += step)
    for (int64_t r = 0; r < end; r += 16) {
      __m512i words[used][16];
#pragma GCC unroll 4
      for (int i = 0; i < 16; ++i) {
        __m512i pair[used];
        split<used>(by_row ? load_at(r + i, d) : load_at(r, d + i),
                    by_row ? load_at(r + i, d + 16) : load_at(r, d + i + 16), pair);
#pragma GCC unroll 3
        for (int p = 0; p < used; ++p) words[p][i] = pair[p];
      }
      auto write = [&](float* tile, int width, int p) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) _mm512_storeu_si512(tile + p * (width / 16) * tile_words + 16 * i, words[p][i]);
      };
      float* as_left = left && r < ceil_div(rows, mr) * mr ? tile_at(left, mr, left_size, r, d) : nullptr;
      float* as_right = right ? tile_at(right, nr, right_size, r, d) : nullptr;
#pragma GCC unroll 3
      for (int p = 0; p < used; ++p) {
        float *first = by_row ? as_left : as_right, *second = by_row ? as_right : as_left;
        if (first) write(first, by_row ? mr : nr, p);
        if (!second) continue;
        transpose(words[p]);
        write(second, by_row ? nr : mr, p);
      }
    }
}

void pack_rows(const void* src, Dtype dtype, int64_t stride, const int64_t* index, int64_t rows, int64_t depth,
               int width, float* packed) {
  with_dtype(dtype, [&](auto constant) {
    pack<constant.value, true>(rows, depth, width == mr ? packed : nullptr, width == nr ? packed : nullptr,
                               [&](int64_t r, int64_t d) {
                                 const int64_t inside = r < rows ? depth - d : 0;
                                 const int64_t at = inside > 0 ? (index ? index[r] : r) * stride + d : 0;
                                 return load_elements<constant.value>(src, at, inside);
                               });
  });
}

void pack_both(const void* src, Dtype dtype, int64_t stride, int64_t rows, int64_t depth, float* left, float* right) {
  with_dtype(dtype, [&](auto constant) {
    pack<constant.value, false>(rows, depth, left, right, [&](int64_t r, int64_t d) {
      const int64_t inside = d < depth ? rows - r : 0;
      return load_elements<constant.value>(src, inside > 0 ? d * stride + r : 0, inside);
    });
  });
}

void pack_columns(const void* src, Dtype dtype, int64_t stride, int64_t rows, int64_t depth, int width, float* packed) {
  pack_both(src, dtype, stride, rows, depth, width == mr ? packed : nullptr, width == nr ? packed : nullptr);
}

// c[16 m, 32] of `steps` tiles; `a_panel` floats from one left panel to the next.
template <int m, int a_parts, int b_parts>
inline void micro_kernel(const float* a, int64_t a_panel, const float* b, int64_t steps, float* c, int64_t stride,
                         bool accumulate) {
  const int64_t bytes = stride * 4;
  if (accumulate) {
    _tile_loadd(0, c, bytes);
    _tile_loadd(1, c + 16, bytes);
    if (m > 1) _tile_loadd(2, c + 16 * stride, bytes);
    if (m > 1) _tile_loadd(3, c + 16 * stride + 16, bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  auto left = [&](int p) {
    _tile_loadd(4, a + p * tile_words, 64);
    if (m > 1) _tile_loadd(5, a + a_panel + p * tile_words, 64);
  };
  auto right = [&](int p) {
    _tile_loadd(6, b + 2 * p * tile_words, 64);
    _tile_loadd(7, b + (2 * p + 1) * tile_words, 64);
  };
  auto multiply = [] {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (m > 1) _tile_dpbf16ps(2, 5, 6);
    if (m > 1) _tile_dpbf16ps(3, 5, 7);
  };
  for (int64_t s = 0; s < steps; ++s, a += parts * tile_words, b += parts * 2 * tile_words) {
    // A walk over the six pairs of parts that loads one operand at a time.
    right(0);
    if (a_parts > 2) left(2), multiply();
    if (a_parts > 1) {
      left(1);
      multiply();
      if (b_parts > 1) right(1), multiply();
    }
    left(0);
    if (b_parts > 1) {
      if (a_parts == 1) right(1);
      multiply();
      if (b_parts > 2) right(2), multiply();
      right(0);
    }
    multiply();
  }
  _tile_stored(0, c, bytes);
  _tile_stored(1, c + 16, bytes);
  if (m > 1) _tile_stored(2, c + 16 * stride, bytes);
  if (m > 1) _tile_stored(3, c + 16 * stride + 16, bytes);
}

using MicroKernel = void (*)(const float*, int64_t, const float*, int64_t, float*, int64_t, bool);

template <int m>
constexpr MicroKernel micro_kernels[parts][parts] = {
    {micro_kernel<m, 1, 1>, micro_kernel<m, 1, 2>, micro_kernel<m, 1, 3>},
    {micro_kernel<m, 2, 1>, micro_kernel<m, 2, 2>, micro_kernel<m, 2, 3>},
    {micro_kernel<m, 3, 1>, micro_kernel<m, 3, 2>, micro_kernel<m, 3, 3>}};

void multiply(const float* a, const float* b, int64_t m, int64_t n, int64_t depth, float* c, int64_t stride,
              bool accumulate) {
  const int64_t a_panel = panel_size(depth, mr), b_panel = panel_size(depth, nr);
  const int a_parts = parts_in(a), b_parts = parts_in(b);
  const MicroKernel one = micro_kernels<1>[a_parts - 1][b_parts - 1], two = micro_kernels<2>[a_parts - 1][b_parts - 1];
  _tile_loadconfig(&tile_config);
  for (int64_t d = 0; d == 0 || d < depth; d += depth_block) {
    const int64_t steps = ceil_div(depth - d < depth_block ? depth - d : depth_block, step);
    const bool add = accumulate || d > 0;
    for (int64_t j = 0; j < n; j += nr) {
      const float* right = b + j / nr * b_panel + header_words + d / step * parts * 2 * tile_words;
      for (int64_t i = 0; i < m; i += 2 * mr) {
        const float* left = a + i / mr * a_panel + header_words + d / step * parts * tile_words;
        float* out = c + i * stride + j;
        const int64_t rows = m - i < 2 * mr ? m - i : 2 * mr, columns = n - j < nr ? n - j : nr;
        const MicroKernel kernel = rows > mr ? two : one;
        if (rows % mr == 0 && columns == nr) {
          kernel(left, a_panel, right, steps, out, stride, add);
          continue;
        }
        alignas(64) float edge[2 * mr * nr];
        if (add)
          for (int64_t r = 0; r < rows; ++r) std::memcpy(edge + r * nr, out + r * stride, columns * sizeof(float));
        kernel(left, a_panel, right, steps, edge, nr, add);
        for (int64_t r = 0; r < rows; ++r) std::memcpy(out + r * stride, edge + r * nr, columns * sizeof(float));
      }
    }
  }
  _tile_release();
}

}  // namespace
}  // namespace OFA_ISA
}  // namespace ofa
