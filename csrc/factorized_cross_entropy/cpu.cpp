#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "factorized_cross_entropy/factorized_cross_entropy.h"
#include "factorized_cross_entropy/kernels.h"
#include "gemm.h"
#include "huge_pages.h"
#include "parallel.h"
#include "workspace.h"

namespace ofa::factorized_cross_entropy {
namespace {

constexpr int64_t partial_floats = 1 << 20;  // 4 MiB of partial sums at a time, if that allows for `fewest_chunks`
constexpr int64_t fewest_chunks = 16, most_chunks = 64;
constexpr int64_t alone =
    1 << 22;                   // multiplications (a tenth of a millisecond) that do not pay for waking other threads
constexpr int64_t slice = 64;  // columns of grad_basis that one task computes
constexpr int64_t few = 32;    // rows of hidden states, or of their gradients, that one task computes

// How the work is divided: by sizes alone, never by threads, so that sums have the same order on any number of them.
struct Plan {
  const Kernels& kernels;
  int64_t labelled, rank, stride, size, blocks, tiles, chunks, group;

  Plan(int64_t labelled, int64_t vocabulary, int64_t rank)
      : kernels(OFA_SELECT(cross_entropy)), labelled(labelled), rank(rank), stride(padded(rank)) {
    blocks = ceil_div(labelled, block);
    size = blocks ? ceil_div(ceil_div(labelled, blocks), 16) * 16 : 0;  // labelled rows of a block
    blocks = blocks ? ceil_div(labelled, size) : 0;
    const int64_t one = std::max<int64_t>(size * stride, 1);
    chunks = std::clamp(partial_floats / one, fewest_chunks, most_chunks);
    tiles = ceil_div(vocabulary, kernels.tile);
    chunks = std::clamp<int64_t>(tiles, 1, chunks);
    group = std::clamp<int64_t>(partial_floats / (one * chunks), 1, std::max<int64_t>(blocks, 1));  // blocks at a time
  }

  int64_t count(int64_t b) const { return std::min(size, labelled - b * size); }
  int team(int threads) const { return labelled * tiles * kernels.tile * rank < alone ? 1 : threads; }
};

// The labelled rows of a [N, width] tensor.
struct Rows {
  const void* data;
  Dtype dtype;
  int64_t width;
  const int64_t* index;  // [n]

  const void* at(int64_t i, int64_t column) const {
    return static_cast<const char*>(data) + (index[i] * width + column) * item_size(dtype);
  }
};

struct Matrix {
  const void* data;
  Dtype dtype;
};

// projected = hidden basisT of the labelled rows, and their labels
struct Projection {
  bool with_gradient;
  Workspace::Array<float> projected, score_operand, gradient_operand;
  Workspace::Array<int64_t> labels;

  Projection(Workspace& workspace, const Plan& plan, bool with_gradient)
      : with_gradient(with_gradient),
        projected(workspace, plan.labelled * plan.stride),
        score_operand(workspace, plan.kernels.score_operand_size(plan.rank), plan.blocks),
        gradient_operand(workspace, plan.kernels.gradient_operand_size(plan.rank), with_gradient ? plan.blocks : 0),
        labels(workspace, plan.labelled) {}

  struct Scratch {
    Workspace::Array<float> basis, rows;
    Scratch(Workspace& workspace, const Plan& plan, int64_t width, int threads)
        : basis(workspace, packed_size(plan.rank, width, OFA_SELECT(gemm).nr)),
          rows(workspace, packed_size(few, width, OFA_SELECT(gemm).mr), threads) {}
  };

