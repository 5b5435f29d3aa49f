#include <algorithm>
#include <cstdlib>
#include <limits>

#include "factorized_cross_entropy/cuda_backward.h"
#include "factorized_cross_entropy/factorized_cross_entropy.h"
#include "tensor_map.h"

namespace ofa::factorized_cross_entropy {
namespace {

constexpr int64_t most_rank = 256, most_rows = std::numeric_limits<int32_t>::max() - 2 * block_rows;
constexpr uintptr_t alignment = 16;  // of a row that is copied

template <class T, class Function>
void with_rank(int64_t rank, Function function) {
  if (rank <= 64)
    function(Shape<T, 64>{});
  else if (rank <= 128)
    function(Shape<T, 128>{});
  else if (rank <= 200)
    function(Shape<T, 200>{});
  else
    function(Shape<T, most_rank>{});
}

bool is_half(Dtype dtype) { return dtype == Dtype::f16 || dtype == Dtype::bf16; }

bool fit(const Tensor& coordinates) {
  const int64_t rank = coordinates.size(1);
  return is_half(coordinates.dtype()) && rank >= 8 && rank <= most_rank && rank % 8 == 0 &&
         coordinates.size(0) <= most_rows;
}

// Calls function(S{}) with the shape of the passes for these coordinates.
template <class Function>
void with_shape(const Tensor& coordinates, Function function) {
  if (!fit(coordinates))
    throw std::invalid_argument("coordinates must be float16 or bfloat16, of a rank in 8s up to 256");
  if (coordinates.dtype() == Dtype::f16)
    with_rank<Half>(coordinates.size(1), function);
  else
    with_rank<Bfloat>(coordinates.size(1), function);
}

struct Bias {
  const void* data;  // or null
  Dtype dtype;
  Bias(const Queue& queue, const Tensor& bias, int64_t vocabulary)
      : data(bias.numel() ? queue.data(bias, "bias", {vocabulary}) : nullptr), dtype(bias.dtype()) {
    if (data && dtype != Dtype::f32 && !is_half(dtype))
      throw std::invalid_argument(std::string("bias must be float32, float16 or bfloat16, got ") + name(dtype));
  }
};

// Of [rows, columns or more], whose other columns are not looked at.
Boxes states_in_boxes(const Queue& queue, const Tensor& states, const Tensor& coordinates, int box_rows, int panel) {
  if (states.dtype() != coordinates.dtype() || states.size(1) < coordinates.size(1))
    throw std::invalid_argument("states must have the coordinates' dtype and at least as many columns");
  const void* const data = queue.data(states, "states", {states.size(0), states.size(1)});
  return boxes(data, states.size(0), coordinates.size(1), states.size(1), box_rows, panel);
}

}  // namespace

int64_t cuda_step(Tensor coordinates) {
  if (coordinates.device_type() != kernel_device || !fit(coordinates) || std::getenv("OFA_NO_WGMMA")) return 0;
  const Queue queue(coordinates);
  const void* const data = queue.data(coordinates, "coordinates", {coordinates.size(0), coordinates.size(1)});
  if (reinterpret_cast<uintptr_t>(data) % alignment || queue.shared_memory() < block_memory) return 0;
  int64_t result = 0;
  with_shape(coordinates, [&](auto shape) {
    using S = decltype(shape);
    if (Queue::registers(backward_pass<S>) >= pass_registers) result = S::step;
  });
  return result;
}

void cuda_forward(Tensor states, Tensor coordinates, Tensor bias, Tensor keys, Tensor counted, int64_t programs,
                  Tensor largest, Tensor sums, Tensor partial) {
  const Queue queue(coordinates);
  const int64_t positions = keys.numel(), most = largest.size(0), vocabulary = coordinates.size(0),
                rank = coordinates.size(1);
  if (programs < 1 || programs > most_rows || most < 1 || most > most_rows || positions > most_rows)
    throw std::invalid_argument("programs, splits and positions must be fewer than 2^31");
  with_shape(coordinates, [&](auto shape) {
    using S = decltype(shape);
    const void* const table = queue.data(coordinates, "coordinates", {vocabulary, rank});
    ForwardArguments a{};
    a.states = states_in_boxes(queue, states, coordinates, group_rows, S::own_panel);
    a.coordinates = boxes(table, vocabulary, rank, rank, S::step, S::panel);
    a.keys = queue.data<int32_t>(keys, "keys", {positions});
    a.counted = queue.data<int32_t>(counted, "counted", {});
    if (bias.numel()) a.bias = queue.data<float>(bias, "bias", {round_up(vocabulary, S::step)});
    if (reinterpret_cast<uintptr_t>(a.bias) % alignment)
      throw std::invalid_argument("bias must be aligned to 16 bytes");
    a.largest = queue.data<float>(largest, "largest", {most, positions});
    a.sums = queue.data<float>(sums, "sums", {most, positions});
    const int64_t rows = std::min(most * positions, std::max(programs * block_rows, positions));
    a.partial = partial.numel() ? queue.data<float>(partial, "partial", {rows, rank}) : nullptr;
    a.positions = positions, a.vocabulary = static_cast<int32_t>(vocabulary), a.rank = static_cast<int32_t>(rank);
    a.programs = static_cast<int32_t>(programs), a.most = static_cast<int32_t>(most);
    queue.launch("forward_pass", a.bias ? forward_pass<S, true> : forward_pass<S, false>,
                 dim3(std::max(programs, ceil_div<int64_t>(positions, block_rows))), pass_threads, S::bytes, a);
  });
}

void cuda_backward(Tensor states, Tensor coordinates, Tensor bias_tensor, Tensor keys, Tensor bounds, Tensor log_sums,
                   Tensor slopes, Tensor label_slopes, Tensor unit, Tensor grad_coordinates, Tensor grad_bias) {
  const Queue queue(coordinates);
  const int64_t positions = keys.numel(), padded = states.size(0), vocabulary = coordinates.size(0),
                rank = coordinates.size(1), blocks = ceil_div<int64_t>(vocabulary, block_rows);
  with_shape(coordinates, [&](auto shape) {
    using S = decltype(shape);
    if (padded % S::step || padded < positions || padded > most_rows)
      throw std::invalid_argument("states must be whole tiles of rows, for all positions");
    const Bias bias(queue, bias_tensor, vocabulary);
    const void* const table = queue.data(coordinates, "coordinates", {vocabulary, rank});
    BackwardArguments a{};
    a.coordinates = boxes(table, vocabulary, rank, rank, group_rows, S::own_panel);
    a.states = states_in_boxes(queue, states, coordinates, S::step, S::panel);
    a.keys = queue.data<int32_t>(keys, "keys", {positions});
    a.bounds = queue.data<int32_t>(bounds, "bounds", {blocks + 1});
    a.bias = bias.data, a.bias_dtype = bias.dtype;
    a.log_sums = queue.data<float>(log_sums, "log_sums", {padded});
    a.slopes = queue.data<float>(slopes, "slopes", {padded});
    a.label_slopes = queue.data<float>(label_slopes, "label_slopes", {padded});
    a.unit = queue.data<float>(unit, "unit", {});
    if (reinterpret_cast<uintptr_t>(a.log_sums) % alignment || reinterpret_cast<uintptr_t>(a.slopes) % alignment)
      throw std::invalid_argument("log_sums and slopes must be aligned to 16 bytes");
    if (grad_coordinates.numel()) {
      if (grad_coordinates.dtype() != coordinates.dtype())
        throw std::invalid_argument("grad_coordinates must have the coordinates' dtype");
      a.of_table = queue.data(grad_coordinates, "grad_coordinates", {vocabulary, rank});
    }
    if (grad_bias.numel()) {
      if (!bias.data || grad_bias.dtype() != bias.dtype)
        throw std::invalid_argument("grad_bias must have the bias' dtype");
      a.of_bias = queue.data(grad_bias, "grad_bias", {vocabulary});
    }
    a.vocabulary = static_cast<int32_t>(vocabulary), a.rank = static_cast<int32_t>(rank);
    queue.launch("backward_pass", backward_pass<S>, dim3(std::min<int64_t>(queue.processors(), blocks)), pass_threads,
                 S::bytes, a);
  });
}

}  // namespace ofa::factorized_cross_entropy
