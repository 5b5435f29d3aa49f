// The product of two operands that are gathered and converted on their way into shared memory, for cuda.cu. A block has
// 64 x 64 of the result, four warps 32 x 32 each. float32 operands are two TF32 parts of 11 binary digits each; of
// their four products the three that matter are taken, small ones first, and of an operand that came from 16 bits,
// which is its own first part, none of the second. What is 32 deep is summed on the tensor cores, which cut off, and
// then added to the rest, to the nearest. Every element of the result is summed in one order, whatever stands around
// it.
#pragma once

#include <type_traits>

#include "cuda.h"
#include "tiles.h"

namespace ofa::factorized_embedding {

constexpr int product_threads = 128, block_side = 64, warp_side = 32;
constexpr int parts = 2;  // tiles of 64 bytes of depth that are loaded at once
constexpr int operand_bytes = parts * block_side * tile_row;
constexpr int product_chunks = parts * chunks;  // of a row
constexpr int own_chunks = block_side * product_chunks / product_threads;

template <class T>
constexpr int per_chunk = 16 / sizeof(T);
template <class T>
constexpr int step_depth = per_chunk<T> * product_chunks;

template <class T>
struct alignas(16) Chunk {
  T element[per_chunk<T>];
};

template <class T, class Source>
__device__ T convert(Source x) {
  if constexpr (std::is_same_v<T, Source>)
    return x;
  else
    return to_float(x);
}

// Elements [at, at + 16 bytes) of a line of `length` elements, zeros beyond it and if there is no line.
template <class T, class Source>
__device__ Chunk<T> load_chunk(const Source* line, int64_t at, int64_t length) {
  constexpr int count = per_chunk<T>;
  struct alignas(count * sizeof(Source)) Pack {
    Source element[count];
  };
  Chunk<T> chunk{};
  if (!line || at >= length) return chunk;
  if (at + count <= length && reinterpret_cast<uintptr_t>(line + at) % sizeof(Pack) == 0) {
    const Pack pack = *reinterpret_cast<const Pack*>(line + at);
#pragma unroll
    for (int i = 0; i < count; ++i) chunk.element[i] = convert<T>(pack.element[i]);
  } else {
#pragma unroll
    for (int i = 0; i < count; ++i)
      if (at + i < length) chunk.element[i] = convert<T>(line[at + i]);
  }
  return chunk;
}

// Lines of a row-major matrix: line i is row index[i], or row i where there is no index. `count` lines; those that the
// matrix does not have, and whose index lies outside of it, are zero.
template <class Element>
struct Lines {
  using Source = Element;
  const Element* data;
  int64_t width, rows;  // of the matrix
  const int64_t* index;
  int64_t count;
  __device__ const Element* line(int64_t i) const {
    if (i >= count) return nullptr;
    const int64_t row = index ? index[i] : i;
    return row >= 0 && row < rows ? data + row * width : nullptr;
  }
};

// An operand whose rows are lines, or (`along`) whose depths are.
template <class T, class Source, bool along>
class Loader {
 public:
  __device__ Loader(const Lines<Source>& lines, int64_t first_row) : lines_(lines), first_row_(first_row) {
    if constexpr (!along)
      for (int i = 0; i < own_chunks; ++i) own_[i] = lines.line(first_row + row(i));
  }

  __device__ void load(int64_t depth) {
#pragma unroll
    for (int i = 0; i < own_chunks; ++i) {
      if constexpr (along)
        chunks_[i] = load_chunk<T>(lines_.line(depth + row(i)), first_row_ + at(i), lines_.width);
      else
        chunks_[i] = load_chunk<T>(own_[i], depth + at(i), lines_.width);
    }
  }

  __device__ void store(uint8_t* tiles) const {
#pragma unroll
    for (int i = 0; i < own_chunks; ++i) {
      if constexpr (along) {
#pragma unroll
        for (int j = 0; j < per_chunk<T>; ++j)
          *reinterpret_cast<T*>(tiles + place(at(i) + j, row(i) * static_cast<int>(sizeof(T)))) = chunks_[i].element[j];
      } else {
        *reinterpret_cast<Chunk<T>*>(tiles + place(row(i), at(i) * static_cast<int>(sizeof(T)))) = chunks_[i];
      }
    }
  }