  std::vector<Block> compute(const Plan& plan, const Rows& hidden, const Table& table, const Matrix& basis,
                             const int64_t* all_labels, const Scratch& scratch, int threads) const {
    const GemmTable& gemm = OFA_SELECT(gemm);
    const int64_t rank = plan.rank, stride = plan.stride, width = hidden.width;
    for (int64_t i = 0; i < plan.labelled; ++i) labels.of(0)[i] = all_labels[hidden.index[i]];
    gemm.pack_rows(basis.data, basis.dtype, width, nullptr, rank, width, gemm.nr, scratch.basis.of(0));
    parallel_for(ceil_div(plan.labelled, few), threads, [&](int64_t task, int worker) {
      const int64_t begin = task * few, count = std::min(few, plan.labelled - begin);
      float* out = projected.of(0) + begin * stride;
      gemm.pack_rows(hidden.data, hidden.dtype, width, hidden.index + begin, count, width, gemm.mr,
                     scratch.rows.of(worker));
      gemm.multiply(scratch.rows.of(worker), scratch.basis.of(0), count, rank, width, out, stride, false);
      for (int64_t t = 0; t < count; ++t) std::fill(out + t * stride + rank, out + (t + 1) * stride, 0.0f);
    });
    std::vector<Block> result(plan.blocks);
    parallel_for(plan.blocks, threads, [&](int64_t b, int) {
      const float* rows = projected.of(0) + b * plan.size * stride;
      float* for_gradient = with_gradient ? gradient_operand.of(b) : nullptr;
      plan.kernels.prepare(table, rows, plan.count(b), score_operand.of(b), for_gradient);
      result[b] = {plan.count(b), labels.of(0) + b * plan.size, rows, score_operand.of(b), for_gradient};
    });
    return result;
  }
};

// What only one phase needs begins where the last one's did.
struct ForwardScratch {
  Projection projection;
  Workspace::Array<float> target;
  int64_t phases;
  Projection::Scratch projecting;
  Workspace::Array<float> panel, bias, scores, maximum, others;
  Workspace::Array<double> sum;

  ForwardScratch(Workspace& workspace, const Plan& plan, int64_t width, int threads)
      : projection(workspace, plan, false),
        target(workspace, plan.labelled),
        phases(workspace.used()),
        projecting(workspace, plan, width, threads),
        panel(workspace.again_from(phases), plan.kernels.panel_size(plan.rank), threads),
        bias(workspace, plan.kernels.tile, threads),
        scores(workspace, plan.kernels.tile * block_stride, threads),
        maximum(workspace, block_stride, plan.group * plan.chunks),
        others(workspace, (plan.size + 16) * plan.stride, plan.group * plan.chunks),
        sum(workspace, block_stride, plan.group * plan.chunks) {}

  Partial partial(int64_t i, bool with_others) const {
    return {maximum.of(i), sum.of(i), with_others ? others.of(i) : nullptr};
  }
};

struct BackwardScratch {
  Projection projection;
  Workspace::Array<float> weights, grad_projected;
  int64_t phases;
  Projection::Scratch projecting;
  Workspace::Array<float> panel, bias, scores, gradient;                        // of the coordinates and the bias
  Workspace::Array<float> basis, rows, packed;                                  // of the hidden states
  Workspace::Array<float> slice_rows, packed_slice, packed_columns, slice_sum;  // of the basis

  BackwardScratch(Workspace& workspace, const Plan& plan, int64_t width, int threads)
      : projection(workspace, plan, true),
        weights(workspace, 3 * block_stride, plan.blocks),
        grad_projected(workspace, plan.labelled * plan.stride),
        phases(workspace.used()),
        projecting(workspace, plan, width, threads),
        panel(workspace.again_from(phases), plan.kernels.panel_size(plan.rank), threads),
        bias(workspace, plan.kernels.tile, threads),
        scores(workspace, plan.kernels.tile * block_stride, threads),
        gradient(workspace, plan.kernels.tile * plan.stride, threads),
        basis(workspace.again_from(phases), packed_size(width, plan.rank, OFA_SELECT(gemm).nr)),
        rows(workspace, few * width, threads),
        packed(workspace, packed_size(few, plan.rank, OFA_SELECT(gemm).mr), threads),
        slice_rows(workspace.again_from(phases), plan.size * slice, threads),
        packed_slice(workspace, packed_size(slice, plan.size, OFA_SELECT(gemm).nr), threads),
        packed_columns(workspace, packed_size(plan.rank, plan.size, OFA_SELECT(gemm).mr), threads),
        slice_sum(workspace, plan.rank * slice, threads) {}
};

// The tensors that both directions read.
struct Inputs {
  int64_t positions, vocabulary;
  Rows hidden;
  Table table;
  Matrix basis;
  const int64_t* labels;

