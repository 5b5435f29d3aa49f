#include "gemm_fma.h"
#if defined(__AMX_INT8__)
#  include "gemm_amx.h"
#endif

namespace ofa {
namespace OFA_ISA {
namespace {

#if !defined(__AMX_INT8__)
using namespace floats;
#endif

void to_float(const void* src, Dtype dtype, int64_t count, float* dst) {
  with_dtype(dtype, [&](auto constant) {
    for (int64_t i = 0; i < count; ++i) dst[i] = load_as_float(src, constant.value, i);
  });
}

void from_float(const float* src, int64_t count, void* dst, Dtype dtype) {
  with_dtype(dtype, [&](auto constant) {
    for (int64_t i = 0; i < count; ++i) store_from_float(dst, constant.value, i, src[i]);
  });
}

void add_to_double(const float* from, int64_t from_stride, int64_t rows, int64_t columns, double* to,
                   int64_t to_stride) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) to[i * to_stride + j] += from[i * from_stride + j];
}

}  // namespace

extern const GemmTable gemm = {mr,        nr,       panel_size, pack_rows,  pack_columns,
                               pack_both, multiply, to_float,   from_float, add_to_double};

}  // namespace OFA_ISA
}  // namespace ofa
