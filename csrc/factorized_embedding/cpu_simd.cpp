#include "factorized_embedding/kernels.h"
#include "simd.h"

namespace ofa {
namespace OFA_ISA {
namespace {

constexpr int64_t step = 64;  // columns between two requests for the next row

// sum = row, or sum += row
template <Dtype dtype, bool begin>
inline void add_row(const char* row, const char* next, int64_t columns, float* __restrict sum) {
  constexpr int64_t size = dtype == Dtype::f32 ? 4 : 2;
  int64_t c = 0;
  for (; c + step <= columns; c += step) {
    for (int64_t at = 0; at < step * size; at += 64) __builtin_prefetch(next + c * size + at);
    for (int64_t i = c; i < c + step; ++i) sum[i] = (begin ? 0.0f : sum[i]) + load_as_float(row, dtype, i);
  }
  for (; c < columns; ++c) sum[c] = (begin ? 0.0f : sum[c]) + load_as_float(row, dtype, c);
}

void sum_all(const void* src, Dtype dtype, int64_t stride, const int64_t* order, const int64_t* first, int64_t segments,
             int64_t columns, float* sums) {
  with_dtype(dtype, [&](auto constant) {
    constexpr Dtype type = constant.value;
    constexpr int64_t size = type == Dtype::f32 ? 4 : 2;
    const auto at = [&](int64_t i) { return static_cast<const char*>(src) + order[i] * stride * size; };
    const int64_t last = first[segments] - 1, ahead = columns < 512 ? 1024 / columns + 1 : 1;
    for (int64_t s = 0; s < segments; ++s, sums += stride)
      for (int64_t i = first[s]; i < first[s + 1]; ++i) {
        const char* next = at(i + ahead < last ? i + ahead : last);
        if (i == first[s])
          add_row<type, true>(at(i), next, columns, sums);
        else
          add_row<type, false>(at(i), next, columns, sums);
      }
  });
}

}  // namespace

extern const SumSegments sum_segments = sum_all;

}  // namespace OFA_ISA
}  // namespace ofa
