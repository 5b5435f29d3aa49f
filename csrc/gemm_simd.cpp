#if defined(__AMX_INT8__)
#  include "gemm_amx.h"
#  include "gemm_digits.h"
#else
#  include "gemm_fma.h"
#endif

namespace ofa {
namespace OFA_ISA {
namespace {

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

#define OFA_GEMM(way)                                                                 \
  {way::mr,        way::nr,       way::panel_size, way::pack_rows, way::pack_columns, \
   way::pack_both, way::multiply, to_float,        from_float,     add_to_double}
#if defined(__AMX_INT8__)
extern const GemmTable gemm = OFA_GEMM(parts), gemm_normwise = OFA_GEMM(digits);
#else
extern const GemmTable gemm = OFA_GEMM(floats), gemm_normwise = OFA_GEMM(floats);
#endif

}  // namespace OFA_ISA
}  // namespace ofa
