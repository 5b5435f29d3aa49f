// The product of two operands that are gathered on their way into shared memory, for cuda.cu. A block has 128 columns
// of the result and 128 rows, 64 of float32; eight warps have 32 columns and half of the rows each. Copies into shared
// memory are two steps ahead of the tensor cores. float32 operands are two TF32 parts of 11 binary digits each; of
// their four products the three that matter are taken, small ones first. What is 16 deep is then summed on the tensor
// cores, which cut off, and added to the rest, to the nearest. Every element of the result is summed in one order,
// whatever stands around it.
#pragma once

#include <type_traits>

#include "cuda.h"
#include "tiles.h"

namespace ofa::factorized_embedding {

constexpr int product_threads = 256, block_columns = 128, warp_columns = 32;
constexpr int stages = 3;                                                 // steps in shared memory
constexpr int product_bytes = stages * (128 + block_columns) * tile_row;  // of it, all that is had without asking
static_assert(product_bytes <= 48 << 10);

template <class T>
constexpr int block_rows = sizeof(T) == 4 ? 64 : 128;
template <class T>
constexpr int per_chunk = 16 / sizeof(T);
template <class T>
constexpr int step_depth = tile_row / sizeof(T);

template <class T>
struct alignas(16) Chunk {
  T element[per_chunk<T>];
};

// Lines of a row-major matrix: line i is row i, or with ids row ids[i] of the `gathered` ones. Lines from `count` on
// are zero, and so are those whose id is none of a vocabulary or the padding.
template <class T>
struct Lines {
  const T* data;
  int64_t width, count;
  const int64_t* ids = nullptr;
  int64_t vocabulary = 0, padding_idx = -1;
  bool gathered = false;
  __device__ const T* line(int64_t i) const {
    if (i >= count) return nullptr;
    if (!ids) return data + i * width;
    const int64_t id = ids[i];
    if (id < 0 || id >= vocabulary || id == padding_idx) return nullptr;
    return data + (gathered ? id : i) * width;
  }
};

// 16 bytes to shared memory: `count` elements, if there are as many, and zeros.
template <class T>
__device__ void copy_chunk(uint8_t* to, const T* from, int64_t count) {
  if (count >= per_chunk<T> && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
    copy_async(to, from);
    return;
  }
  Chunk<T> chunk{};
#pragma unroll
  for (int i = 0; i < per_chunk<T>; ++i)
    if (i < count) chunk.element[i] = from[i];
  *reinterpret_cast<Chunk<T>*>(to) = chunk;
}

// `side` rows of an operand, a step deep: lines are rows, or (`along`) depths. Along lines, shared memory has a row for
// each depth, whose chunks change places so that the eight rows or, of float32, the four half rows that are read at
// once lie in different banks.
template <class T, bool along, int side>
class Operand {
  static constexpr int own = side * chunks / product_threads;
  static constexpr int line_chunks = along ? side / per_chunk<T> : chunks;  // in shared memory

 public:
  static constexpr int bytes = side * tile_row;

  __device__ Operand(const Lines<T>& lines, int64_t first_row, int64_t begin) : lines_(lines), first_row_(first_row) {
#pragma unroll
    for (int i = 0; i < own; ++i) from_[i] = lines.line((along ? begin : first_row) + line(i));
  }

  // Depths [depth, depth + step_depth) of those before `end`; steps come one after the other.
  __device__ void load(uint8_t* shared, int64_t depth, int64_t end) {
#pragma unroll
    for (int i = 0; i < own; ++i) {
      const int64_t at = (along ? first_row_ : depth) + chunk(i) * per_chunk<T>;
      const int64_t count = from_[i] ? (along ? lines_.width : end) - at : 0;
      copy_chunk(shared + place(line(i), chunk(i)), from_[i] + (count > 0 ? at : 0), count);
    }
    if constexpr (along)  // ids are there by the time that the next step wants them
#pragma unroll
      for (int i = 0; i < own; ++i) {
        const int64_t next = depth + step_depth<T> + line(i);
        from_[i] = next < end ? lines_.line(next) : nullptr;
      }
  }

