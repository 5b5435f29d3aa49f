// Packed panels and the micro-kernel by int8 digits on AMX, for gemm_simd.cpp.
//
// A panel of `width` rows: their exponents, then its blocks of 16 rows, for each every 64 depths, for these every
// digit: a tile of 1 KiB. A tile of the left operand is 16 rows of 16 words, one of the right operand its transpose.
#pragma once

#include "digits.h"
#include "gemm.h"

namespace ofa {
namespace OFA_ISA {
namespace {
namespace digits {

constexpr int mr = 16, nr = 32;

int64_t block_size(int64_t depth) { return ceil_div(depth, tile_depth) * digit_count * unit; }
int64_t panel_size(int64_t depth, int width) { return width + width / 16 * block_size(depth); }

// The matrix to pack; a vector of it is 16 elements in the order of memory: depths d, d + 1, ... of row r where by_row,
// else rows r, r + 1, ... at depth d.
template <Dtype dtype, bool by_row>
struct Source {
  const void* data;
  int64_t stride;
  const int64_t* index;
  int64_t rows, depth;

  vfloat load(int64_t r, int64_t d) const {
    const int64_t inside = by_row ? (r < rows ? depth - d : 0) : (d < depth ? rows - r : 0);
    return load_some<dtype>(data, inside > 0 ? at(r, d) : 0, inside);
  }
  int64_t at(int64_t r, int64_t d) const { return by_row ? (index ? index[r] : r) * stride + d : d * stride + r; }
};

// The exponents of 16 * count rows; 16 where by_row, else in the order of memory.
template <int count, class Source>
inline void find_exponents(const Source& source, int64_t r, bool by_row, float* out) {
  vint largest[count] = {};
  for (int i = 0; i < 16 && by_row; ++i) {
    vint row{};
    for (int64_t d = 0; d < source.depth; d += 16) row = larger_of(row, magnitude(source.load(r + i, d)));
    largest[0][i] = _mm512_reduce_max_epi32(reinterpret_cast<__m512i>(row));
  }
  for (int64_t d = 0; d < source.depth && !by_row; ++d)
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) largest[i] = larger_of(largest[i], magnitude(source.load(r + 16 * i, d)));
  for (int i = 0; i < count; ++i) store(out + 16 * i, exponents(largest[i]));
}

// Packs as left or right operand or both.
template <Dtype dtype, bool by_row>
void pack(const Source<dtype, by_row>& source, float* left, float* right) {
  const int64_t depth = source.depth, end = ceil_div(source.rows, right ? nr : mr) * (right ? nr : mr);
  constexpr int at_once = by_row ? 1 : 8;
  for (int64_t group = 0; group < end; group += 16 * at_once) {
    alignas(64) float k[16 * at_once];
    find_exponents<at_once>(source, group, by_row, k);
    const int64_t last = end - group < 16 * at_once ? end : group + 16 * at_once;
    float *as_left[at_once] = {}, *as_right[at_once] = {};
    for (int64_t r = group; r < last; r += 16) {
      const int64_t i = (r - group) / 16;
      if (left && r < ceil_div(source.rows, mr) * mr) {
        float* panel = left + r / mr * panel_size(depth, mr);
        store(panel, load(k + 16 * i));
        as_left[i] = panel + mr;
      }
      if (right) {
        float* panel = right + r / nr * panel_size(depth, nr);
        store(panel + r % nr, load(k + 16 * i));
        as_right[i] = panel + nr + r % nr / 16 * block_size(depth);
      }
    }
    for (int64_t d = 0; d < depth; d += tile_depth)
      for (int64_t r = group; r < last; r += 16) {
        const int64_t number = (r - group) / 16, tile = d / tile_depth * digit_count * unit;
        float *direct = by_row ? as_left[number] : as_right[number],
              *transposed = by_row ? as_right[number] : as_left[number];
        alignas(64) float buffer[digit_count * unit];
        float* out = direct ? direct + tile : buffer;
        const vfloat by_column = load(k + 16 * number);
        for (int i = 0; i < 16; ++i) {
          const Digits digits = by_row ? digits_of(source.load(r + i, d), source.load(r + i, d + 16),
                                                   source.load(r + i, d + 32), source.load(r + i, d + 48), splat(k[i]))
                                       : digits_of(source.load(r, d + i), source.load(r, d + i + 16),
                                                   source.load(r, d + i + 32), source.load(r, d + i + 48), by_column);
#pragma GCC unroll 3
          for (int j = 0; j < digit_count; ++j) _mm512_store_si512(out + j * unit + 16 * i, digits.digit[j]);
        }
        for (int j = 0; j < digit_count && transposed; ++j) {
          __m512i row[16];
#pragma GCC unroll 16
          for (int i = 0; i < 16; ++i) row[i] = _mm512_load_si512(out + j * unit + 16 * i);
          transpose(row);
#pragma GCC unroll 16
          for (int i = 0; i < 16; ++i) _mm512_store_si512(transposed + tile + j * unit + 16 * i, row[i]);
        }
      }
  }
}

void pack_rows(const void* src, Dtype dtype, int64_t stride, const int64_t* index, int64_t rows, int64_t depth,
               int width, float* packed) {
  with_dtype(dtype, [&](auto constant) {
    pack(Source<constant.value, true>{src, stride, index, rows, depth}, width == mr ? packed : nullptr,
         width == nr ? packed : nullptr);
  });
}

void pack_both(const void* src, Dtype dtype, int64_t stride, int64_t rows, int64_t depth, float* left, float* right) {
  with_dtype(dtype, [&](auto constant) {
    pack(Source<constant.value, false>{src, stride, nullptr, rows, depth}, left, right);
  });
}

void pack_columns(const void* src, Dtype dtype, int64_t stride, int64_t rows, int64_t depth, int width, float* packed) {
  pack_both(src, dtype, stride, rows, depth, width == mr ? packed : nullptr, width == nr ? packed : nullptr);
}

void multiply(const float* a, const float* b, int64_t m, int64_t n, int64_t depth, float* c, int64_t stride,
              bool accumulate) {
  const int64_t a_panel = panel_size(depth, mr), b_panel = panel_size(depth, nr), steps = ceil_div(depth, tile_depth);
  start_products();
  for (int64_t s = 0; s == 0 || s < steps; s += most_steps) {
    const int64_t count = steps - s < most_steps ? steps - s : most_steps, from = s * digit_count * unit;
    const bool add = accumulate || s > 0;
    for (int64_t j = 0; j < n; j += nr) {
      const float* right = b + j / nr * b_panel;
      for (int64_t i = 0; i < m; i += 2 * mr) {
        const float* left = a + i / mr * a_panel;
        const int64_t rows = m - i < 2 * mr ? m - i : 2 * mr, columns = n - j < nr ? n - j : nr;
        alignas(64) int32_t sums[orders * sums_of_order];
        (rows > mr ? multiply_digits<2, 2>
                   : multiply_digits<1, 2>)(reinterpret_cast<const uint32_t*>(left + mr + from), a_panel,
                                            reinterpret_cast<const uint32_t*>(right + nr + from), block_size(depth),
                                            count, sums,
                                            right + nr + from + b_panel + i / (2 * mr) % 4 * (b_panel / 4));
        for (int64_t r = 0; r < rows; ++r) {
          const __m512 k = _mm512_set1_ps(left[r / mr * a_panel + r % mr]);
          for (int64_t column = 0; column < columns; column += 16) {
            const __mmask16 inside = columns - column >= 16 ? 0xffff : (1 << (columns - column)) - 1;
            float* out = c + (i + r) * stride + j + column;
            __m512 product = product_of(sums, r, column, _mm512_add_ps(k, _mm512_load_ps(right + column)));
            if (add) product = _mm512_add_ps(product, _mm512_maskz_loadu_ps(inside, out));
            _mm512_mask_storeu_ps(out, inside, product);
          }
        }
      }
    }
  }
  finish_products();
}

}  // namespace digits
}  // namespace
}  // namespace OFA_ISA
}  // namespace ofa
