#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "factorized_embedding/factorized_embedding.h"
#include "factorized_embedding/kernels.h"
#include "gemm.h"
#include "huge_pages.h"
#include "parallel.h"
#include "workspace.h"

namespace ofa::factorized_embedding {
namespace {

constexpr int64_t largest = 256;      // rows of one product
constexpr int64_t slice = 64;         // columns of the basis that are packed together, and those of a hot id's task
constexpr int64_t hot = 64;           // tokens of one id after which the others are everybody's work
constexpr int64_t chunks_of_ids = 8;  // each has its own sum of the basis' gradient

// Rows of one product where there are `rows` in all: enough products for a team. By sizes alone: sums are divided
// alike for any number of threads.
int64_t block_of(int64_t rows) {
  const int64_t panels = 2 * OFA_SELECT(gemm).mr;
  return std::clamp(ceil_div(ceil_div(rows, 16), panels) * panels, panels, largest / panels * panels);
}

// Asks for rows of a table at once: one after the other each would wait for memory.
void prefetch_rows(const void* table, const int64_t* index, int64_t rows, int64_t row_bytes) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t at = 0; at < row_bytes; at += 64)
      __builtin_prefetch(static_cast<const char*>(table) + index[r] * row_bytes + at);
}

// A stable radix sort, as `group` promises; `spare` holds at least as much as `order`. Returns how many tokens count.
int64_t sort_tokens(const int64_t* ids, int64_t tokens, int64_t vocabulary, int64_t padding_idx, int64_t* order,
                    int64_t* spare) {
  int bits = 1;
  while (bits < 63 && vocabulary > int64_t{1} << bits) ++bits;
  const int passes = (bits + 10) / 11, digit = (bits + passes - 1) / passes;
  const int64_t mask = (int64_t{1} << digit) - 1;
  int64_t count = tokens;
  for (int pass = 0; pass < passes; ++pass) {
    int64_t* to = (passes - pass) % 2 ? order : spare;
    const int64_t* from = to == order ? spare : order;
    const auto token = [&](int64_t i) { return pass ? from[i] : i; };
    int64_t begin[(1 << 11) + 1] = {};
    for (int64_t i = 0; i < count; ++i)
      if (ids[token(i)] != padding_idx) ++begin[(ids[token(i)] >> pass * digit & mask) + 1];
    for (int64_t d = 0; d <= mask; ++d) begin[d + 1] += begin[d];
    const int64_t kept = begin[mask + 1];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t t = token(i), id = ids[t];
      if (id != padding_idx) to[begin[id >> pass * digit & mask]++] = t;
    }
    count = kept;
  }
  return count;
}

int64_t group_ids(const int64_t* ids, int64_t tokens, int64_t vocabulary, int64_t padding_idx, int64_t* order,
                  int64_t* first, int64_t* distinct) {
  for (int64_t t = 0; t < tokens; ++t)
    if (ids[t] < 0 || ids[t] >= vocabulary)
      throw std::out_of_range("input_ids must lie in [0, " + std::to_string(vocabulary) + "), got " +
                              std::to_string(ids[t]) + " at position " + std::to_string(t));
  const int64_t count = sort_tokens(ids, tokens, vocabulary, padding_idx, order, distinct);
  int64_t found = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t id = ids[order[i]];
    if (found && id == distinct[found - 1]) continue;
    first[found] = i;
    distinct[found++] = id;
  }
  first[found] = count;
  return found;
}

// The basis as the right operand, in slices that are packed in parallel: as columns, or as rows for its transpose.
struct Basis {
  int64_t rows, depth;
  Workspace::Array<float> packed;

  Basis(Workspace& workspace, int64_t rows, int64_t depth)
      : rows(rows),
        depth(depth),
        packed(workspace, packed_size(slice, depth, OFA_SELECT(gemm).nr), ceil_div(rows, slice)) {}

