// What the products of a backward pass leave to be added up, for cuda.cu: rows of the tokens over equal ids, and slices
// of the basis' gradient. The sorted tokens are cut into pieces, so that an id that occurs a thousand times is not one
// thread's work: a piece sums its part of each id, in token order, and what belongs to an id of several pieces is added
// afterwards, in their order.
#pragma once

#include "cuda.h"
#include "factorized_embedding/cuda_group.h"
#include "factorized_embedding/cuda_product.h"

namespace ofa::factorized_embedding {

constexpr int piece = 32, sum_threads = 128, sum_columns = 2 * sum_threads, loaded_at_once = 8;
static_assert(piece % loaded_at_once == 0 && piece + 2 <= sum_threads);

struct alignas(8) Two {
  float a, b;
  __device__ void operator+=(const Two& other) { a += other.a, b += other.b; }
};

// Rows of all tokens, in the tokens' order, and sums of them: of ids whose tokens all lie in one piece in `out`;
// partial[2 piece] of one that goes on from the piece before, and partial[2 piece + 1] of one that begins there and
// goes on in the next. `stride`: of a row of tokens or partial sums, an even number.
template <class T>
struct Sums {
  Sorted sorted;
  const float* rows;
  float* partial;
  int64_t stride;
  Rows<T> out;
  int64_t pieces, blocks;  // of threads: for every piece as many as its columns need

  __device__ void write(int64_t row, int64_t column, const Two& sum) const {
    const T values[2] = {from_float<T>(sum.a), from_float<T>(sum.b)};
    out.write(row, column, values);
  }
  __device__ Two* partial_sum(int64_t row, int64_t column) const {
    return reinterpret_cast<Two*>(partial + row * stride + column);
  }
};

template <class T>
__device__ void sum_piece(const Sums<T>& sums, int64_t own, int64_t column) {
  constexpr uint32_t none = 0xffffffff;
  __shared__ uint32_t key[piece + 2];  // with the one before and the one behind
  __shared__ int32_t token[piece];
  __shared__ int64_t row[piece];
  const Sorted& sorted = sums.sorted;
  const int64_t begin = own * piece;
  const int thread = threadIdx.x;
  if (thread < piece + 2) {
    const int64_t i = begin + thread - 1;
    key[thread] = i >= 0 && sorted.counts(i) ? sorted.keys[i] : none;
  }
  if (thread < piece) {
    const bool counts = sorted.counts(begin + thread);
    token[thread] = counts ? sorted.order[begin + thread] : 0;
    row[thread] = counts ? sorted.row(begin + thread) : 0;
  }
  __syncthreads();
  if (column >= sums.stride) return;
  bool begins = key[0] != key[1];
  Two sum{};
  for (int first = 0; first < piece && key[first + 1] != none; first += loaded_at_once) {
    Two x[loaded_at_once];
#pragma unroll
    for (int i = 0; i < loaded_at_once; ++i)
      x[i] = *reinterpret_cast<const Two*>(sums.rows + token[first + i] * sums.stride + column);
#pragma unroll
    for (int i = 0; i < loaded_at_once; ++i) {
      const int at = first + i;
      if (key[at + 1] == none) break;
      sum += x[i];
      const bool ends = key[at + 2] != key[at + 1];
      if (!ends && at + 1 < piece) continue;
      if (begins && ends)
        sums.write(row[at], column, sum);
      else
        *sums.partial_sum(2 * own + begins, column) = sum;
      sum = Two{};
      begins = true;
    }
  }
}

// The sums of ids of several pieces: by the block of the piece that they begin in.
template <class T>
__global__ void __launch_bounds__(sum_threads) add_pieces(Sums<T> sums) {
  __shared__ int64_t last_piece;
  const Sorted& sorted = sums.sorted;
  const int64_t own = blockIdx.x % sums.pieces, begin = own * piece, next = begin + piece;
  if (next >= sorted.count) return;
  const uint32_t key = sorted.keys[next];
  if (key >= sorted.vocabulary || sorted.keys[next - 1] != key) return;
  if (begin && sorted.keys[begin - 1] == key) return;
  if (threadIdx.x == 0) {
    int64_t low = next, high = sorted.count;  // the last token of the id lies in [low, high)
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (sorted.keys[middle] == key ? low : high) = middle;
    }
    last_piece = low / piece;
  }
  __syncthreads();
  const int64_t column = blockIdx.x / sums.pieces * sum_columns + 2 * threadIdx.x, last = last_piece;
  if (column >= sums.stride) return;
  Two sum = *sums.partial_sum(2 * own + 1, column);
#pragma unroll 8
  for (int64_t other = own + 1; other <= last; ++other) sum += *sums.partial_sum(2 * other, column);
  sums.write(sorted.row(next), column, sum);
}

// Slices of `stride` numbers, a multiple of four, that are added in order to `count` numbers.
template <class T>
struct Slices {
  const float* data;
  int64_t slices, stride, count;
  T* out;
};
constexpr int added_at_once = 4 * sum_threads;  // by a block

template <class T>
__device__ void add_slices(const Slices<T>& slices, int64_t block) {
  struct alignas(16) Four {
    float element[4];
  };
  const int64_t i = block * added_at_once + 4 * threadIdx.x;
  if (i >= slices.count) return;
  Four sum = *reinterpret_cast<const Four*>(slices.data + i);
#pragma unroll 8
  for (int64_t slice = 1; slice < slices.slices; ++slice) {
    const Four other = *reinterpret_cast<const Four*>(slices.data + slice * slices.stride + i);
#pragma unroll
    for (int j = 0; j < 4; ++j) sum.element[j] += other.element[j];
  }
  T values[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) values[j] = from_float<T>(sum.element[j]);
  Rows<T>{slices.out, slices.count, 1, slices.count}.write(0, i, values);
}

// The first blocks add pieces, all others slices.
template <class T>
__global__ void __launch_bounds__(sum_threads) add_products(Sums<T> sums, Slices<T> slices) {
  const int64_t block = blockIdx.x;
  if (block < sums.blocks)
    sum_piece(sums, block % sums.pieces, block / sums.pieces * sum_columns + 2 * threadIdx.x);
  else
    add_slices(slices, block - sums.blocks);
}

}  // namespace ofa::factorized_embedding
