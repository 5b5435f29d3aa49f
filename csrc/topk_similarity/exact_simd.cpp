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

inline void prefetch(const void* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(row) + at);
}

void squared_norms(const void* rows, Dtype dtype, int64_t count, int64_t depth, double* norms, float* scratch) {
  const int64_t bytes = depth * (dtype == Dtype::f32 ? 4 : 2);
  for (int64_t row = 0; row < count; ++row) {
    prefetch(static_cast<const char*>(rows) + (row + 4) * bytes, bytes);
    norms[row] = squared_norm(as_floats(rows, dtype, row, depth, scratch), depth);
  }
}

// Several keys at once, as one sum alone waits for each of its additions.
constexpr int together = registers == 4 ? 2 : 4;

template <int keys>
inline void dot_group(const float* query, const float* const* key, int64_t depth, double* dots) {
  Sum sum[keys]{};
  const int64_t whole = depth / 8 * 8;
  for (int64_t d = 0; d < whole; d += 8)
#pragma GCC unroll 8
    for (int r = 0; r < registers; ++r) {
      const vdouble q = widen(query + d + r * doubles);
#pragma GCC unroll 8
      for (int i = 0; i < keys; ++i) sum[i].part[r] += q * widen(key[i] + d + r * doubles);
    }
  float query_tail[8], key_tail[8];
  if (whole < depth) copy_tail(query, depth, query_tail);
#pragma GCC unroll 8
  for (int i = 0; i < keys; ++i) {
    if (whole < depth) {
      copy_tail(key[i], depth, key_tail);
      for (int r = 0; r < registers; ++r)
        sum[i].part[r] += widen(query_tail + r * doubles) * widen(key_tail + r * doubles);
    }
    dots[i] = sum[i].total();
  }
}

void dots(const void* query, const void* keys, Dtype dtype, const int32_t* key, int64_t count, int64_t depth,
          double* dots, float* scratch) {
  const float* row = as_floats(query, dtype, 0, depth, scratch);
  int64_t i = 0;
  if (dtype == Dtype::f32)
    for (; i + together <= count; i += together) {
      const float* rows[together];
      for (int j = 0; j < together; ++j) {
        rows[j] = static_cast<const float*>(keys) + key[i + j] * depth;
        if (i + j + together < count)
          prefetch(static_cast<const float*>(keys) + key[i + j + together] * depth, 4 * depth);
      }
      dot_group<together>(row, rows, depth, dots + i);
    }
  for (; i < count; ++i) {
    const float* one = as_floats(keys, dtype, key[i], depth, scratch + depth);
    dot_group<1>(row, &one, depth, dots + i);
  }
}

}  // namespace

extern const TopkExact topk_exact = {squared_norms, dots};

}  // namespace OFA_ISA
}  // namespace ofa
