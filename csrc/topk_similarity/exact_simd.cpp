#include "simd.h"
#include "topk_similarity/kernels.h"
#include "topk_similarity/rows.h"

namespace ofa {
namespace OFA_ISA {
namespace {

constexpr int doubles = lanes / 2;      // of a register
constexpr int registers = 8 / doubles;  // that make up the eight lanes of a canonical sum
typedef double vdouble __attribute__((vector_size(8 * doubles), aligned(8), may_alias));
typedef float vhalf __attribute__((vector_size(4 * doubles), aligned(4), may_alias));

inline vdouble widen(const float* p) {
#if defined(__AVX512F__)  // for which GCC 12 converts in halves and joins them
  return reinterpret_cast<vdouble>(_mm512_cvtps_pd(_mm256_loadu_ps(p)));
#elif defined(__AVX2__)
  return reinterpret_cast<vdouble>(_mm256_cvtps_pd(_mm_loadu_ps(p)));
#else
  return __builtin_convertvector(*reinterpret_cast<const vhalf*>(p), vdouble);
#endif
}
inline vdouble load_doubles(const double* p) { return *reinterpret_cast<const vdouble*>(p); }

struct Sum {
  vdouble part[registers];

  double total() const {
    double lane[8];
    std::memcpy(lane, part, sizeof lane);
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
  }
};

// The last depth % 8 elements, padded with zeros.
inline void copy_tail(const float* row, int64_t depth, float* tail) {
  const int64_t whole = depth / 8 * 8;
  for (int64_t d = whole; d < whole + 8; ++d) tail[d - whole] = d < depth ? row[d] : 0.0f;
}

double squared_norm(const float* row, int64_t depth) {
  Sum sum{};
  const int64_t whole = depth / 8 * 8;
  for (int64_t d = 0; d < whole; d += 8)
    for (int r = 0; r < registers; ++r) {
      const vdouble x = widen(row + d + r * doubles);
      sum.part[r] += x * x;
    }
  if (whole < depth) {
    float tail[8];
    copy_tail(row, depth, tail);
    for (int r = 0; r < registers; ++r) {
      const vdouble x = widen(tail + r * doubles);
      sum.part[r] += x * x;
    }
  }
  return sum.total();
}

void squared_norms(const void* rows, Dtype dtype, int64_t count, int64_t depth, double* norms, float* scratch) {
  for (int64_t row = 0; row < count; ++row)
    norms[row] = squared_norm(as_floats(rows, dtype, row, depth, scratch), depth);
}

// Several keys at once, as one sum alone waits for each of its additions.
constexpr int together = registers == 4 ? 2 : 4;

template <int keys>
inline void dot_group(const double* query, const float* const* row, int64_t depth, double* dots) {
  Sum sum[keys]{};
  const int64_t whole = depth / 8 * 8;
  for (int64_t d = 0; d < whole; d += 8)
#pragma GCC unroll 8
    for (int r = 0; r < registers; ++r) {
      const vdouble q = load_doubles(query + d + r * doubles);
#pragma GCC unroll 8
      for (int i = 0; i < keys; ++i) sum[i].part[r] += q * widen(row[i] + d + r * doubles);
    }
#pragma GCC unroll 8
  for (int i = 0; i < keys; ++i) {
    if (whole < depth) {
      float tail[8];
      copy_tail(row[i], depth, tail);
      for (int r = 0; r < registers; ++r)
        sum[i].part[r] += load_doubles(query + whole + r * doubles) * widen(tail + r * doubles);
    }
    dots[i] = sum[i].total();
  }
}

void dots(const double* query, const void* keys, Dtype dtype, const int32_t* index, int64_t count, int64_t depth,
          double* dots, float* scratch) {
  int64_t i = 0;
  if (dtype == Dtype::f32) {
    const float* table = static_cast<const float*>(keys);
    for (; i + together <= count; i += together) {
      const float* row[together];
      for (int j = 0; j < together; ++j) {
        row[j] = table + index[i + j] * depth;
        // the rows of the next group come from anywhere in the table
        if (i + together + j < count)
          for (int64_t d = 0; d < depth; d += 16) __builtin_prefetch(table + index[i + together + j] * depth + d);
      }
      dot_group<together>(query, row, depth, dots + i);
    }
  }
  for (; i < count; ++i) {
    const float* row = as_floats(keys, dtype, index[i], depth, scratch);
    dot_group<1>(query, &row, depth, dots + i);
  }
}

void widen_row(const void* row, Dtype dtype, int64_t depth, double* wide) {
  with_dtype(dtype, [&](auto constant) {
    for (int64_t d = 0; d < depth; ++d) wide[d] = load_as_float(row, constant.value, d);
  });
  for (int64_t d = depth; d % 8; ++d) wide[d] = 0.0;
}

}  // namespace

extern const TopkExact topk_exact = {squared_norms, dots, widen_row};

}  // namespace OFA_ISA
}  // namespace ofa
