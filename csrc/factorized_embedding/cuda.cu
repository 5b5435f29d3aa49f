#include <algorithm>
#include <cstdlib>
#include <limits>

#include "factorized_embedding/cuda_group.h"
#include "factorized_embedding/cuda_look_up.h"
#include "factorized_embedding/cuda_product_wgmma.h"
#include "factorized_embedding/cuda_sort.h"
#include "factorized_embedding/cuda_sums.h"
#include "factorized_embedding/cuda_zeros.h"
#include "factorized_embedding/factorized_embedding.h"
#include "report.h"
#include "workspace.h"

namespace ofa::factorized_embedding {
namespace {

constexpr int64_t most_rows = std::numeric_limits<int32_t>::max();
static_assert(group_threads == product_threads);

// The first block looks for wrong ids where there is a report, all others multiply.
template <class T, bool whole>
__global__ void __launch_bounds__(product_threads, 2)
    look_up(Lines<T> coordinates, Lines<T> basis, Rows<T> out, int64_t* report) {
  uint8_t* const memory = dynamic_shared();
  int64_t block = blockIdx.x;
  if (report && block-- == 0) {
    const auto wrong = [&](int64_t id) { return id < 0 || id >= coordinates.vocabulary; };
    report_wrong(memory, coordinates.ids, out.count, coordinates.vocabulary, wrong, report);
    return;
  }
  const int64_t columns = ceil_div<int64_t>(out.width, block_columns);
  multiply_lines<T, false, true, whole>(memory, coordinates, block / columns * block_rows<T>, basis,
                                        block % columns * block_columns, 0, basis.count, out);
}

// Products [rows, columns] of one depth each, or of slices of it, one behind the other.
template <class T>
struct Product {
  Lines<T> left, right;
  Rows<float> out;
  int64_t depth, slice, slices;
  __host__ __device__ int64_t columns() const { return ceil_div<int64_t>(out.width, block_columns); }
  __host__ __device__ int64_t tiles() const { return ceil_div<int64_t>(out.count, block_rows<T>) * columns(); }
  int64_t blocks() const { return slices * tiles(); }

