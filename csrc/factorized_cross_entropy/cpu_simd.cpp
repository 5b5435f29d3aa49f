#if defined(__AMX_BF16__)
#  include "factorized_cross_entropy/products_amx.h"
#else
#  include "factorized_cross_entropy/products_fma.h"
#endif

namespace ofa {
namespace OFA_ISA {
namespace {

constexpr float infinity = __builtin_inff();

// exp(x) by 2^n e^r, |r| <= ln(2) / 2, e^r = 1 + r + r^2 q(r) with q minimax for the relative error (3e-9 before
// rounding). Within 1 ulp of exp for -87.3 < x < 88.3; zero below, infinity above, NaN for NaN.
inline vfloat exponential(vfloat x) {
  const vfloat floor = splat(-88.0f), ceiling = splat(89.0f), magic = splat(0x1.8p23f);  // adding it rounds to integers
  x = floor > x ? floor : x;
  x = ceiling < x ? ceiling : x;
  const vfloat shifted = x * 0x1.715476p0f + magic, n = shifted - magic;
  const vfloat r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;  // n times the first part of ln(2) is exact
  vfloat q = r * 0x1.6a23d0p-10f + 0x1.123a20p-7f;
  q = q * r + 0x1.5558f2p-5f;
  q = q * r + 0x1.555492p-3f;
  q = q * r + 0x1.fffffcp-2f;
  const vint power = (reinterpret_cast<vint>(shifted) - 0x4b400000 + 127) << 23;
  return (q * (r * r) + r + 1.0f) * reinterpret_cast<vfloat>(power);
}

inline vfloat larger(vfloat a, vfloat b) { return a > b ? a : b; }

// Calls found(vocabulary row within the tile, labelled row) for the labels that fall into the tile.
template <class Found>
inline void for_each_label(const Block& rows, int64_t first, int64_t count, Found&& found) {
  for (int64_t t = 0; t < rows.count; ++t) {
    const int64_t v = rows.labels[t] - first;
    if (v >= 0 && v < count) found(v, t);
  }
}

vfloat column_maximum(const float* column, int64_t count) {
  vfloat a = splat(-infinity), b = a, c = a, d = a;
  int64_t v = 0;
  for (; v + 4 <= count; v += 4, column += 4 * block_stride) {
    a = larger(a, load(column));
    b = larger(b, load(column + block_stride));
    c = larger(c, load(column + 2 * block_stride));
    d = larger(d, load(column + 3 * block_stride));
  }
  for (; v < count; ++v, column += block_stride) a = larger(a, load(column));
  return larger(larger(a, b), larger(c, d));
}

// Replaces a column by exp(score - shift) and returns its sum.
vfloat exponentiate_column(float* column, int64_t count, vfloat shift) {
  vfloat a{}, b{};
  int64_t v = 0;
  for (; v + 2 <= count; v += 2, column += 2 * block_stride) {
    const vfloat x = exponential(load(column) - shift), y = exponential(load(column + block_stride) - shift);
    store(column, x);
    store(column + block_stride, y);
    a += x;
    b += y;
  }
  if (v < count) {
    const vfloat x = exponential(load(column) - shift);
    store(column, x);
    a += x;
  }
  return a + b;
}

// exp(x - maximum) is taken relative to 0 while everything seen is -infinity.
inline float shift_of(float maximum) { return maximum == -infinity ? 0.0f : maximum; }

void forward(const Table& table, const Block& rows, int64_t first, int64_t last, const Scratch& scratch,
             const Partial& partial, float* target) {
  const int64_t stride = padded(table.rank);
  float maximum[block_stride];  // of the tile
  for (int64_t t = 0; t < block_stride; ++t) {
    partial.maximum[t] = -infinity;
    partial.sum[t] = 0.0;
  }
  if (partial.others) {
    for (int64_t i = 0; i < round_up(rows.count, 16) * stride; ++i) partial.others[i] = 0.0f;
    for (int64_t i = 0; i < tile * block_stride; ++i) scratch.scores[i] = 0.0f;
  }
  start_products();
  for (int64_t begin = first; begin < last; begin += tile) {
    const int64_t count = smaller(tile, last - begin);
    load_tile(table, begin, count, partial.others, scratch);
    const bool finite = score(table, rows, begin, count, scratch);
    for (int64_t t = 0; t < rows.count; t += lanes) store(maximum + t, column_maximum(scratch.scores + t, count));
    for (int64_t t = 0; t < rows.count; ++t) {
      if (!(maximum[t] > partial.maximum[t])) continue;
      const double factor = __builtin_exp(static_cast<double>(partial.maximum[t]) - maximum[t]);
      partial.maximum[t] = maximum[t];
      if (partial.sum[t] == 0.0) continue;
      partial.sum[t] *= factor;
      if (!partial.others) continue;
      for (int64_t r = 0; r < table.rank; ++r) partial.others[t * stride + r] *= static_cast<float>(factor);
    }
    for (int64_t t = 0; t < round_up(rows.count, lanes); ++t) maximum[t] = shift_of(partial.maximum[t]);
    for_each_label(rows, begin, count, [&](int64_t v, int64_t t) {
      target[t] = scratch.scores[v * block_stride + t];
      scratch.scores[v * block_stride + t] = -infinity;
    });
    for (int64_t t = 0; t < rows.count; t += lanes) {
      const vfloat sum = exponentiate_column(scratch.scores + t, count, load(maximum + t));
      for (int i = 0; i < lanes; ++i) partial.sum[t + i] += sum[i];
    }
    if (partial.others) add_others(table, rows, begin, count, finite, scratch, partial.others);
  }
  finish_products();
}

void backward_strip(const Table& table, const Block* blocks, const Weights* weights, int64_t block_count, int64_t first,
                    int64_t count, const Scratch& scratch, void* grad_coordinates, void* grad_bias) {
  const int64_t rank = table.rank, stride = padded(rank);
  double bias[strip];
  for (int64_t v = 0; v < count; ++v) bias[v] = 0.0;
  if (block_count == 0)
    for (int64_t i = 0; i < count * stride; ++i) scratch.gradient[i] = 0.0f;
  load_tile(table, first, count, false, scratch);
  for (int64_t b = 0; b < block_count; ++b) {
    const Block& rows = blocks[b];
    const bool finite = score(table, rows, first, count, scratch) && weights[b].finite;
    for_each_label(rows, first, count, [&](int64_t v, int64_t t) { scratch.scores[v * block_stride + t] = -infinity; });
    for (int64_t v = 0; v < count; ++v) {
      float* row = scratch.scores + v * block_stride;
      auto exponentiate = [&](int64_t t) {
        const vfloat p = exponential(load(row + t) - load(weights[b].lse + t)) * load(weights[b].weight + t);
        store(row + t, p);
        return p;
      };
      vfloat sum{};
      int64_t t = 0;
      for (; t + lanes <= rows.count; t += lanes) sum += exponentiate(t);
      for (int i = 0; i < lanes; ++i) bias[v] += sum[i];
      if (t == rows.count) continue;
      exponentiate(t);  // beyond the labelled rows an infinite coordinate times 0 may have left a NaN
      for (; t < rows.count; ++t) bias[v] += row[t];
    }
    for_each_label(rows, first, count, [&](int64_t v, int64_t t) {
      scratch.scores[v * block_stride + t] = weights[b].target_weight[t];
      bias[v] += weights[b].target_weight[t];
    });
    if (grad_coordinates) add_gradient(table, rows, count, finite, b > 0, scratch);
  }
  if (grad_coordinates)
    with_dtype(table.dtype, [&](auto constant) {
      for (int64_t v = 0; v < count; ++v)
        for (int64_t r = 0; r < rank; ++r)
          store_from_float(grad_coordinates, constant.value, (first + v) * rank + r, scratch.gradient[v * stride + r]);
    });
  if (grad_bias)
    for (int64_t v = 0; v < count; ++v) store_from_float(grad_bias, table.bias_dtype, first + v, bias[v]);
}

void backward(const Table& table, const Block* blocks, const Weights* weights, int64_t block_count, int64_t first,
              int64_t last, const Scratch& scratch, void* grad_coordinates, void* grad_bias) {
  start_products();
  for (int64_t begin = first; begin < last; begin += strip)
    backward_strip(table, blocks, weights, block_count, begin, smaller(strip, last - begin), scratch, grad_coordinates,
                   grad_bias);
  finish_products();
}

}  // namespace

extern const Kernels cross_entropy = {tile,    score_operand_size, gradient_operand_size, panel_size, prepare, forward,
                                      backward};

}  // namespace OFA_ISA
}  // namespace ofa