 private:
  // Of the thread's i-th chunk: its line, counted from the first of this step, and where in it. Along lines a warp
  // takes neighbouring depths, which are neighbours in shared memory.
  static __device__ int row(int i) {
    const int chunk = static_cast<int>(threadIdx.x) + i * product_threads;
    return along ? chunk % step_depth<T> : chunk / product_chunks;
  }
  static __device__ int at(int i) {
    const int chunk = static_cast<int>(threadIdx.x) + i * product_threads;
    return (along ? chunk / step_depth<T> : chunk % product_chunks) * per_chunk<T>;
  }
  static __device__ int place(int row, int byte) {
    return byte / tile_row * block_side * tile_row + tile_offset(row, byte % tile_row / 16) + byte % 16;
  }

  const Lines<Source> lines_;
  const int64_t first_row_;
  const Source* own_[along ? 1 : own_chunks];
  Chunk<T> chunks_[own_chunks];
};

// The two TF32 parts of a float32 number.
__device__ inline void split(const uint32_t (&words)[4], uint32_t (&high)[4], uint32_t (&low)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float x = __uint_as_float(words[i]);
    high[i] = to_tf32(x);
    low[i] = to_tf32(x - __uint_as_float(high[i]));
  }
}

// out(row, column, a, b) for rows and pairs of columns of this block, of sums over depths [begin, end).
template <class T, bool left_along, bool right_along, class Left, class Right, class Out>
__device__ void multiply_lines(const Lines<Left>& left, const Lines<Right>& right, int64_t begin, int64_t end,
                               const Out& out) {
  constexpr bool as_tf32 = std::is_same_v<T, float>;
  constexpr bool left_low = std::is_same_v<Left, float>, right_low = std::is_same_v<Right, float>;
  __shared__ __align__(128) uint8_t tiles[2][2 * operand_bytes];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_row = warp % 2 * warp_side, warp_column = warp / 2 * warp_side;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * block_side,
                first_column = static_cast<int64_t>(blockIdx.y) * block_side;
  Loader<T, Left, left_along> left_loader(left, first_row);
  Loader<T, Right, right_along> right_loader(right, first_column);

  float total[2][4][4] = {};
  if (begin < end) left_loader.load(begin), right_loader.load(begin);
  int now = 0;
  for (int64_t depth = begin; depth < end; depth += step_depth<T>, now ^= 1) {
    // Two buffers: whoever still reads the other one has not passed the barrier of this step.
    uint8_t* const left_tiles = tiles[now];
    uint8_t* const right_tiles = left_tiles + operand_bytes;
    left_loader.store(left_tiles);
    right_loader.store(right_tiles);
    __syncthreads();
    if (depth + step_depth<T> < end) {
      left_loader.load(depth + step_depth<T>);
      right_loader.load(depth + step_depth<T>);
    }
    float sum[2][4][4] = {};
    auto& target = as_tf32 ? sum : total;
#pragma unroll
    for (int part = 0; part < parts; ++part)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t a[2][4], b[2][4], a_low[2][4], b_low[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          load_left(a[i], left_tiles + part * block_side * tile_row, warp_row + 16 * i, half, lane);
          load_right(b[i], right_tiles + part * block_side * tile_row, warp_column + 16 * i, half, lane);
          if constexpr (as_tf32) {
            if constexpr (left_low) split(a[i], a[i], a_low[i]);
            if constexpr (right_low) split(b[i], b[i], b_low[i]);
          }
        }
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            const int i = n / 2, j = n % 2 * 2;
            if constexpr (as_tf32 && left_low) multiply<T>(target[m][n], a_low[m], b[i][j], b[i][j + 1]);
            if constexpr (as_tf32 && right_low) multiply<T>(target[m][n], a[m], b_low[i][j], b_low[i][j + 1]);
            multiply<T>(target[m][n], a[m], b[i][j], b[i][j + 1]);
          }
      }
    if constexpr (as_tf32)
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int j = 0; j < 4; ++j) total[m][n][j] += sum[m][n][j];
  }
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        out(first_row + warp_row + 16 * m + 8 * half + lane / 4, first_column + warp_column + 8 * n + lane % 4 * 2,
            total[m][n][2 * half], total[m][n][2 * half + 1]);
}

}  // namespace ofa::factorized_embedding
