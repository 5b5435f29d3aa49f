#include <algorithm>
#include <limits>

#include "factorized_embedding/cuda_group.h"
#include "factorized_embedding/cuda_product.h"
#include "factorized_embedding/cuda_sums.h"
#include "factorized_embedding/factorized_embedding.h"
#include "workspace.h"

namespace ofa::factorized_embedding {
namespace {

constexpr int slices = 16;  // of the ids, whose parts of the basis' gradient are summed apart and then added in order
constexpr int64_t most_rows = std::numeric_limits<int32_t>::max();

template <class T>
struct Rows {  // of the result: as they are, or each in its place
  T* data;
  int64_t width, count;
  const int64_t* index;
  __device__ void operator()(int64_t row, int64_t column, float a, float b) const {
    if (row >= count) return;
    T* const to = data + (index ? index[row] : row) * width + column;
    struct alignas(2 * sizeof(T)) Pair {
      T a, b;
    };
    if (column + 1 < width && reinterpret_cast<uintptr_t>(to) % sizeof(Pair) == 0) {
      *reinterpret_cast<Pair*>(to) = {from_float<T>(a), from_float<T>(b)};
      return;
    }
    if (column < width) to[0] = from_float<T>(a);
    if (column + 1 < width) to[1] = from_float<T>(b);
  }
};

template <class T>
__global__ void __launch_bounds__(product_threads, 3) look_up(Lines<T> coordinates, Lines<T> basis, Rows<T> out) {
  multiply_lines<T, false, true>(coordinates, basis, 0, basis.count, out);
}

// G basisT, for the rows of the ids that occur.
template <class T>
__global__ void __launch_bounds__(product_threads, 3)
    project(Lines<float> sums, Lines<T> basis, Rows<T> out, const int64_t* ids) {
  sums.count = out.count = *ids;
  if (static_cast<int64_t>(blockIdx.x) * block_side >= sums.count) return;
  multiply_lines<float, false, false>(sums, basis, 0, basis.width, out);
}

// partial[slice] = coordinates[ids]T G over the ids of one slice.
template <class T>
__global__ void __launch_bounds__(product_threads, 3)
    multiply_transposed(Lines<T> coordinates, Lines<float> sums, Rows<float> partial, const int64_t* ids) {
  const int64_t each = ceil_div<int64_t>(*ids, slices), begin = blockIdx.z * each, end = min(begin + each, *ids);
  coordinates.count = sums.count = end;
  partial.data += blockIdx.z * partial.count * partial.width;
  multiply_lines<float, true, true>(coordinates, sums, begin, end, partial);
}

constexpr int add_threads = 256;
template <class T>
__global__ void __launch_bounds__(add_threads) add_slices(const float* partial, int64_t count, T* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * add_threads + threadIdx.x;
  if (i >= count) return;
  float sum = partial[i];
  for (int slice = 1; slice < slices; ++slice) sum += partial[slice * count + i];
  out[i] = from_float<T>(sum);
}

int64_t blocks_of(int64_t tokens) { return std::max<int64_t>(1, ceil_div<int64_t>(tokens, tile_tokens)); }

struct GroupScratch {
  Workspace::Array<uint32_t> keys;
  Workspace::Array<int32_t> order, counts;
  GroupScratch(Workspace& memory, int64_t tokens)
      : keys(memory, tokens, 2), order(memory, tokens, 2), counts(memory, radix * blocks_of(tokens)) {}
};

struct BackwardScratch {
  Workspace::Array<float> sums, partial, slice_sums;
  BackwardScratch(Workspace& memory, int64_t tokens, int64_t distinct, int64_t rank, int64_t width)
      : sums(memory, distinct * width),
        partial(memory, 2 * ceil_div<int64_t>(tokens, piece) * width),
        slice_sums(memory, slices * rank * width) {}
};

dim3 blocks_for(int64_t rows, int64_t columns, int64_t depth = 1) {
  return dim3(ceil_div<int64_t>(rows, block_side), ceil_div<int64_t>(columns, block_side), depth);
}

}  // namespace

int64_t forward_workspace(int64_t, int64_t, int64_t, int) { return 0; }

int64_t group_workspace(int64_t tokens) {
  Workspace measure;
  GroupScratch(measure, tokens);
  return measure.bytes();
}

int64_t backward_workspace(int64_t tokens, int64_t distinct, int64_t rank, int64_t width, int) {
  Workspace measure;
  BackwardScratch(measure, tokens, distinct, rank, width);
  return measure.bytes();
}

void forward(Tensor ids_tensor, Tensor coordinates_tensor, Tensor basis_tensor, Tensor out_tensor, Tensor, int) {
  const Queue queue(coordinates_tensor);
  const int64_t tokens = ids_tensor.numel(), vocabulary = coordinates_tensor.size(0), rank = basis_tensor.size(0),
                width = basis_tensor.size(1);
  const int64_t* const ids = queue.data<int64_t>(ids_tensor, "input_ids", {tokens});
  const void* const coordinates = queue.data(coordinates_tensor, "coordinates", {vocabulary, rank});
  const void* const basis = queue.data(basis_tensor, "basis", {rank, width});
  void* const out = queue.data(out_tensor, "out", {tokens, width});
  with_element(coordinates_tensor.dtype(), "coordinates", [&](auto element) {
    using T = decltype(element);
    const Lines<T> left{static_cast<const T*>(coordinates), rank, vocabulary, ids, tokens};
    const Lines<T> right{static_cast<const T*>(basis), width, rank, nullptr, rank};
    queue.launch("look_up", look_up<T>, blocks_for(tokens, width), product_threads, 0, left, right,
                 Rows<T>{static_cast<T*>(out), width, tokens, nullptr});
  });
}

void group(Tensor ids_tensor, int64_t vocabulary, int64_t padding_idx, Tensor order_tensor, Tensor first_tensor,
           Tensor distinct_tensor, Tensor count_tensor, Tensor workspace) {
  const Queue queue(ids_tensor);
  const int64_t tokens = ids_tensor.numel(), blocks = blocks_of(tokens);
  if (tokens > most_rows || vocabulary > most_rows)
    throw std::invalid_argument("input_ids and coordinates must have fewer than 2^31 rows");
  const int64_t* const ids = queue.data<int64_t>(ids_tensor, "input_ids", {tokens});
  int64_t* const order = queue.data<int64_t>(order_tensor, "order", {tokens});
  int64_t* const first = queue.data<int64_t>(first_tensor, "first", {tokens + 1});
  int64_t* const distinct = queue.data<int64_t>(distinct_tensor, "distinct", {tokens});
  int64_t* const count = queue.data<int64_t>(count_tensor, "count", {1});
  queue.data<uint8_t>(workspace, "workspace", {workspace.numel()});
  Workspace memory(workspace);
  const GroupScratch scratch(memory, tokens);
  int32_t* const counts = scratch.counts.of(0);

  Tokens from{ids, nullptr, nullptr, tokens, vocabulary, padding_idx};
  for (int shift = 0, pass = 0; shift == 0 || vocabulary >> shift; shift += 8, ++pass) {
    uint32_t* const keys = scratch.keys.of(pass % 2);
    int32_t* const sorted = scratch.order.of(pass % 2);
    queue.launch("count_digits", count_digits, dim3(blocks), group_threads, 0, from, shift, counts);
    queue.launch("accumulate", accumulate, dim3(1), group_threads, 0, counts, radix * blocks);
    queue.launch("place_tokens", place_tokens, dim3(blocks), group_threads, 0, from, shift, counts, keys, sorted);
    from = Tokens{nullptr, keys, sorted, tokens, vocabulary, padding_idx};
  }
  queue.launch("count_heads", count_heads, dim3(blocks), group_threads, 0, from.keys, tokens, vocabulary, counts);
  queue.launch("accumulate", accumulate, dim3(1), group_threads, 0, counts, blocks);
  queue.launch("write_groups", write_groups, dim3(blocks), group_threads, 0, from.keys, from.order, tokens, vocabulary,
               counts, order, first, distinct, count);
}

void backward(Tensor grad_out_tensor, Tensor order_tensor, Tensor first_tensor, Tensor distinct_tensor,
              Tensor count_tensor, Tensor coordinates_tensor, Tensor basis_tensor, Tensor grad_coordinates_tensor,
              Tensor grad_basis_tensor, Tensor workspace, int) {
  const Queue queue(coordinates_tensor);
  const int64_t tokens = order_tensor.numel(), vocabulary = coordinates_tensor.size(0), rank = basis_tensor.size(0),
                width = basis_tensor.size(1), distinct = std::min(tokens, vocabulary);
  const void* const grad_out = queue.data(grad_out_tensor, "grad_out", {tokens, width});
  const Groups groups{
      queue.data<int64_t>(order_tensor, "order", {tokens}), queue.data<int64_t>(first_tensor, "first", {tokens + 1}),
      queue.data<int64_t>(distinct_tensor, "distinct", {tokens}), queue.data<int64_t>(count_tensor, "count", {1})};
  const void* const coordinates = queue.data(coordinates_tensor, "coordinates", {vocabulary, rank});
  const void* const basis = queue.data(basis_tensor, "basis", {rank, width});
  const bool wants_coordinates = grad_coordinates_tensor.numel(), wants_basis = grad_basis_tensor.numel();
  const bool dense = grad_coordinates_tensor.size(0) == vocabulary;  // [U, R] is the same where U = V
  void* const grad_coordinates = wants_coordinates ? queue.data(grad_coordinates_tensor, "grad_coordinates",
                                                                {grad_coordinates_tensor.size(0), rank})
                                                   : nullptr;
  void* const grad_basis = wants_basis ? queue.data(grad_basis_tensor, "grad_basis", {rank, width}) : nullptr;
  queue.data<uint8_t>(workspace, "workspace", {workspace.numel()});
  Workspace memory(workspace);
  const BackwardScratch scratch(memory, tokens, distinct, rank, width);
  float *const sums = scratch.sums.of(0), *const slice_sums = scratch.slice_sums.of(0);

  with_element(coordinates_tensor.dtype(), "coordinates", [&](auto element) {
    using T = decltype(element);
    const dim3 pieces(ceil_div<int64_t>(tokens, piece), ceil_div<int64_t>(width, sum_threads));
    queue.launch("sum_pieces", sum_pieces<T>, pieces, sum_threads, 0, static_cast<const T*>(grad_out), width, groups,
                 sums, scratch.partial.of(0));
    queue.launch("add_pieces", add_pieces, pieces, sum_threads, 0, scratch.partial.of(0), width, groups, sums);
    const Lines<float> sum_lines{sums, width, distinct, nullptr, 0};
    if (wants_coordinates)
      queue.launch("project", project<T>, blocks_for(distinct, rank), product_threads, 0, sum_lines,
                   Lines<T>{static_cast<const T*>(basis), width, rank, nullptr, rank},
                   Rows<T>{static_cast<T*>(grad_coordinates), rank, 0, dense ? groups.distinct : nullptr},
                   groups.count);
    if (!wants_basis) return;
    queue.launch("multiply_transposed", multiply_transposed<T>, blocks_for(rank, width, slices), product_threads, 0,
                 Lines<T>{static_cast<const T*>(coordinates), rank, vocabulary, groups.distinct, 0}, sum_lines,
                 Rows<float>{slice_sums, width, rank, nullptr}, groups.count);
    queue.launch("add_slices", add_slices<T>, dim3(ceil_div<int64_t>(rank * width, add_threads)), add_threads, 0,
                 slice_sums, rank * width, static_cast<T*>(grad_basis));
  });
}

}  // namespace ofa::factorized_embedding
