// Rows as int8 codes for tensor cores, for cuda.cu. A row is scaled to a norm of at most 1 and turned by a fixed
// orthogonal matrix: sign changes, then a Hadamard matrix on each 64 columns, the last of them 32 where those are
// enough. That leaves every product as it is and spreads large entries, so that one scale does for many. The turned row
// is scale * its codes to within `residual`.
//
// Codes lie as tensor cores read them: in tiles of 128 rows, of each the first 32 codes of all rows, then the next 32.
// Of every second four rows the halves of 32 codes change places: eight rows of 16 codes then lie in different banks of
// shared memory, as do four rows of 32. And any depth of a tile's rows is one piece of memory.
#pragma once

#include "topk_similarity/cuda_exact.h"

namespace ofa::topk_similarity {

constexpr int turned = 64, half_turned = turned / 2;  // columns that are turned together
constexpr int query_tile = 256, key_tile = 128, encoded_at_once = 128, encode_threads = 256;
constexpr int chunk = 16, slice_row = 2 * chunk;  // codes, which are bytes

// Of a code within its tile.
__host__ __device__ constexpr int code_offset(int row, int column) {
  return (column / slice_row * encoded_at_once + row) * slice_row + (column / chunk ^ row / 4) % 2 * chunk +
         column % chunk;
}

struct alignas(16) KeyTile {
  float scale, norm, residual;  // the largest of its keys
  float inverse;                // 1 / scale
};

// An upper bound of a score, in units of |query| times the keys' unit: product * scale * tile.scale + slack, where
// slack is slope * tile.norm + reach * tile.residual.
struct alignas(16) QueryBound {
  float limit;  // the least upper bound that counts
  float scale, slope, reach;
};

// Beyond the residuals: each turn loses at most 8 roundings, of 2^-24 of a row's norm; float32 bounds 8 more; the
// float64 scores and norms nearly nothing.
constexpr float rounding = 0x1p-19f;
// What float32 sums of up to 65,536 squares may lose, and squares that underflow.
constexpr float residual_factor = 1.002f, residual_least = 1e-12f;

// Signs that no data has: bits of a multiplicative hash of the column.
__device__ inline float sign(int column) { return (column + 1) * 2654435761u >> 31 ? -1.0f : 1.0f; }

// Columns [first + lane] and, if `whole`, [first + lane + 32] of a row, scaled and turned; called by whole warps.
struct Pair {
  float a, b;
};
template <class T>
__device__ Pair turn(const T* row, int64_t depth, int first, bool whole, double factor, int lane) {
  const int column = first + lane;
  Pair x{0, 0};
  if (column < depth) x.a = sign(column) * static_cast<float>(to_float(row[column]) * factor);
  if (column + 32 < depth) x.b = sign(column + 32) * static_cast<float>(to_float(row[column + 32]) * factor);
  if (whole) x = {x.a + x.b, x.a - x.b};
  for (int step = 16; step > 0; step /= 2) {
    const float a = __shfl_xor_sync(all_threads, x.a, step), b = __shfl_xor_sync(all_threads, x.b, step);
    x = lane & step ? Pair{a - x.a, b - x.b} : Pair{a + x.a, b + x.b};
  }
  constexpr float root = 0.17677669529663689f;  // of 1/32
  return whole ? Pair{x.a / 8, x.b / 8} : Pair{x.a * root, 0};
}

__device__ inline float code_of(float x, float scale) { return fminf(fmaxf(rintf(x / scale), -127.0f), 127.0f); }

// A block encodes 128 rows: a tile of keys, with one scale, or queries, each with its own. Rows from `count` on are
// zeros. `unit`: the norm of all keys that is to be 1 (dot), or null: each row's own (cosine, and all queries).
template <class T, bool for_keys>
__global__ void __launch_bounds__(encode_threads)
    encode(const T* rows, int64_t count, int64_t depth, int padded, const double* norms, const double* unit,
           int8_t* codes, KeyTile* tiles, QueryBound* bounds) {
  __shared__ float scales[encoded_at_once], residuals[encoded_at_once], sizes[encoded_at_once];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * encoded_at_once;
  const auto factor_of = [&](int64_t row) {  // zero rows, and those that are not finite, become zeros
    const double norm = row < count ? norms[row] : 0.0;
    return norm > 0 && norm < infinity ? 1 / (unit ? *unit : norm) : 0.0;
  };

  for (int i = warp; i < encoded_at_once; i += encode_threads / 32) {
    const int64_t row = first_row + i;
    const double factor = factor_of(row);
    float most = 0;
    for (int at = 0; at < padded; at += turned) {
      const bool whole = padded - at > half_turned;
      const Pair x = turn(rows + (factor > 0 ? row : 0) * depth, factor > 0 ? depth : 0, at, whole, factor, lane);
      most = fmaxf(most, fmaxf(fabsf(x.a), fabsf(x.b)));
    }
    for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(all_threads, most, step));
    if (lane == 0) scales[i] = most / 127;
  }
  __syncthreads();
  int8_t* const tile = codes + first_row * padded;
  float of_all = 0;
  for (int i = 0; i < encoded_at_once; ++i) of_all = fmaxf(of_all, scales[i]);

  for (int i = warp; i < encoded_at_once; i += encode_threads / 32) {
    const int64_t row = first_row + i;
    const double factor = factor_of(row);
    const float largest = for_keys ? of_all : scales[i], scale = largest > 0 ? largest : 1.0f;
    float squares = 0;
    for (int at = 0; at < padded; at += turned) {
      const bool whole = padded - at > half_turned;
      const Pair x = turn(rows + (factor > 0 ? row : 0) * depth, factor > 0 ? depth : 0, at, whole, factor, lane);
      const float a = code_of(x.a, scale), b = code_of(x.b, scale);
      tile[code_offset(i, at + lane)] = static_cast<int8_t>(a);
      if (whole) tile[code_offset(i, at + half_turned + lane)] = static_cast<int8_t>(b);
      const float lost_a = fmaf(-scale, a, x.a), lost_b = fmaf(-scale, b, x.b);
      squares = fmaf(lost_a, lost_a, fmaf(lost_b, lost_b, squares));
    }
    for (int step = 16; step > 0; step /= 2) squares += __shfl_xor_sync(all_threads, squares, step);
    if (lane) continue;
    const float residual = sqrtf(squares) * residual_factor + residual_least;
    if (for_keys) {
      residuals[i] = residual;
      sizes[i] = static_cast<float>(factor > 0 ? norms[row] * factor : 0.0) * (1 + rounding);
    } else {
      // |q k - q' k'| <= |q - q'| |k| + |q'| |k - k'|
      bounds[row] = {static_cast<float>(infinity), scale, (residual + rounding) * (1 + rounding),
                     (1 + residual) * (1 + rounding)};
    }
  }
  if (!for_keys) return;
  __syncthreads();
  if (threadIdx.x) return;
  const float scale = of_all > 0 ? of_all : 1.0f;
  KeyTile of_keys{scale, 0, 0, 1 / scale};
  for (int i = 0; i < encoded_at_once; ++i) {
    of_keys.norm = fmaxf(of_keys.norm, sizes[i]);
    of_keys.residual = fmaxf(of_keys.residual, residuals[i]);
  }
  tiles[blockIdx.x] = of_keys;
}

}  // namespace ofa::topk_similarity
