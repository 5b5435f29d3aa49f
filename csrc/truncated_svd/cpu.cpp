#include <algorithm>

#include "gemm.h"
#include "parallel.h"
#include "truncated_svd/truncated_svd.h"
#include "workspace.h"

namespace ofa::truncated_svd {
namespace {

constexpr int64_t panel = 256;  // rows summed in float32; keeps both packed operands in the first-level cache
constexpr int64_t group = 4;    // panels between two barriers of the threads
constexpr int64_t strip = 64;   // columns of the Gram matrix to a task: a multiple of every micro-kernel's nr

struct Scratch {
  Workspace::Array<float> left, right, product;
  Scratch(Workspace& workspace, int64_t columns, int threads)
      : left(workspace, packed_size(columns, panel, OFA_SELECT(gemm).mr) * group),
        right(workspace, packed_size(columns, panel, OFA_SELECT(gemm).nr) * group),
        product(workspace, columns * strip, threads) {}
};

}  // namespace

int64_t gram_workspace(int64_t columns, int threads) {
  Workspace measure;
  Scratch(measure, columns, threads);
  return measure.bytes();
}

void gram(Tensor matrix_tensor, Tensor gram_tensor, Tensor workspace, int threads) {
  const int64_t rows = matrix_tensor.size(0), columns = matrix_tensor.size(1);
  const Dtype dtype = matrix_tensor.dtype();
  const int64_t item = dtype == Dtype::f32 ? 4 : 2;
  const char* matrix = static_cast<const char*>(matrix_tensor.data("matrix", {rows, columns}));
  double* sums = gram_tensor.data<double>("gram", {columns, columns});
  std::fill(sums, sums + columns * columns, 0.0);

  const GemmTable& gemm = OFA_SELECT(gemm);
  Workspace memory(workspace);
  Scratch scratch(memory, columns, threads);
  float *left = scratch.left.of(0), *right = scratch.right.of(0);
  const int64_t left_size = packed_size(columns, panel, gemm.mr), right_size = packed_size(columns, panel, gemm.nr);
  const int64_t strips = ceil_div(columns, strip), panels = ceil_div(rows, panel);
  const auto depth_of = [&](int64_t p) { return std::min(panel, rows - p * panel); };

  for (int64_t begin = 0; begin < panels; begin += group) {
    const int64_t end = std::min(begin + group, panels);
    parallel_for((end - begin) * 2, threads, [&](int64_t task, int) {
      const int64_t p = begin + task / 2, slot = task / 2;
      const bool is_left = task % 2;
      gemm.pack_columns(matrix + p * panel * columns * item, dtype, columns, columns, depth_of(p),
                        is_left ? gemm.mr : gemm.nr, is_left ? left + slot * left_size : right + slot * right_size);
    });
    // The upper triangle only; the longest strips first, so that no thread is left with one at the end.
    parallel_for(strips, threads, [&](int64_t task, int worker) {
      const int64_t first = (strips - 1 - task) * strip, width = std::min(strip, columns - first);
      const int64_t height = first + width;
      float* product = scratch.product.of(worker);
      for (int64_t p = begin; p < end; ++p) {
        const int64_t slot = p - begin, depth = depth_of(p);
        gemm.multiply(left + slot * left_size, right + slot * right_size + first * depth, height, width, depth, product,
                      strip, false);
        for (int64_t i = 0; i < height; ++i)
          for (int64_t j = 0; j < width; ++j) sums[i * columns + first + j] += product[i * strip + j];
      }
    });
  }
  for (int64_t i = 0; i < columns; ++i)
    for (int64_t j = 0; j < i; ++j) sums[i * columns + j] = sums[j * columns + i];
}

}  // namespace ofa::truncated_svd