  void pack(const GemmTable& gemm, const void* basis, Dtype dtype, int64_t width, bool columns, int threads) const {
    parallel_for(ceil_div(rows, slice), threads, [&](int64_t s, int) {
      const int64_t count = std::min(slice, rows - s * slice);
      const char* from = static_cast<const char*>(basis) + s * slice * (columns ? 1 : width) * item_size(dtype);
      if (columns)
        gemm.pack_columns(from, dtype, width, count, depth, gemm.nr, packed.of(s));
      else
        gemm.pack_rows(from, dtype, width, nullptr, count, depth, gemm.nr, packed.of(s));
    });
  }

  // product[m, rows] = left basisT
  void multiply(const GemmTable& gemm, const float* left, int64_t m, float* product) const {
    for (int64_t s = 0; s * slice < rows; ++s)
      gemm.multiply(left, packed.of(s), m, std::min(slice, rows - s * slice), depth, product + s * slice, rows, false);
  }
};

struct ForwardScratch {
  Workspace::Array<int64_t> order, first, distinct, source;
  Workspace::Array<float> rows, product;
  Basis basis;
  ForwardScratch(Workspace& workspace, int64_t tokens, int64_t rank, int64_t width, int threads)
      : order(workspace, tokens),
        first(workspace, tokens + 1),
        distinct(workspace, tokens),
        source(workspace, tokens),
        rows(workspace, packed_size(block_of(tokens), rank, OFA_SELECT(gemm).mr), threads),
        product(workspace, block_of(tokens) * width, threads),
        basis(workspace, width, rank) {}
};

struct BackwardScratch {
  int64_t block, blocks, chunks;
  Workspace::Array<float> hot_sums, sums, packed_sums, rows, left, right, partial;
  Basis basis;
  BackwardScratch(Workspace& workspace, int64_t tokens, int64_t distinct, int64_t rank, int64_t width, int threads)
      : block(block_of(distinct)),
        blocks(ceil_div(distinct, block)),
        chunks(std::clamp<int64_t>(blocks, 1, chunks_of_ids)),
        hot_sums(workspace, width, tokens / hot),
        sums(workspace, block * width, threads),
        packed_sums(workspace, packed_size(block, width, OFA_SELECT(gemm).mr), threads),
        rows(workspace, block * rank, threads),
        left(workspace, packed_size(rank, block, OFA_SELECT(gemm).mr), threads),
        right(workspace, packed_size(slice, block, OFA_SELECT(gemm).nr), threads),
        partial(workspace, rank * width, chunks),
        basis(workspace, rank, width) {}
};

}  // namespace

int64_t forward_workspace(int64_t tokens, int64_t rank, int64_t width, int threads) {
  Workspace measure;
  ForwardScratch(measure, tokens, rank, width, threads);
  return measure.bytes();
}

int64_t backward_workspace(int64_t tokens, int64_t distinct, int64_t rank, int64_t width, int threads) {
  Workspace measure;
  BackwardScratch(measure, tokens, distinct, rank, width, threads);
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
  const int64_t row_bytes = width * item_size(dtype);

  const GemmTable& gemm = OFA_SELECT(gemm);
  Workspace memory(workspace);
  ForwardScratch scratch(memory, tokens, rank, width, threads);
  int64_t *order = scratch.order.of(0), *first = scratch.first.of(0), *source = scratch.source.of(0);
  const int64_t distinct = group_ids(ids, tokens, vocabulary, -1, order, first, scratch.distinct.of(0));
  // A copy costs a tenth of a product. A row's product does not depend on the rows around it.
  const bool copy = distinct * 10 <= tokens * 9;
  const int64_t rows = copy ? distinct : tokens, block = block_of(rows);

  fault_in(out, tokens * row_bytes, threads, [](int64_t, int64_t) { return true; });
  scratch.basis.pack(gemm, basis, dtype, width, true, threads);
  parallel_for(ceil_div(rows, block), threads, [&](int64_t task, int worker) {
    const int64_t begin = task * block, count = std::min(block, rows - begin);
    int64_t token[largest], id[largest];
    for (int64_t r = 0; r < count; ++r) {
      token[r] = copy ? order[first[begin + r]] : begin + r;
      id[r] = ids[token[r]];
    }
    prefetch_rows(coordinates, id, count, rank * item_size(dtype));
    gemm.pack_rows(coordinates, dtype, rank, id, count, rank, gemm.mr, scratch.rows.of(worker));
    const bool in_place = !copy && dtype == Dtype::f32;
    float* product = in_place ? reinterpret_cast<float*>(out + begin * row_bytes) : scratch.product.of(worker);
    scratch.basis.multiply(gemm, scratch.rows.of(worker), count, product);
    for (int64_t r = 0; r < count && !in_place; ++r) {
      const char* row = out + token[r] * row_bytes;
      gemm.from_float(product + r * width, width, out + token[r] * row_bytes, dtype);
      if (!copy) continue;
      const int64_t from = first[begin + r], to = first[begin + r + 1], own = std::min(to, from + hot);
      for (int64_t i = from; i < own; ++i) {
        if (i > from) std::memcpy(out + order[i] * row_bytes, row, row_bytes);
        source[order[i]] = order[i];
      }
      for (int64_t i = own; i < to; ++i) source[order[i]] = token[r];
    }
  });
  // The other tokens of hot ids, in the order of tokens: however often an id occurs, its copies are everybody's work.
  if (copy)
    parallel_for(ceil_div(tokens, slice), threads, [&](int64_t task, int) {
      for (int64_t t = task * slice; t < std::min(tokens, (task + 1) * slice); ++t)
        if (source[t] != t) std::memcpy(out + t * row_bytes, out + source[t] * row_bytes, row_bytes);
    });
}