  // Words of a product's left operand (16 rows from `row` on), or of two right ones (8 rows each), as `multiply` takes
  // them; `half`: of the step.
  static __device__ void left(uint32_t (&words)[4], const uint8_t* shared, int row, int half, int lane) {
    if constexpr (!along)
      load_left(words, shared, row, half, lane);
    else if constexpr (sizeof(T) == 2)
      load_matrices_transposed(words, at(shared, 16 * half + (lane >> 4 << 3) + (lane & 7), row + (lane & 8)));
    else
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = word(shared, 8 * half + i / 2 * 4 + lane % 4, row + i % 2 * 8 + lane / 4);
  }
  static __device__ void right(uint32_t (&words)[4], const uint8_t* shared, int row, int half, int lane) {
    if constexpr (!along)
      load_right(words, shared, row, half, lane);
    else if constexpr (sizeof(T) == 2)
      load_matrices_transposed(words, at(shared, 16 * half + (lane & 15), row + (lane >> 4 << 3)));
    else
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = word(shared, 8 * half + i % 2 * 4 + lane % 4, row + i / 2 * 8 + lane / 4);
  }

 private:
  // Of the thread's i-th chunk: its line, counted from the first of this step or block, and where in it.
  static __device__ int line(int i) { return (static_cast<int>(threadIdx.x) + i * product_threads) / line_chunks; }
  static __device__ int chunk(int i) { return (static_cast<int>(threadIdx.x) + i * product_threads) % line_chunks; }
  static __device__ int place(int line, int chunk) {
    if constexpr (along)
      return (line * line_chunks + (chunk ^ (sizeof(T) == 2 ? line & 7 : 2 * (line & 3)))) * 16;
    else
      return tile_offset(line, chunk);
  }
  static __device__ const uint8_t* at(const uint8_t* shared, int depth, int row) {
    return shared + place(depth, row / per_chunk<T>) + row % per_chunk<T> * sizeof(T);
  }
  static __device__ uint32_t word(const uint8_t* shared, int depth, int row) {
    return *reinterpret_cast<const uint32_t*>(at(shared, depth, row));
  }

  const Lines<T> lines_;
  const int64_t first_row_;
  const T* from_[own];
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

template <class T>
struct Rows {  // of a result
  T* data;
  int64_t width, count, stride;