  template <bool along, bool whole>
  __device__ void multiply(uint8_t* memory, int64_t block, bool warpgroups, ZeroWriter& zeros) const {
    const int64_t tile = block % tiles(), begin = block / tiles() * slice, end = min(depth, begin + slice);
    Rows<float> to = out;
    to.data += block / tiles() * round_up(out.count * out.stride, 4);
    zeros.in_steps(ceil_div<int64_t>(end - begin, step_depth<T>));
    const int64_t row = tile / columns() * block_rows<T>, column = tile % columns() * block_columns;
#ifdef OFA_WARPGROUPS
    if constexpr (sizeof(T) == 2)
      if (warpgroups)
        return multiply_lines_wgmma<T, along, along, whole>(memory, left, row, right, column, begin, end, to, zeros);
#endif
    multiply_lines<T, along, along, whole>(memory, left, row, right, column, begin, end, to, zeros);
  }
};

// All that a backward pass begins with and that needs nothing else. The first block sorts; the others multiply, while
// they write zeros, which takes the memory's time, and the products the tensor cores'.
template <class T>
struct Work {
  Sorting sorting;
  Zeros zeros;
  Product<T> project, basis;  // projected[t] = grad_out[t] basisT, and slices of coordinates[ids]T grad_out
  int64_t project_blocks, basis_blocks;
  bool warpgroups;  // multiply, where the GPU has them
};

template <class T>
constexpr int64_t begin_bytes = std::max<int64_t>(product_bytes<T>, sort_bytes);  // of shared memory

template <class T, bool whole>
__global__ void __launch_bounds__(product_threads, 2) begin_backward(Work<T> work) {
  uint8_t* const memory = dynamic_shared_1024();
  int64_t block = blockIdx.x;
  if (work.sorting.wanted && block-- == 0) {
    sort_tokens(memory, work.sorting);
    return;
  }
  ZeroWriter zeros(work.zeros, block);
  if (block < work.project_blocks)
    work.project.template multiply<false, whole>(memory, block, work.warpgroups, zeros);
  else if (block < work.project_blocks + work.basis_blocks)
    work.basis.template multiply<true, whole>(memory, block - work.project_blocks, work.warpgroups, zeros);
  zeros.end();
}

int64_t blocks_of(int64_t tokens) { return ceil_div<int64_t>(tokens, tile_tokens); }

#ifndef OFA_BLOCKS_AT_ONCE  // tests have less
#  define OFA_BLOCKS_AT_ONCE 264
#endif
constexpr int64_t blocks_at_once = OFA_BLOCKS_AT_ONCE;  // two for each processor of an H100, if that is what runs them

// Slices of the tokens that the basis' gradient is summed in: enough blocks for a GPU, and tokens for a block.
template <class T>
int64_t slices_of(int64_t tokens, int64_t rank, int64_t width) {
  constexpr int64_t least = 256, most = 32;
  const int64_t tiles = ceil_div<int64_t>(rank, block_rows<T>) * ceil_div<int64_t>(width, block_columns);
  const int64_t wanted = std::min(blocks_at_once / std::max<int64_t>(1, tiles), ceil_div(tokens, least));
  return std::clamp<int64_t>(wanted, 1, most);
}

struct Scratch {
  int64_t stride;  // of a projected row
  Workspace::Array<uint32_t> keys;
  Workspace::Array<int32_t> order, rows, counts;
  Workspace::Array<float> projected, partial, slices;
  Scratch(Workspace& memory, int64_t tokens, int64_t rank, int64_t width, int64_t slice_count)
      : stride(round_up(rank, 4)),
        keys(memory, tokens, 2),
        order(memory, tokens, 2),
        rows(memory, tokens),
        counts(memory, radix * blocks_of(tokens)),
        projected(memory, tokens * stride),
        partial(memory, 2 * ceil_div<int64_t>(tokens, piece) * stride),
        slices(memory, slice_count * round_up(rank * width, 4)) {}
};

// Sorts what does not fit one block; `spare` is where tokens are between passes.
void sort(const Queue& queue, Tokens from, const Sorted& result, const Sorted& spare, int32_t* counts) {
  const int64_t tokens = from.count, blocks = blocks_of(tokens);
  const int passes = ceil_div(bits_of(from.vocabulary), radix_bits);
  for (int pass = 0; pass < passes; ++pass) {
    const Sorted& to = (passes - pass) % 2 ? result : spare;
    const int shift = radix_bits * pass;
    queue.launch("count_digits", count_digits, dim3(blocks), group_threads, 0, from, shift, counts);
    queue.launch("accumulate", accumulate, dim3(1), group_threads, 0, counts, radix * blocks);
    queue.launch("place_tokens", place_tokens, dim3(blocks), group_threads, 0, from, shift, counts, to.keys, to.order);
    from = Tokens{nullptr, to.keys, to.order, tokens, from.vocabulary, from.padding_idx};
  }
  if (!result.rows) return;
  queue.launch("count_heads", count_heads, dim3(blocks), group_threads, 0, result, counts);
  queue.launch("accumulate", accumulate, dim3(1), group_threads, 0, counts, blocks);
  queue.launch("number_rows", number_rows, dim3(blocks), group_threads, 0, result, counts);
}

}  // namespace

int64_t cuda_backward_workspace(int64_t tokens, int64_t rank, int64_t width) {
  Workspace measure;
  Scratch(measure, tokens, rank, width,
          std::max(slices_of<float>(tokens, rank, width), slices_of<Half>(tokens, rank, width)));
  return measure.bytes();
}

void cuda_forward(Tensor ids_tensor, Tensor coordinates_tensor, Tensor basis_tensor, Tensor out_tensor,
                  Tensor report_tensor) {
  const Queue queue(coordinates_tensor);
  const int64_t tokens = ids_tensor.numel(), vocabulary = coordinates_tensor.size(0), rank = basis_tensor.size(0),
                width = basis_tensor.size(1);
  if (basis_tensor.dtype() != coordinates_tensor.dtype())
    throw std::invalid_argument("coordinates and basis must share one dtype: float32, float16 or bfloat16");
  const int64_t* const ids = queue.data<int64_t>(ids_tensor, "input_ids", {tokens});
  const void* const coordinates = queue.data(coordinates_tensor, "coordinates", {vocabulary, rank});
  const void* const basis = queue.data(basis_tensor, "basis", {rank, width});
  void* const out = queue.data(out_tensor, "out", {tokens, width});
  int64_t* const report =
      report_tensor.numel() && tokens ? report_tensor.data<int64_t>("report", {report_words}) : nullptr;
  with_element(coordinates_tensor.dtype(), "coordinates", [&](auto element) {
    using T = decltype(element);
    const Lines<T> left{static_cast<const T*>(coordinates), rank, tokens, ids, vocabulary, -1, true};
    const Lines<T> right{static_cast<const T*>(basis), width, rank};
    const Rows<T> rows{static_cast<T*>(out), width, tokens, width};
    const int64_t columns = ceil_div<int64_t>(width, block_columns), reporting = report != nullptr;
    const bool whole = left.whole() && right.whole() && reinterpret_cast<uintptr_t>(out) % 16 == 0;
    if constexpr (sizeof(T) == 2) {
      const KeptShape shape(rank);
      if (whole && columns && shape.shared <= queue.shared_memory()) {
        const int64_t blocks = ceil_div<int64_t>(tokens, kept_rows);
        const int64_t wanted = std::clamp<int64_t>((blocks_at_once - 1) / std::max<int64_t>(1, blocks), 1, columns);
        const int64_t share = ceil_div(columns, wanted), splits = ceil_div(columns, share);
        queue.launch("look_up_kept", look_up_kept<T>, dim3(blocks * splits + reporting), product_threads, shape.shared,
                     left, right, rows, shape, static_cast<int>(splits), static_cast<int>(share), report);
        return;
      }
    }
    queue.launch("look_up", whole ? look_up<T, true> : look_up<T, false>,
                 dim3(ceil_div<int64_t>(tokens, block_rows<T>) * columns + reporting), product_threads,
                 product_bytes<T>, left, right, rows, report);
  });
}

void cuda_backward(Tensor grad_out_tensor, Tensor ids_tensor, int64_t padding_idx, Tensor coordinates_tensor,
                   Tensor basis_tensor, Tensor grad_coordinates_tensor, Tensor grad_basis_tensor,
                   Tensor distinct_tensor, Tensor workspace) {
  const Queue queue(coordinates_tensor);
  const int64_t tokens = ids_tensor.numel(), vocabulary = coordinates_tensor.size(0), rank = basis_tensor.size(0),
                width = basis_tensor.size(1);
  if (tokens > most_rows || vocabulary > most_rows)
    throw std::invalid_argument("input_ids and coordinates must have fewer than 2^31 rows");
  if (grad_out_tensor.dtype() != coordinates_tensor.dtype() || basis_tensor.dtype() != coordinates_tensor.dtype())
    throw std::invalid_argument("grad_out, coordinates and basis must share one dtype: float32, float16 or bfloat16");
  const void* const grad_out = queue.data(grad_out_tensor, "grad_out", {tokens, width});
  const int64_t* const ids = queue.data<int64_t>(ids_tensor, "input_ids", {tokens});
  const void* const coordinates = queue.data(coordinates_tensor, "coordinates", {vocabulary, rank});
  const void* const basis = queue.data(basis_tensor, "basis", {rank, width});
  const bool sparse = distinct_tensor.numel();
  int64_t* const distinct = sparse ? queue.data<int64_t>(distinct_tensor, "distinct", {tokens + 1}) : nullptr;
  const bool wants_coordinates = grad_coordinates_tensor.dim() == 2, wants_basis = grad_basis_tensor.dim() == 2;
  const int64_t rows = sparse ? std::min(tokens, vocabulary) : vocabulary;
  void* const grad_coordinates =
      wants_coordinates ? queue.data(grad_coordinates_tensor, "grad_coordinates", {rows, rank}) : nullptr;
  if (reinterpret_cast<uintptr_t>(grad_coordinates) % 16)
    throw std::invalid_argument("grad_coordinates must be aligned to 16 bytes");
  void* const grad_basis = wants_basis ? queue.data(grad_basis_tensor, "grad_basis", {rank, width}) : nullptr;
  queue.data<uint8_t>(workspace, "workspace", {workspace.numel()});

  with_element(coordinates_tensor.dtype(), "coordinates", [&](auto element) {
    using T = decltype(element);
    Workspace memory(workspace);
    const int64_t slices = slices_of<T>(tokens, rank, width), slice = round_up(ceil_div(tokens, slices), 64);
    const Scratch scratch(memory, tokens, rank, width, slices);
    const auto sorted = [&](int i) {
      return Sorted{scratch.keys.of(i),
                    scratch.order.of(i),
                    sparse ? scratch.rows.of(0) : nullptr,
                    distinct,
                    sparse ? distinct + tokens : nullptr,
                    tokens,
                    vocabulary};
    };
    Work<T> work{};
    work.warpgroups = !std::getenv("OFA_NO_WGMMA");
    work.sorting = {Tokens{ids, nullptr, nullptr, tokens, vocabulary, padding_idx}, sorted(0),
                    ceil_div(bits_of(vocabulary), 2), wants_coordinates && fits_a_block(tokens, vocabulary)};
    const Lines<T> grad_lines{static_cast<const T*>(grad_out), width, tokens};
    if (wants_coordinates) {
      const Lines<T> basis_lines{static_cast<const T*>(basis), width, rank};
      work.project = {grad_lines, basis_lines, {scratch.projected.of(0), rank, tokens, scratch.stride},
                      width,      width,       1};
      work.project_blocks = work.project.blocks();
      if (!work.sorting.wanted) sort(queue, work.sorting.from, sorted(0), sorted(1), scratch.counts.of(0));
    }
    if (wants_basis) {
      Lines<T> coordinate_lines{static_cast<const T*>(coordinates), rank, tokens, ids, vocabulary, padding_idx, true};
      Lines<T> kept = grad_lines;  // a gradient that does not count may be infinite
      kept.ids = ids, kept.vocabulary = vocabulary, kept.padding_idx = padding_idx;
      work.basis = {coordinate_lines, kept, {scratch.slices.of(0), width, rank, width}, tokens, slice, slices};
    }
    work.basis_blocks = wants_basis ? work.basis.blocks() : 0;
    int64_t blocks = work.project_blocks + work.basis_blocks;
    if (wants_coordinates && !sparse) {
      const int64_t bytes = rows * rank * static_cast<int64_t>(sizeof(T)), least = 16 * product_threads;
      blocks = std::clamp(ceil_div(bytes, least), blocks, std::max(blocks, blocks_at_once - work.sorting.wanted));
      if (blocks) work.zeros = {static_cast<uint8_t*>(grad_coordinates), bytes, round_up(ceil_div(bytes, blocks), 16)};
    }
    const bool whole = (!wants_coordinates || (work.project.left.whole() && work.project.right.whole())) &&
                       (!wants_basis || (work.basis.left.whole() && work.basis.right.whole()));
    queue.launch("begin_backward", whole ? begin_backward<T, true> : begin_backward<T, false>,
                 dim3(blocks + work.sorting.wanted), product_threads,
                 work.sorting.wanted ? begin_bytes<T> : product_bytes<T>, work);

    Sums<T> sums{work.sorting.to,
                 scratch.projected.of(0),
                 scratch.partial.of(0),
                 scratch.stride,
                 Rows<T>{static_cast<T*>(grad_coordinates), rank, rows, rank},
                 0,
                 0};
    if (wants_coordinates) {
      sums.pieces = ceil_div<int64_t>(tokens, piece);
      sums.blocks = sums.pieces * ceil_div<int64_t>(scratch.stride, sum_columns);
    }
    const Slices<T> added{scratch.slices.of(0), slices, round_up(rank * width, 4), wants_basis ? rank * width : 0,
                          static_cast<T*>(grad_basis)};
    queue.launch("add_products", add_products<T>, dim3(sums.blocks + ceil_div<int64_t>(added.count, added_at_once)),
                 sum_threads, 0, sums, added);
    if (sums.pieces > 1) queue.launch("add_pieces", add_pieces<T>, dim3(sums.blocks), sum_threads, 0, sums);
  });
}

}  // namespace ofa::factorized_embedding
