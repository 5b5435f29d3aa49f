// The cross entropy's passes for GPUs of compute capability 9.0 in the emulator, against sums in double precision.
#include "factorized_cross_entropy/cuda_backward.h"
#include "tensor_map.h"

using namespace ofa;
using namespace ofa::factorized_cross_entropy;

namespace {

struct Case {
  int positions, count, vocabulary, rank, programs;
  bool biased;
  int labels;  // different ones
};

float number(uint32_t i) {  // of -1 to 1
  uint64_t x = i * 0x9e3779b97f4a7c15ull + 0x94d049bb133111ebull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  return static_cast<float>((x >> 40) & 0xffff) / 32768 - 1;
}

void expect(const char* what, double got, double wanted, double tolerance) {
  if (std::fabs(got - wanted) <= tolerance * (1 + std::fabs(wanted))) return;
  std::fprintf(stderr, "%s is %.9g and not %.9g\n", what, got, wanted);
  std::exit(1);
}

template <class S>
void test(const Case& c) {
  using T = typename S::T;
  constexpr float larger = 1 << magnified<T>;
  constexpr double log2e = 1.4426950408889634, tolerance = std::is_same_v<T, Half> ? 2e-3 : 1e-2;
  const int pitch = static_cast<int>(round_up(c.rank, 16)), rows = static_cast<int>(round_up(c.positions, S::step));
  std::vector<T> states(rows * pitch), table(c.vocabulary * c.rank);
  for (int i = 0; i < c.count; ++i)
    for (int j = 0; j < c.rank; ++j) states[i * pitch + j] = from_float<T>(number(i * 1000 + j));
  for (size_t i = 0; i < table.size(); ++i) table[i] = from_float<T>(number(7000000 + i) * 0.5f);
  std::vector<int32_t> keys(c.positions, c.vocabulary);
  for (int i = 0; i < c.count; ++i) keys[i] = static_cast<int>((number(900 + i % c.labels) + 1) / 2 * c.vocabulary);
  if (c.count > 2 && c.labels > 2) keys[0] = 0, keys[1] = c.vocabulary - 1;
  std::sort(keys.begin(), keys.end());
  std::vector<float> bias(c.vocabulary);
  for (int i = 0; i < c.vocabulary; ++i) bias[i] = c.biased ? number(5000 + i) : 0;

  std::vector<double> scores(c.count * c.vocabulary);  // in bits
  for (int i = 0; i < c.count; ++i)
    for (int v = 0; v < c.vocabulary; ++v) {
      double sum = bias[v];
      for (int j = 0; j < c.rank; ++j)
        sum += static_cast<double>(to_float(states[i * pitch + j])) * to_float(table[v * c.rank + j]);
      scores[i * c.vocabulary + v] = sum * log2e;
    }

  const int tiles = ceil_div(c.vocabulary, S::step), most = std::max(1, std::min(tiles / 2, 64));
  const int wanted = std::max(1, std::min(c.programs / std::max(1, ceil_div(c.count, block_rows)), most));
  const int split_tiles = ceil_div(tiles, wanted), splits = ceil_div(tiles, split_tiles);
  std::vector<float> largest(most * c.positions, NAN), sums(most * c.positions, NAN),
      partial(splits * c.count * c.rank, NAN);
  ForwardArguments f{};
  f.states = boxes(states.data(), rows, c.rank, pitch, group_rows, S::own_panel);
  f.coordinates = boxes(table.data(), c.vocabulary, c.rank, c.rank, S::step, S::panel);
  alignas(16) static float bits[1 << 12];
  std::fill(std::begin(bits), std::end(bits), -HUGE_VALF);
  for (int i = 0; i < c.vocabulary; ++i) bits[i] = bias[i] * log2_e;
  f.keys = keys.data(), f.counted = &c.count, f.bias = c.biased ? bits : nullptr;
  f.largest = largest.data(), f.sums = sums.data(), f.partial = partial.data();
  f.positions = c.positions, f.vocabulary = c.vocabulary, f.rank = c.rank, f.programs = c.programs, f.most = most;
  const int grid = std::max(c.programs, ceil_div(c.positions, block_rows));
  start(c.biased ? forward_pass<S, true> : forward_pass<S, false>, dim3(grid), pass_threads, S::bytes, nullptr, f);
  std::vector<double> lse(c.count);
  for (int i = 0; i < c.count; ++i) {
    double top = -HUGE_VAL, total = 0;
    for (int v = 0; v < c.vocabulary; ++v)
      if (v != keys[i]) top = std::max(top, scores[i * c.vocabulary + v]);
    for (int v = 0; v < c.vocabulary; ++v)
      if (v != keys[i]) total += std::exp2(scores[i * c.vocabulary + v] - top);
    lse[i] = top + std::log2(total);
    double sum = 0;
    for (int s = 0; s < splits; ++s) sum += std::exp2(largest[s * c.positions + i] - top) * sums[s * c.positions + i];
    expect("a sum", top + std::log2(sum), lse[i], 1e-4);
    for (int j = 0; j < c.rank; ++j) {
      double mean = 0, got = 0;
      for (int v = 0; v < c.vocabulary; ++v)
        if (v != keys[i]) mean += std::exp2(scores[i * c.vocabulary + v] - lse[i]) * to_float(table[v * c.rank + j]);
      for (int s = 0; s < splits; ++s)
        got += std::exp2(largest[s * c.positions + i] - lse[i]) * partial[(s * c.count + i) * c.rank + j] / larger;
      expect("a mean", got, mean, tolerance * 0.5);
    }
  }

  std::vector<float> log_sums(rows, HUGE_VALF), slopes(rows), label_slopes(rows);
  for (int i = 0; i < c.count; ++i) {
    log_sums[i] = static_cast<float>(lse[i]);
    slopes[i] = number(3000 + i) * larger, label_slopes[i] = number(4000 + i) * larger;
  }
  const int blocks = ceil_div(c.vocabulary, block_rows);
  std::vector<int32_t> bounds(blocks + 1);
  for (int i = 0; i <= blocks; ++i)
    bounds[i] = static_cast<int32_t>(
        std::lower_bound(keys.begin(), keys.end(), std::min(i * block_rows, c.vocabulary)) - keys.begin());
  std::vector<T> grad(c.vocabulary * c.rank, T{0xffff});
  std::vector<float> grad_bias(c.vocabulary, NAN);
  const float unit = 0.5;
  BackwardArguments b{};
  b.coordinates = boxes(table.data(), c.vocabulary, c.rank, c.rank, group_rows, S::own_panel);
  b.states = boxes(states.data(), rows, c.rank, pitch, S::step, S::panel);
  b.keys = keys.data(), b.bounds = bounds.data(), b.bias = c.biased ? bias.data() : nullptr, b.bias_dtype = Dtype::f32;
  b.log_sums = log_sums.data(), b.slopes = slopes.data(), b.label_slopes = label_slopes.data(), b.unit = &unit;
  b.of_table = grad.data(), b.of_bias = grad_bias.data();
  b.vocabulary = c.vocabulary, b.rank = c.rank;
  start(backward_pass<S>, dim3(std::min(c.programs, blocks)), pass_threads, S::bytes, nullptr, b);
  for (int v = 0; v < c.vocabulary; ++v) {
    std::vector<double> row(c.rank);
    double total = 0;
    for (int i = 0; i < c.count; ++i) {
      const double p =
          v == keys[i] ? label_slopes[i] : std::exp2(scores[i * c.vocabulary + v] - log_sums[i]) * slopes[i];
      total += p;
      for (int j = 0; j < c.rank; ++j) row[j] += p * to_float(states[i * pitch + j]);
    }
    expect("a gradient of the bias", grad_bias[v], total * unit / larger, 1e-4);
    for (int j = 0; j < c.rank; ++j)
      expect("a gradient", to_float(grad[v * c.rank + j]), row[j] * unit / larger, tolerance);
  }
}

}  // namespace

int main() {
  setenv("OFA_SHARED_KIB", "227", 1);
  test<Shape<Bfloat, 64>>({150, 141, 1500, 16, 5, true, 100});
  test<Shape<Half, 128>>({150, 129, 600, 72, 5, false, 1});
  test<Shape<Bfloat, 200>>({150, 141, 1200, 200, 3, true, 3});
  test<Shape<Half, 200>>({150, 141, 700, 200, 5, true, 100});
  test<Shape<Bfloat, 200>>({300, 257, 450, 136, 2, false, 100});
  test<Shape<Half, 256>>({150, 141, 500, 216, 5, false, 100});
  test<Shape<Bfloat, 256>>({20, 1, 300, 256, 7, true, 1});
  test<Shape<Bfloat, 200>>({20, 0, 300, 200, 7, true, 1});
  std::puts("8 cases");
}
