#include "simd.h"
#include "truncated_svd/kernels.h"

namespace ofa {
namespace OFA_ISA {
namespace {

constexpr int vectors_of_probe = probes / lanes;

template <int count>
void add_rows(const float* rows, int64_t columns, const float* vectors, float* images) {
  vfloat sum[count][vectors_of_probe] = {};
  for (int64_t c = 0; c < columns; ++c)
#pragma GCC unroll 8
    for (int r = 0; r < count; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < vectors_of_probe; ++i)
        sum[r][i] += splat(rows[r * columns + c]) * load(vectors + c * probes + i * lanes);
  for (int64_t c = 0; c < columns; ++c)
#pragma GCC unroll 4
    for (int i = 0; i < vectors_of_probe; ++i) {
      vfloat image[2] = {load(images + c * probes + i * lanes),
                         vfloat{}};  // two sums, which do not wait for each other
#pragma GCC unroll 8
      for (int r = 0; r < count; ++r) image[r % 2] += splat(rows[r * columns + c]) * sum[r][i];
      store(images + c * probes + i * lanes, image[0] + image[1]);
    }
}

void add_all(const float* rows, int64_t count, int64_t columns, const float* vectors, float* images) {
  constexpr int at_once = lanes / 2;  // eight sums
  for (; count >= at_once; count -= at_once, rows += at_once * columns)
    add_rows<at_once>(rows, columns, vectors, images);
  for (; count > 0; --count, rows += columns) add_rows<1>(rows, columns, vectors, images);
}

}  // namespace

extern const AddImages add_images = add_all;

}  // namespace OFA_ISA
}  // namespace ofa
