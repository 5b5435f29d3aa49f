// The matrix product that the fused kernels are made of, to float32 accuracy: packed panels and one register-blocked
// micro-kernel. What a panel holds is the instruction set's own affair.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "isa.h"

namespace ofa {

struct GemmTable {
  int mr, nr;  // panel widths of the left and of the right operand: they differ, and tell a packing which it is for

  // Floats of one panel of `width` rows.
  int64_t (*panel_size)(int64_t depth, int width);
  // Packs `rows` rows of `depth` elements into ceil(rows / width) panels, the last one padded with zeros. Row r lies at
  // src + (index ? index[r] : r) * stride elements.
  void (*pack_rows)(const void* src, Dtype dtype, int64_t stride, const int64_t* index, int64_t rows, int64_t depth,
                    int width, float* packed);
  // The same panels from the transposed layout: element (row r, d) lies at src + d * stride + r.
  void (*pack_columns)(const void* src, Dtype dtype, int64_t stride, int64_t rows, int64_t depth, int width,
                       float* packed);
  // Both operands of aT a, for src = a with `rows` columns: pack_columns for either side.
  void (*pack_both)(const void* src, Dtype dtype, int64_t stride, int64_t rows, int64_t depth, float* left,
                    float* right);
  // c[m, n] = a bT, or c += a bT; a and b packed with widths mr and nr, the same depth, c row-major.
  // Every element is summed over d in the same order, whatever m and n. Operands that are not finite give NaN.
  void (*multiply)(const float* a, const float* b, int64_t m, int64_t n, int64_t depth, float* c, int64_t stride,
                   bool accumulate);
  // count elements of another dtype to or from floats
  void (*to_float)(const void* src, Dtype dtype, int64_t count, float* dst);
  void (*from_float)(const float* src, int64_t count, void* dst, Dtype dtype);
  // to[rows, columns] += from, a block of the same shape
  void (*add_to_double)(const float* from, int64_t from_stride, int64_t rows, int64_t columns, double* to,
                        int64_t to_stride);
};

// Errors as in float32 arithmetic: relative to the sum of the magnitudes of a product's terms.
OFA_DECLARE_TABLE(GemmTable, gemm)
// Errors relative to the product of two vectors' norms, no larger than those of float32 arithmetic are for most
// vectors, but much larger for single products of vectors whose elements differ by orders of magnitude. Faster on AMX.
OFA_DECLARE_TABLE(GemmTable, gemm_normwise)

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Floats that `rows` rows take when packed.
static inline int64_t packed_size(const GemmTable& gemm, int64_t rows, int64_t depth, int width) {
  return ceil_div(rows, width) * gemm.panel_size(depth, width);
}
static inline int64_t packed_size(int64_t rows, int64_t depth, int width) {
  return packed_size(OFA_SELECT(gemm), rows, depth, width);
}

}  // namespace ofa
