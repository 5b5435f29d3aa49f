#include <algorithm>
#include <numeric>
#include <vector>

#include "gemm.h"
#include "huge_pages.h"
#include "parallel.h"
#include "truncated_svd/kernels.h"
#include "truncated_svd/truncated_svd.h"
#include "workspace.h"

namespace ofa::truncated_svd {
namespace {

constexpr int64_t panel = 768;  // rows packed at once, and summed in float32
constexpr int64_t block = 128;  // rows of a result to a task, about: they stay packed in the second-level cache
constexpr int64_t strip = 256;  // columns of the Gram matrix to a task
constexpr int64_t narrow = 32;  // of those multiplied at a time: a multiple of every micro-kernel's nr
constexpr int64_t groups = 64;  // of rows of U, a task each, so that their order is the same for any number of threads

int64_t block_rows() { return block / OFA_SELECT(gemm_normwise).mr * OFA_SELECT(gemm_normwise).mr; }

struct GramScratch {
  Workspace::Array<float> left, right, product;
  GramScratch(Workspace& workspace, int64_t columns, int threads)
      : left(workspace, packed_size(OFA_SELECT(gemm_normwise), columns, panel, OFA_SELECT(gemm_normwise).mr)),
        right(workspace, packed_size(OFA_SELECT(gemm_normwise), columns, panel, OFA_SELECT(gemm_normwise).nr)),
        product(workspace, block * narrow, threads) {}
};

// sums += panelᵀ panel, panel by panel.
class GramSum {
 public:
  GramSum(int64_t columns, double* sums, const GramScratch& scratch, int threads)
      : columns_(columns), sums_(sums), scratch_(scratch), threads_(threads) {
    std::fill(sums, sums + columns * columns, 0.0);
    for (int64_t row = 0; row < columns; row += block_rows())  // tasks that cover the upper triangle
      for (int64_t first = row / narrow * narrow; first < columns; first = (first / strip + 1) * strip)
        tasks_.push_back({row, first, std::min((first / strip + 1) * strip, columns)});
  }

  void add(const char* rows, Dtype dtype, int64_t depth) {
    float *left = scratch_.left.of(0), *right = scratch_.right.of(0);
    const int64_t left_panel = gemm_.panel_size(depth, gemm_.mr), right_panel = gemm_.panel_size(depth, gemm_.nr);
    const int64_t whole = std::lcm(gemm_.mr, gemm_.nr), unit = std::max<int64_t>(block / whole, 1) * whole;
    parallel_for(ceil_div(columns_, unit), threads_, [&](int64_t task, int) {
      const int64_t first = task * unit;
      gemm_.pack_both(rows + first * item_size(dtype), dtype, columns_, std::min(unit, columns_ - first), depth,
                      left + first / gemm_.mr * left_panel, right + first / gemm_.nr * right_panel);
    });
    parallel_for(tasks_.size(), threads_, [&](int64_t number, int worker) {
      const auto [i, first, last] = tasks_[number];
      float* product = scratch_.product.of(worker);
      for (int64_t j = first; j < last; j += narrow) {
        const int64_t width = std::min(narrow, last - j);
        const int64_t above = ceil_div(j + width - i, gemm_.mr) * gemm_.mr;  // rows down to the diagonal
        const int64_t height = std::min({block_rows(), columns_ - i, above});
        gemm_.multiply(left + i / gemm_.mr * left_panel, right + j / gemm_.nr * right_panel, height, width, depth,
                       product, narrow, false);
        gemm_.add_to_double(product, narrow, height, width, sums_ + i * columns_ + j, columns_);
      }
    });
  }

  void finish() {
    for (int64_t i = 0; i < columns_; ++i)
      for (int64_t j = 0; j < i; ++j) sums_[i * columns_ + j] = sums_[j * columns_ + i];
  }

 private:
  struct Task {
    int64_t row, first, last;
  };