int64_t group_workspace(int64_t) { return 0; }

void group(Tensor ids, int64_t vocabulary, int64_t padding_idx, Tensor order, Tensor first, Tensor distinct,
           Tensor count, Tensor) {
  const int64_t tokens = ids.numel();
  *count.data<int64_t>("count", {1}) = group_ids(
      ids.data<int64_t>("input_ids", {tokens}), tokens, vocabulary, padding_idx, order.data<int64_t>("order", {tokens}),
      first.data<int64_t>("first", {tokens + 1}), distinct.data<int64_t>("distinct", {tokens}));
}

void backward(Tensor grad_out_tensor, Tensor order_tensor, Tensor first_tensor, Tensor distinct_tensor,
              Tensor count_tensor, Tensor coordinates_tensor, Tensor basis_tensor, Tensor grad_coordinates_tensor,
              Tensor grad_basis_tensor, Tensor workspace, int threads) {
  const int64_t tokens = order_tensor.numel(), distinct = *count_tensor.data<int64_t>("count", {1}),
                vocabulary = coordinates_tensor.size(0), rank = basis_tensor.size(0), width = basis_tensor.size(1);
  const Dtype dtype = coordinates_tensor.dtype();
  const void* grad_out = grad_out_tensor.data("grad_out", {tokens, width});
  const int64_t* order = order_tensor.data<int64_t>("order", {tokens});
  const int64_t* first = first_tensor.data<int64_t>("first", {tokens + 1});
  const int64_t* id = distinct_tensor.data<int64_t>("distinct", {tokens});
  const char* coordinates = static_cast<const char*>(coordinates_tensor.data("coordinates", {vocabulary, rank}));
  const void* basis = basis_tensor.data("basis", {rank, width});
  const int64_t row_bytes = rank * item_size(dtype);

  char* grad_coordinates = nullptr;
  const bool dense = grad_coordinates_tensor.size(0) == vocabulary;  // [U, R] is the same where U = V
  if (grad_coordinates_tensor.numel()) {
    grad_coordinates =
        static_cast<char*>(grad_coordinates_tensor.data("grad_coordinates", {dense ? vocabulary : distinct, rank}));
    if (dense)
      fault_in(grad_coordinates, vocabulary * row_bytes, threads, [&](int64_t begin, int64_t end) {
        const int64_t* next = std::lower_bound(id, id + distinct, begin / row_bytes);
        return next < id + distinct && *next * row_bytes < end;
      });
  }
  void* grad_basis = grad_basis_tensor.numel() ? grad_basis_tensor.data("grad_basis", {rank, width}) : nullptr;

  const GemmTable& gemm = OFA_SELECT(gemm);
  const SumSegments sum_segments = OFA_SELECT(sum_segments);
  Workspace memory(workspace);
  BackwardScratch scratch(memory, tokens, distinct, rank, width, threads);
  if (grad_coordinates) scratch.basis.pack(gemm, basis, dtype, width, false, threads);

  // The sum of an id with many tokens is divided by columns, which leaves their order.
  std::vector<int64_t> hot_ids;
  for (int64_t u = 0; u < distinct; ++u)
    if (first[u + 1] - first[u] >= hot) hot_ids.push_back(u);
  const int64_t slices = ceil_div(width, slice);
  parallel_for(hot_ids.size() * slices, threads, [&](int64_t task, int) {
    const int64_t h = task / slices, column = task % slices * slice;
    sum_segments(static_cast<const char*>(grad_out) + column * item_size(dtype), dtype, width, order,
                 first + hot_ids[h], 1, std::min(slice, width - column), scratch.hot_sums.of(h) + column);
  });
  const auto sum_ids = [&](int64_t begin, int64_t end, float* sums) {
    auto next = std::lower_bound(hot_ids.begin(), hot_ids.end(), begin);
    for (int64_t u = begin; u < end;) {
      const int64_t until = next == hot_ids.end() ? end : std::min(*next, end);
      if (u < until)
        sum_segments(grad_out, dtype, width, order, first + u, until - u, width, sums + (u - begin) * width);
      else
        std::copy_n(scratch.hot_sums.of(next++ - hot_ids.begin()), width, sums + (u - begin) * width);
      u = std::max(u + 1, until);
    }
  };

  parallel_for(scratch.chunks, threads, [&](int64_t chunk, int worker) {
    float *sums = scratch.sums.of(worker), *rows = scratch.rows.of(worker), *partial = scratch.partial.of(chunk);
    const int64_t first_block = chunk * scratch.blocks / scratch.chunks;
    if (!scratch.blocks) std::fill(partial, partial + rank * width, 0.0f);
    for (int64_t b = first_block; b < (chunk + 1) * scratch.blocks / scratch.chunks; ++b) {
      const int64_t begin = b * scratch.block, count = std::min(scratch.block, distinct - begin);
      sum_ids(begin, begin + count, sums);
      for (int64_t i = 0; i < count && grad_coordinates; i += scratch.block) {
        const int64_t part = std::min(scratch.block, count - i);
        gemm.pack_rows(sums + i * width, Dtype::f32, width, nullptr, part, width, gemm.mr,
                       scratch.packed_sums.of(worker));
        scratch.basis.multiply(gemm, scratch.packed_sums.of(worker), part, rows);
        for (int64_t r = 0; r < part; ++r) {
          const int64_t row = dense ? id[begin + i + r] : begin + i + r;
          gemm.from_float(rows + r * rank, rank, grad_coordinates + row * row_bytes, dtype);
        }
      }
      if (!grad_basis) continue;
      prefetch_rows(coordinates, id + begin, count, row_bytes);
      for (int64_t r = 0; r < count; ++r)
        gemm.to_float(coordinates + id[begin + r] * row_bytes, dtype, rank, rows + r * rank);
      gemm.pack_columns(rows, Dtype::f32, rank, rank, count, gemm.mr, scratch.left.of(worker));
      for (int64_t column = 0; column < width; column += slice) {
        const int64_t columns = std::min(slice, width - column);
        gemm.pack_columns(sums + column, Dtype::f32, width, columns, count, gemm.nr, scratch.right.of(worker));
        gemm.multiply(scratch.left.of(worker), scratch.right.of(worker), rank, columns, count, partial + column, width,
                      b > first_block);
      }
    }
  });

  if (grad_basis)
    parallel_for(rank, threads, [&](int64_t r, int) {
      float* sum = scratch.partial.of(0) + r * width;
      for (int64_t chunk = 1; chunk < scratch.chunks; ++chunk) {
        const float* __restrict from = scratch.partial.of(chunk) + r * width;
        for (int64_t c = 0; c < width; ++c) sum[c] += from[c];
      }
      gemm.from_float(sum, width, static_cast<char*>(grad_basis) + r * width * item_size(dtype), dtype);
    });
}

}  // namespace ofa::factorized_embedding