  // Elements [column, column + n) of a row, as many of them as there are.
  template <int n>
  __device__ void write(int64_t row, int64_t column, const T (&values)[n]) const {
    struct alignas(n * sizeof(T)) Pack {
      T element[n];
    };
    if (row >= count) return;
    T* const to = data + row * stride + column;
    if (column + n <= width && reinterpret_cast<uintptr_t>(to) % sizeof(Pack) == 0) {
      Pack pack;
#pragma unroll
      for (int i = 0; i < n; ++i) pack.element[i] = values[i];
      *reinterpret_cast<Pack*>(to) = pack;
      return;
    }
#pragma unroll
    for (int i = 0; i < n; ++i)
      if (column + i < width) to[i] = values[i];
  }
};

// Four neighbouring lanes each have one word of four tiles, and then four words of one tile.
__device__ inline void exchange_words(uint32_t (&word)[4], int lane) {
#pragma unroll
  for (int step = 1; step < 4; step *= 2)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (!(i & step)) {
        const bool upper = lane & step;
        const uint32_t got = __shfl_xor_sync(all_threads, upper ? word[i] : word[i | step], step);
        word[i] = upper ? got : word[i];
        word[i | step] = upper ? word[i | step] : got;
      }
}

// Rows from first_row and columns from first_column on of out = left rightT, of sums over depths [begin, end). `memory`
// is product_bytes of shared memory.
template <class T, bool left_along, bool right_along, class Out>
__device__ void multiply_lines(uint8_t* memory, const Lines<T>& left, int64_t first_row, const Lines<T>& right,
                               int64_t first_column, int64_t begin, int64_t end, const Rows<Out>& out) {
  constexpr bool as_tf32 = std::is_same_v<T, float>;
  constexpr int m_tiles = block_rows<T> / 2 / 16, n_tiles = warp_columns / 8;
  using Left = Operand<T, left_along, block_rows<T>>;
  using Right = Operand<T, right_along, block_columns>;
  constexpr int stage_bytes = Left::bytes + Right::bytes;
  static_assert(stages * stage_bytes <= product_bytes);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_row = warp % 2 * (block_rows<T> / 2), warp_column = warp / 2 * warp_columns;
  Left left_operand(left, first_row, begin);
  Right right_operand(right, first_column, begin);

  const auto load = [&](int64_t depth, int stage) {
    if (depth < end) {
      left_operand.load(memory + stage * stage_bytes, depth, end);
      right_operand.load(memory + stage * stage_bytes + Left::bytes, depth, end);
    }
    commit_copies();
  };
  float total[m_tiles][n_tiles][4] = {};
  for (int stage = 0; stage < stages - 1; ++stage) load(begin + stage * step_depth<T>, stage);
  int now = 0;
  for (int64_t depth = begin; depth < end; depth += step_depth<T>, now = now + 1 < stages ? now + 1 : 0) {
    wait_for_copies<stages - 2>();
    __syncthreads();  // and everybody has read what the next copies replace
    load(depth + (stages - 1) * step_depth<T>, now ? now - 1 : stages - 1);
    const uint8_t* const left_tile = memory + now * stage_bytes;
    const uint8_t* const right_tile = left_tile + Left::bytes;
    float sum[as_tf32 ? m_tiles : 1][n_tiles][4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[m_tiles][4], b[n_tiles / 2][4], a_low[m_tiles][4], b_low[n_tiles / 2][4];
#pragma unroll
      for (int m = 0; m < m_tiles; ++m) {
        Left::left(a[m], left_tile, warp_row + 16 * m, half, lane);
        if constexpr (as_tf32) split(a[m], a[m], a_low[m]);
      }
#pragma unroll
      for (int i = 0; i < n_tiles / 2; ++i) {
        Right::right(b[i], right_tile, warp_column + 16 * i, half, lane);
        if constexpr (as_tf32) split(b[i], b[i], b_low[i]);
      }
#pragma unroll
      for (int m = 0; m < m_tiles; ++m)
#pragma unroll
        for (int n = 0; n < n_tiles; ++n) {
          const int i = n / 2, j = n % 2 * 2;
          if constexpr (as_tf32) {
            multiply<T>(sum[m][n], a_low[m], b[i][j], b[i][j + 1]);
            multiply<T>(sum[m][n], a[m], b_low[i][j], b_low[i][j + 1]);
            multiply<T>(sum[m][n], a[m], b[i][j], b[i][j + 1]);
          } else {
            multiply<T>(total[m][n], a[m], b[i][j], b[i][j + 1]);
          }
        }
    }
    if constexpr (as_tf32)
#pragma unroll
      for (int m = 0; m < m_tiles; ++m)
#pragma unroll
        for (int n = 0; n < n_tiles; ++n)
#pragma unroll
          for (int j = 0; j < 4; ++j) total[m][n][j] += sum[m][n][j];
  }
  wait_for_copies<0>();

#pragma unroll
  for (int m = 0; m < m_tiles; ++m)
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const int64_t row = first_row + warp_row + 16 * m + 8 * lower + lane / 4;
      if constexpr (sizeof(Out) == 2) {
        static_assert(n_tiles == 4);
        uint32_t word[4];
#pragma unroll
        for (int n = 0; n < 4; ++n)
          word[n] = static_cast<uint32_t>(from_float<Out>(total[m][n][2 * lower]).bits) |
                    static_cast<uint32_t>(from_float<Out>(total[m][n][2 * lower + 1]).bits) << 16;
        exchange_words(word, lane);
        Out values[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) values[i].bits = static_cast<uint16_t>(word[i / 2] >> i % 2 * 16);
        out.write(row, first_column + warp_column + 8 * (lane % 4), values);
      } else {
#pragma unroll
        for (int n = 0; n < n_tiles; ++n) {
          const Out values[2] = {from_float<Out>(total[m][n][2 * lower]), from_float<Out>(total[m][n][2 * lower + 1])};
          out.write(row, first_column + warp_column + 8 * n + lane % 4 * 2, values);
        }
      }
    }
}

}  // namespace ofa::factorized_embedding
