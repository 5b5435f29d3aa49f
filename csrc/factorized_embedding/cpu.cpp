#include <algorithm>
#include <cstring>

#include "factorized_embedding/factorized_embedding.h"
#include "gemm.h"
#include "parallel.h"
#include "workspace.h"

namespace ofa::factorized_embedding {
namespace {

constexpr int64_t block = 224;  // rows of one task: a multiple of every micro-kernel's mr
constexpr int64_t chunks = 16;  // partial sums of the basis gradient: fixed, so that threads do not change the result

void check_ids(const int64_t* ids, int64_t tokens, int64_t vocabulary) {
  for (int64_t t = 0; t < tokens; ++t)
    if (ids[t] < 0 || ids[t] >= vocabulary)
      throw std::out_of_range("input_ids must lie in [0, " + std::to_string(vocabulary) + "), got " +
                              std::to_string(ids[t]) + " at position " + std::to_string(t));
}

size_t item_size(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

struct ForwardScratch {
  Workspace::Array<float> basis, rows, product;
  ForwardScratch(Workspace& workspace, int64_t rank, int64_t width, int threads)
      : basis(workspace, packed_size(width, rank, OFA_SELECT(gemm).nr)),
        rows(workspace, packed_size(block, rank, OFA_SELECT(gemm).mr), threads),
        product(workspace, block * width, threads) {}
};

struct BackwardScratch {
  Workspace::Array<int64_t> order, first;  // tokens sorted by id; where each distinct id begins
  Workspace::Array<float> basis, sums, packed_sums, rows, packed_rows, partial;
  BackwardScratch(Workspace& workspace, int64_t tokens, int64_t rank, int64_t width, int threads)
      : order(workspace, tokens),
        first(workspace, tokens + 1),
        basis(workspace, packed_size(rank, width, OFA_SELECT(gemm).nr)),
        sums(workspace, block * width, threads),
        packed_sums(
            workspace,
            std::max(packed_size(block, width, OFA_SELECT(gemm).mr), packed_size(width, block, OFA_SELECT(gemm).nr)),
            threads),
        rows(workspace, block * rank, threads),
        packed_rows(workspace, packed_size(rank, block, OFA_SELECT(gemm).mr), threads),
        partial(workspace, chunks * rank * width) {}
};

}  // namespace

int64_t forward_workspace(int64_t, int64_t rank, int64_t width, int threads) {
  Workspace measure;
  ForwardScratch(measure, rank, width, threads);
  return measure.bytes();
}

int64_t backward_workspace(int64_t tokens, int64_t rank, int64_t width, int threads) {
  Workspace measure;
  BackwardScratch(measure, tokens, rank, width, threads);
  return measure.bytes();
}

void forward(Tensor ids_tensor, Tensor coordinates_tensor, Tensor basis_tensor, Tensor out_tensor, Tensor workspace,
             int threads) {
  const int64_t tokens = ids_tensor.numel(), vocabulary = coordinates_tensor.size(0), rank = basis_tensor.size(0),
                width = basis_tensor.size(1);
  const Dtype dtype = coordinates_tensor.dtype();
  const int64_t* ids = ids_tensor.data<int64_t>("input_ids", {tokens});
  const void* coordinates = coordinates_tensor.data("coordinates", {vocabulary, rank});
  const void* basis = basis_tensor.data("basis", {rank, width});
  char* out = static_cast<char*>(out_tensor.data("out", {tokens, width}));
  check_ids(ids, tokens, vocabulary);

  const GemmTable& gemm = OFA_SELECT(gemm);
  Workspace memory(workspace);
  ForwardScratch scratch(memory, rank, width, threads);
  gemm.pack_columns(basis, dtype, width, width, rank, gemm.nr, scratch.basis.of(0));
  parallel_for(ceil_div(tokens, block), threads, [&](int64_t task, int worker) {
    const int64_t begin = task * block, rows = std::min(block, tokens - begin);
    char* target = out + begin * width * item_size(dtype);
    gemm.pack_rows(coordinates, dtype, rank, ids + begin, rows, rank, gemm.mr, scratch.rows.of(worker));
    float* product = dtype == Dtype::f32 ? reinterpret_cast<float*>(target) : scratch.product.of(worker);
    gemm.multiply(scratch.rows.of(worker), scratch.basis.of(0), rows, width, rank, product, width, false);
    if (dtype != Dtype::f32) gemm.from_float(product, rows * width, target, dtype);
  });
}

void backward(Tensor grad_out_tensor, Tensor ids_tensor, Tensor coordinates_tensor, Tensor basis_tensor,
              Tensor grad_coordinates_tensor, Tensor grad_basis_tensor, Tensor workspace, int threads) {
  const int64_t tokens = ids_tensor.numel(), vocabulary = coordinates_tensor.size(0), rank = basis_tensor.size(0),
                width = basis_tensor.size(1);
  const Dtype dtype = coordinates_tensor.dtype();
  const char* grad_out = static_cast<const char*>(grad_out_tensor.data("grad_out", {tokens, width}));
  const int64_t* ids = ids_tensor.data<int64_t>("input_ids", {tokens});
  const void* coordinates = coordinates_tensor.data("coordinates", {vocabulary, rank});
  const void* basis = basis_tensor.data("basis", {rank, width});
  char* grad_coordinates = static_cast<char*>(grad_coordinates_tensor.data("grad_coordinates", {vocabulary, rank}));
  void* grad_basis = grad_basis_tensor.data("grad_basis", {rank, width});
  check_ids(ids, tokens, vocabulary);

  const GemmTable& gemm = OFA_SELECT(gemm);
  Workspace memory(workspace);
  BackwardScratch scratch(memory, tokens, rank, width, threads);

  int64_t *order = scratch.order.of(0), *first = scratch.first.of(0), distinct = 0;
  for (int64_t t = 0; t < tokens; ++t) order[t] = t;
  std::sort(order, order + tokens, [&](int64_t a, int64_t b) { return ids[a] != ids[b] ? ids[a] < ids[b] : a < b; });
  for (int64_t t = 0; t < tokens; ++t)
    if (t == 0 || ids[order[t]] != ids[order[t - 1]]) first[distinct++] = t;
  first[distinct] = tokens;

  gemm.pack_rows(basis, dtype, width, nullptr, rank, width, gemm.nr, scratch.basis.of(0));
  float* partial = scratch.partial.of(0);
  std::memset(partial, 0, sizeof(float) * chunks * rank * width);
  const int64_t blocks = ceil_div(distinct, block);
  parallel_for(std::min(chunks, blocks), threads, [&](int64_t chunk, int worker) {
    float* sums = scratch.sums.of(worker);
    float* grad_rows = scratch.rows.of(worker);
    int64_t ids_of_block[block];
    for (int64_t b = chunk; b < blocks; b += chunks) {
      const int64_t begin = b * block, rows = std::min(block, distinct - begin);
      for (int64_t r = 0; r < rows; ++r) {
        ids_of_block[r] = ids[order[first[begin + r]]];
        gemm.sum_rows(grad_out, dtype, order + first[begin + r], first[begin + r + 1] - first[begin + r], width,
                      sums + r * width);
      }
      // dF_u = G_u Pᵀ for the distinct rows u, then this chunk's part of dP = F_uᵀ G_u
      gemm.pack_rows(sums, Dtype::f32, width, nullptr, rows, width, gemm.mr, scratch.packed_sums.of(worker));
      gemm.multiply(scratch.packed_sums.of(worker), scratch.basis.of(0), rows, rank, width, grad_rows, rank, false);
      for (int64_t r = 0; r < rows; ++r)
        gemm.from_float(grad_rows + r * rank, rank, grad_coordinates + ids_of_block[r] * rank * item_size(dtype),
                        dtype);

      for (int64_t r = 0; r < rows; ++r)
        gemm.to_float(static_cast<const char*>(coordinates) + ids_of_block[r] * rank * item_size(dtype), dtype, rank,
                      grad_rows + r * rank);
      gemm.pack_columns(grad_rows, Dtype::f32, rank, rank, rows, gemm.mr, scratch.packed_rows.of(worker));
      gemm.pack_columns(sums, Dtype::f32, width, width, rows, gemm.nr, scratch.packed_sums.of(worker));
      gemm.multiply(scratch.packed_rows.of(worker), scratch.packed_sums.of(worker), rank, width, rows,
                    partial + chunk * rank * width, width, true);
    }
  });
  for (int64_t chunk = 1; chunk < std::min(chunks, blocks); ++chunk)
    for (int64_t i = 0; i < rank * width; ++i) partial[i] += partial[chunk * rank * width + i];
  gemm.from_float(partial, rank * width, grad_basis, dtype);
}

}  // namespace ofa::factorized_embedding