  Inputs(const Tensor& hidden_tensor, const Tensor& coordinates, const Tensor& basis_tensor, const Tensor& bias,
         const Tensor& labels_tensor, const Tensor& rows)
      : positions(hidden_tensor.size(0)), vocabulary(coordinates.size(0)) {
    const int64_t rank = basis_tensor.size(0), width = basis_tensor.size(1);
    hidden = {hidden_tensor.data("hidden", {positions, width}), hidden_tensor.dtype(), width,
              rows.data<int64_t>("rows", {rows.numel()})};
    const bool coarse =
        hidden.dtype == Dtype::bf16 && coordinates.dtype() == Dtype::bf16 && basis_tensor.dtype() == Dtype::bf16;
    table = {coordinates.data("coordinates", {vocabulary, rank}),
             coordinates.dtype(),
             bias.numel() ? bias.data("bias", {vocabulary}) : nullptr,
             bias.dtype(),
             rank,
             coarse};
    basis = {basis_tensor.data("basis", {rank, width}), basis_tensor.dtype()};
    labels = labels_tensor.data<int64_t>("labels", {positions});
    for (int64_t i = 0; i < rows.numel(); ++i) {
      const int64_t row = hidden.index[i];
      if (row < 0 || row >= positions)
        throw std::out_of_range("rows must lie in [0, " + std::to_string(positions) + ")");
      if (labels[row] < 0 || labels[row] >= vocabulary)
        throw std::out_of_range("labels must lie in [0, " + std::to_string(vocabulary) + ") or be ignore_index, got " +
                                std::to_string(labels[row]) + " at position " + std::to_string(row));
    }
  }
};

// The data of a tensor, or null where it is left out.
template <class T = void>
T* optional(const Tensor& tensor, const char* name, std::initializer_list<int64_t> shape) {
  return tensor.numel() ? static_cast<T*>(tensor.data(name, shape)) : nullptr;
}

}  // namespace

int64_t forward_workspace(Tensor coordinates, int64_t labelled, int64_t width, int threads) {
  Workspace measure;
  const Plan plan(labelled, coordinates.size(0), coordinates.size(1));
  ForwardScratch(measure, plan, width, threads);
  return measure.bytes();
}

int64_t backward_workspace(Tensor coordinates, int64_t labelled, int64_t width, int threads) {
  Workspace measure;
  const Plan plan(labelled, coordinates.size(0), coordinates.size(1));
  BackwardScratch(measure, plan, width, threads);
  return measure.bytes();
}

void forward(Tensor hidden, Tensor coordinates, Tensor basis, Tensor bias, Tensor labels, Tensor rows,
             Tensor loss_tensor, Tensor lse_tensor, Tensor others_tensor, Tensor workspace, int threads) {
  const Inputs in(hidden, coordinates, basis, bias, labels, rows);
  const int64_t rank = in.table.rank;
  const Plan plan(rows.numel(), in.vocabulary, rank);
  float* loss = loss_tensor.data<float>("loss", {in.positions});
  float* lse = lse_tensor.data<float>("lse", {2, in.positions});
  float* others = optional<float>(others_tensor, "others", {in.positions, rank});

  threads = plan.team(threads);
  Workspace memory(workspace);
  ForwardScratch scratch(memory, plan, in.hidden.width, threads);
  const std::vector<Block> blocks =
      scratch.projection.compute(plan, in.hidden, in.table, in.basis, in.labels, scratch.projecting, threads);
  const int64_t tile = plan.kernels.tile, tiles = plan.tiles, chunks = plan.chunks;

  for (int64_t first_block = 0; first_block < plan.blocks; first_block += plan.group) {
    const int64_t group = std::min(plan.group, plan.blocks - first_block);
    parallel_for(group * chunks, threads, [&](int64_t task, int worker) {
      const int64_t b = first_block + task / chunks, chunk = task % chunks;
      plan.kernels.forward(in.table, blocks[b], chunk * tiles / chunks * tile,
                           std::min((chunk + 1) * tiles / chunks * tile, in.vocabulary),
                           {scratch.panel.of(worker), scratch.bias.of(worker), scratch.scores.of(worker), nullptr},
                           scratch.partial(task, others), scratch.target.of(0) + b * plan.size);
    });
    const int64_t first_row = first_block * plan.size,
                  last_row = std::min(first_row + group * plan.size, plan.labelled);
    parallel_for(last_row - first_row, threads, [&](int64_t task, int) {
      const int64_t i = first_row + task, t = i % plan.size, position = in.hidden.index[i];
      const int64_t part = (i / plan.size - first_block) * chunks;
      float maximum = -INFINITY;
      for (int64_t c = part; c < part + chunks; ++c) maximum = std::max(maximum, scratch.maximum.of(c)[t]);
      const double shift = maximum == -INFINITY ? 0.0 : maximum;
      double factor[most_chunks], rest = 0.0;  // rest: the sum over all but the label
      for (int64_t c = 0; c < chunks; ++c) {
        factor[c] = std::exp(scratch.maximum.of(part + c)[t] - shift);
        rest += scratch.sum.of(part + c)[t] * factor[c];
      }
      // log(1 + x) keeps the digits of a small loss, which lse - logit would cancel.
      const double relative = scratch.target.of(0)[i] - shift, own = std::exp(relative), total = rest + own;
      const double exact = shift + std::log(total);
      loss[position] = rest < own ? std::log1p(rest / own) : std::log(total) - relative;
      lse[position] = exact;
      lse[in.positions + position] = std::isfinite(exact) ? exact - lse[position] : 0.0;
      if (!others) return;
      float* out = others + position * rank;
      for (int64_t c = 0; c < chunks; ++c) {
        const float* from = scratch.others.of(part + c) + t * plan.stride;
        const float scale = factor[c] / total;
        for (int64_t r = 0; r < rank; ++r) out[r] = from[r] * scale + (c ? out[r] : 0.0f);
      }
    });
  }
}

void backward(Tensor grad_loss_tensor, Tensor grad_lse_tensor, Tensor hidden, Tensor coordinates, Tensor basis,
              Tensor bias, Tensor labels, Tensor rows, Tensor loss_tensor, Tensor lse_tensor, Tensor others_tensor,
              Tensor grad_hidden_tensor, Tensor grad_coordinates_tensor, Tensor grad_basis_tensor,
              Tensor grad_bias_tensor, Tensor workspace, int threads) {
  const Inputs in(hidden, coordinates, basis, bias, labels, rows);
  const int64_t rank = in.table.rank, width = in.hidden.width, positions = in.positions;
  const Plan plan(rows.numel(), in.vocabulary, rank);
  const float* grad_loss = grad_loss_tensor.data<float>("grad_loss", {positions});
  const float* grad_lse = grad_lse_tensor.data<float>("grad_lse", {positions});
  const float* loss = loss_tensor.data<float>("loss", {positions});
  const float* lse = lse_tensor.data<float>("lse", {2, positions});
  char* grad_hidden = optional<char>(grad_hidden_tensor, "grad_hidden", {positions, width});
  char* grad_basis = optional<char>(grad_basis_tensor, "grad_basis", {rank, width});
  void* grad_coordinates = optional(grad_coordinates_tensor, "grad_coordinates", {in.vocabulary, rank});
  void* grad_bias = optional(grad_bias_tensor, "grad_bias", {in.vocabulary});
  const float* others = nullptr;
  if (grad_hidden || grad_basis) others = others_tensor.data<float>("others", {positions, rank});

  const GemmTable& gemm = OFA_SELECT(gemm);
  threads = plan.team(threads);
  Workspace memory(workspace);
  BackwardScratch scratch(memory, plan, width, threads);
  const std::vector<Block> blocks =
      scratch.projection.compute(plan, in.hidden, in.table, in.basis, in.labels, scratch.projecting, threads);

  std::vector<Weights> weights(plan.blocks);
  for (int64_t b = 0; b < plan.blocks; ++b) {
    float *top = scratch.weights.of(b), *weight = top + block_stride, *target_weight = weight + block_stride;
    bool finite = true;
    std::fill(top, top + block_stride, INFINITY);  // beyond the labelled rows all probabilities are 0
    std::fill(weight, weight + 2 * block_stride, 0.0f);
    for (int64_t t = 0; t < blocks[b].count; ++t) {
      const int64_t i = b * plan.size + t, position = in.hidden.index[i];
      const double g = grad_loss[position], z = grad_lse[position];
      top[t] = lse[position];
      weight[t] = (g + z) * std::exp(-static_cast<double>(lse[positions + position]));
      target_weight[t] =
          g * std::expm1(-static_cast<double>(loss[position])) + z * std::exp(-static_cast<double>(loss[position]));
      finite = finite && std::isfinite(weight[t]) && std::isfinite(target_weight[t]);
      if (!others) continue;
      float* out = scratch.grad_projected.of(0) + i * plan.stride;
      gemm.to_float(
          static_cast<const char*>(in.table.coordinates) + blocks[b].labels[t] * rank * item_size(in.table.dtype),
          in.table.dtype, rank, out);
      for (int64_t r = 0; r < rank; ++r)
        out[r] = static_cast<float>(g + z) * others[position * rank + r] + target_weight[t] * out[r];
    }
    weights[b] = {top, weight, target_weight, finite};
  }

  if (grad_coordinates || grad_bias) {
    if (grad_coordinates) prefer_huge_pages(grad_coordinates, in.vocabulary * rank * item_size(in.table.dtype));
    const int64_t run = std::clamp<int64_t>(plan.tiles / 128, 1, 8) * plan.kernels.tile;
    parallel_for(ceil_div(in.vocabulary, run), threads, [&](int64_t task, int worker) {
      plan.kernels.backward(
          in.table, blocks.data(), weights.data(), plan.blocks, task * run, std::min((task + 1) * run, in.vocabulary),
          {scratch.panel.of(worker), scratch.bias.of(worker), scratch.scores.of(worker), scratch.gradient.of(worker)},
          grad_coordinates, grad_bias);
    });
  }

  if (grad_hidden) {  // grad_projected basis
    gemm.pack_columns(in.basis.data, in.basis.dtype, width, width, rank, gemm.nr, scratch.basis.of(0));
    parallel_for(ceil_div(plan.labelled, few), threads, [&](int64_t task, int worker) {
      const int64_t begin = task * few, count = std::min(few, plan.labelled - begin);
      float* out = scratch.rows.of(worker);
      gemm.pack_rows(scratch.grad_projected.of(0) + begin * plan.stride, Dtype::f32, plan.stride, nullptr, count, rank,
                     gemm.mr, scratch.packed.of(worker));
      gemm.multiply(scratch.packed.of(worker), scratch.basis.of(0), count, width, rank, out, width, false);
      for (int64_t t = 0; t < count; ++t)
        gemm.from_float(out + t * width, width,
                        grad_hidden + in.hidden.index[begin + t] * width * item_size(in.hidden.dtype), in.hidden.dtype);
    });
  }

  if (grad_basis)  // grad_projectedT hidden, a slice of its columns at a time
    parallel_for(ceil_div(width, slice), threads, [&](int64_t task, int worker) {
      const int64_t begin = task * slice, columns = std::min(slice, width - begin);
      float* sum = scratch.slice_sum.of(worker);
      std::fill(sum, sum + rank * columns, 0.0f);
      for (int64_t b = 0; b < plan.blocks; ++b) {
        const int64_t count = plan.count(b), first = b * plan.size;
        for (int64_t t = 0; t < count; ++t)
          gemm.to_float(in.hidden.at(first + t, begin), in.hidden.dtype, columns,
                        scratch.slice_rows.of(worker) + t * columns);
        gemm.pack_columns(scratch.slice_rows.of(worker), Dtype::f32, columns, columns, count, gemm.nr,
                          scratch.packed_slice.of(worker));
        gemm.pack_columns(scratch.grad_projected.of(0) + first * plan.stride, Dtype::f32, plan.stride, rank, count,
                          gemm.mr, scratch.packed_columns.of(worker));
        gemm.multiply(scratch.packed_columns.of(worker), scratch.packed_slice.of(worker), rank, columns, count, sum,
                      columns, true);
      }
      for (int64_t r = 0; r < rank; ++r)
        gemm.from_float(sum + r * columns, columns, grad_basis + (r * width + begin) * item_size(in.basis.dtype),
                        in.basis.dtype);
    });
}

}  // namespace ofa::factorized_cross_entropy
