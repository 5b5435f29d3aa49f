// Packed panels and the micro-kernel on AMX, for gemm_simd.cpp.
//
// A panel of `width` rows: 64 bytes that tell how many parts its floats have, then its blocks of 16 rows, for each
// every 32 depths, for these every part: a tile of 1 KiB. A tile of the left operand is 16 rows of 16 words, a word
// holds depths i and i + 16; one of the right operand is its transpose.
#pragma once

#include "amx.h"
#include "gemm.h"

namespace ofa {
namespace OFA_ISA {
namespace {
namespace parts {

constexpr int mr = 16, nr = 32;
constexpr int64_t header = 16;                  // words
constexpr int64_t step = 32, block_steps = 32;  // depths of a tile; tiles after which sums leave the accumulators

constexpr int parts_of(Dtype dtype) { return dtype == Dtype::f32 ? 3 : dtype == Dtype::f16 ? 2 : 1; }

int64_t panel_size(int64_t depth, int width) { return header + operand_words(width, depth); }

int parts_in(const float* panel) {
  int32_t count;
  std::memcpy(&count, panel, sizeof count);
  return count;
}

// The tile of the first part of rows r.. at depths d...
float* tile_at(float* packed, int width, int64_t size, int64_t depth, int parts, int64_t r, int64_t d) {
  const int64_t steps = ceil_div(depth, step);
  return packed + r / width * size + header + (r % width / 16 * steps + d / step) * parts * unit;
}

void write_headers(float* packed, int64_t rows, int64_t size, int width, int used) {
  const int32_t first[header] = {used};
  for (int64_t r = 0; r < rows; r += width) std::memcpy(packed + r / width * size, first, sizeof first);
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
      __m512i rows_of_words[used][16];
#pragma GCC unroll 4
      for (int i = 0; i < 16; ++i) {
        const Split a = split<used>(by_row ? load_at(r + i, d) : load_at(r, d + i));
        const Split b = split<used>(by_row ? load_at(r + i, d + 16) : load_at(r, d + i + 16));
#pragma GCC unroll 3
        for (int p = 0; p < used; ++p) rows_of_words[p][i] = words(a, b, p);
      }
      float* as_left = left && r < ceil_div(rows, mr) * mr ? tile_at(left, mr, left_size, depth, used, r, d) : nullptr;
      float* as_right = right ? tile_at(right, nr, right_size, depth, used, r, d) : nullptr;
      float *direct = by_row ? as_left : as_right, *transposed = by_row ? as_right : as_left;
#pragma GCC unroll 3
      for (int p = 0; p < used; ++p) {
        auto write = [&](float* tile) {
#pragma GCC unroll 16
          for (int i = 0; i < 16; ++i) _mm512_storeu_si512(tile + p * unit + 16 * i, rows_of_words[p][i]);
        };
        if (direct) write(direct);
        if (!transposed) continue;
        transpose(rows_of_words[p]);
        write(transposed);
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
                                 return load_some<constant.value>(src, at, inside);
                               });
  });
}

void pack_both(const void* src, Dtype dtype, int64_t stride, int64_t rows, int64_t depth, float* left, float* right) {
  with_dtype(dtype, [&](auto constant) {
    pack<constant.value, false>(rows, depth, left, right, [&](int64_t r, int64_t d) {
      const int64_t inside = d < depth ? rows - r : 0;
      return load_some<constant.value>(src, inside > 0 ? d * stride + r : 0, inside);
    });
  });
}

void pack_columns(const void* src, Dtype dtype, int64_t stride, int64_t rows, int64_t depth, int width, float* packed) {
  pack_both(src, dtype, stride, rows, depth, width == mr ? packed : nullptr, width == nr ? packed : nullptr);
}

using Kernel = void (*)(const uint32_t*, int64_t, const uint32_t*, int64_t, int64_t, float*, int64_t);

template <int m>
constexpr Kernel kernels[3][3] = {{multiply_block<m, 2, 1, 1>, multiply_block<m, 2, 1, 2>, multiply_block<m, 2, 1, 3>},
                                  {multiply_block<m, 2, 2, 1>, multiply_block<m, 2, 2, 2>, multiply_block<m, 2, 2, 3>},
                                  {multiply_block<m, 2, 3, 1>, multiply_block<m, 2, 3, 2>, multiply_block<m, 2, 3, 3>}};

void multiply(const float* a, const float* b, int64_t m, int64_t n, int64_t depth, float* c, int64_t stride,
              bool accumulate) {
  const int64_t a_panel = panel_size(depth, mr), b_panel = panel_size(depth, nr), steps = ceil_div(depth, step);
  const int a_parts = parts_in(a), b_parts = parts_in(b);
  const Kernel one = kernels<1>[a_parts - 1][b_parts - 1], two = kernels<2>[a_parts - 1][b_parts - 1];
  start_products();
  for (int64_t s = 0; s == 0 || s < steps; s += block_steps) {
    const int64_t count = steps - s < block_steps ? steps - s : block_steps;
    const bool add = accumulate || s > 0;
    for (int64_t j = 0; j < n; j += nr) {
      const float* right = b + j / nr * b_panel + header + s * b_parts * unit;
      for (int64_t i = 0; i < m; i += 2 * mr) {
        const float* left = a + i / mr * a_panel + header + s * a_parts * unit;
        float* out = c + i * stride + j;
        const int64_t rows = m - i < 2 * mr ? m - i : 2 * mr, columns = n - j < nr ? n - j : nr;
        alignas(64) float product[2 * mr * nr];
        const bool direct = !add && rows % mr == 0 && columns == nr;
        (rows > mr ? two : one)(reinterpret_cast<const uint32_t*>(left), a_panel,
                                reinterpret_cast<const uint32_t*>(right), steps * b_parts * unit, count,
                                direct ? out : product, direct ? stride : nr);
        for (int64_t r = 0; r < rows && !direct; ++r)
          for (int64_t k = 0; k < columns; k += lanes) {
            const __mmask16 inside = columns - k >= lanes ? 0xffff : (1 << (columns - k)) - 1;
            __m512 sum = _mm512_load_ps(product + r * nr + k);
            if (add) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(inside, out + r * stride + k));
            _mm512_mask_storeu_ps(out + r * stride + k, inside, sum);
          }
      }
    }
  }
  finish_products();
}

}  // namespace parts
}  // namespace
}  // namespace OFA_ISA
}  // namespace ofa