  const GemmTable& gemm_ = OFA_SELECT(gemm_normwise);
  const int64_t columns_;
  double* sums_;
  const GramScratch& scratch_;
  const int threads_;
  std::vector<Task> tasks_;
};

struct ProductScratch {
  Workspace::Array<float> left, right, images;
  Workspace::Array<double> sums;
  ProductScratch(Workspace& workspace, int64_t depth, int64_t columns, int threads)
      : left(workspace, packed_size(OFA_SELECT(gemm_normwise), block, depth, OFA_SELECT(gemm_normwise).mr), threads),
        right(workspace, packed_size(OFA_SELECT(gemm_normwise), columns, depth, OFA_SELECT(gemm_normwise).nr)),
        images(workspace, columns * probes, threads),
        sums(workspace, columns * probes, groups) {}
};

}  // namespace

int64_t gram_workspace(int64_t columns, int threads) {
  Workspace measure;
  GramScratch(measure, columns, threads);
  return measure.bytes();
}

void gram(Tensor matrix_tensor, Tensor gram_tensor, Tensor workspace, int threads) {
  const int64_t rows = matrix_tensor.size(0), columns = matrix_tensor.size(1);
  const Dtype dtype = matrix_tensor.dtype();
  const char* matrix = static_cast<const char*>(matrix_tensor.data("matrix", {rows, columns}));
  double* sums = gram_tensor.data<double>("gram", {columns, columns});

  Workspace memory(workspace);
  const GramScratch scratch(memory, columns, threads);
  GramSum sum(columns, sums, scratch, threads);
  for (int64_t row = 0; row < rows; row += panel)
    sum.add(matrix + row * columns * item_size(dtype), dtype, std::min(panel, rows - row));
  sum.finish();
}

int64_t product_workspace(int64_t depth, int64_t columns, int threads) {
  Workspace measure;
  ProductScratch(measure, depth, columns, threads);
  return measure.bytes();
}

void product(Tensor matrix_tensor, Tensor right_tensor, Tensor vectors_tensor, Tensor out_tensor, Tensor images_tensor,
             Tensor workspace, int threads) {
  const int64_t rows = matrix_tensor.size(0), depth = matrix_tensor.size(1), columns = right_tensor.size(1);
  const Dtype dtype = matrix_tensor.dtype();
  const char* matrix = static_cast<const char*>(matrix_tensor.data("matrix", {rows, depth}));
  const float* right = right_tensor.data<float>("right", {depth, columns});
  const float* vectors = vectors_tensor.data<float>("vectors", {columns, probes});
  float* out = out_tensor.data<float>("out", {rows, columns});
  double* images = images_tensor.data<double>("images", {columns, probes});
  fault_in(out, rows * columns * sizeof(float), threads, [](int64_t, int64_t) { return true; });

  const GemmTable& gemm = OFA_SELECT(gemm_normwise);
  const AddImages add_images = OFA_SELECT(add_images);
  Workspace memory(workspace);
  const ProductScratch scratch(memory, depth, columns, threads);
  gemm.pack_columns(right, Dtype::f32, columns, columns, depth, gemm.nr, scratch.right.of(0));
  const int64_t group = ceil_div(rows, groups * block_rows()) * block_rows(), count = columns * probes;
  const int64_t tasks = ceil_div(rows, group);
  parallel_for(tasks, threads, [&](int64_t task, int worker) {
    float *left = scratch.left.of(worker), *image = scratch.images.of(worker);
    double* sum = scratch.sums.of(task);
    std::fill(sum, sum + count, 0.0);
    for (int64_t row = task * group, end = std::min(row + group, rows); row < end; row += block_rows()) {
      const int64_t height = std::min(block_rows(), end - row);
      float* result = out + row * columns;
      gemm.pack_rows(matrix + row * depth * item_size(dtype), dtype, depth, nullptr, height, depth, gemm.mr, left);
      gemm.multiply(left, scratch.right.of(0), height, columns, depth, result, columns, false);
      std::fill(image, image + count, 0.0f);
      add_images(result, height, columns, vectors, image);
      gemm.add_to_double(image, count, 1, count, sum, count);
    }
  });
  std::fill(images, images + count, 0.0);
  for (int64_t task = 0; task < tasks; ++task)
    for (int64_t i = 0; i < count; ++i) images[i] += scratch.sums.of(task)[i];
}

}  // namespace ofa::truncated_svd
