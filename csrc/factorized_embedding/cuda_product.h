// The product of two operands that are gathered on their way into shared memory, for cuda.cu. A block has 128 columns
// of the result and 128 rows, 64 of float32; eight warps have 32 columns and half of the rows each. Copies into shared
// memory are two steps ahead of the tensor cores. float32 operands are two TF32 parts of 11 binary digits each; of
// their four products the three that matter are taken, small ones first. What is 16 deep is then summed on the tensor
// cores, which cut off, and added to the rest, to the nearest. Every element of the result is summed in one order,
// whatever stands around it.
#pragma once

#include <type_traits>

#include "cuda.h"

namespace ofa::factorized_embedding {

constexpr int product_threads = 256, block_columns = 128, warp_columns = 32;
constexpr int stages = 3;                                  // steps in shared memory
constexpr int step_row = 128, parts = 4, part_bytes = 32;  // bytes of a row and step; products in a step, and of a row

template <class T>
constexpr int block_rows = sizeof(T) == 4 ? 64 : 128;
template <class T>
constexpr int per_chunk = 16 / sizeof(T);
template <class T>
constexpr int step_depth = step_row / sizeof(T);
template <class T>
constexpr int64_t product_bytes = stages * (block_rows<T> + block_columns) * step_row;  // of shared memory

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

  // Whether lines are chunks of 16 bytes that can be counted in 32 bits: copies need no other look at them then.
  bool whole() const {
    return width % per_chunk<T> == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0 &&
           width / per_chunk<T> * (gathered ? vocabulary : count) <= INT32_MAX;
  }
  // Where line i begins, in units of as many elements; negative if it is zero.
  template <class Place, int unit>
  __device__ Place line(int64_t i) const {
    bool there = i < count;
    Place row = static_cast<Place>(i);
    if (ids) {
      const int64_t id = there ? ids[i] : -1;
      there = static_cast<uint64_t>(id) < static_cast<uint64_t>(vocabulary) && id != padding_idx;
      if (gathered) row = static_cast<Place>(id);
    }
    return there ? row * static_cast<Place>(width / unit) : -1;
  }
};

// 16 bytes to shared memory: `count` elements, if there are as many, and zeros.
template <class T>
__device__ void copy_chunk(uint8_t* to, const T* from, int64_t count) {
  Chunk<T> chunk{};
#pragma unroll
  for (int i = 0; i < per_chunk<T>; ++i)
    if (i < count) chunk.element[i] = from[i];
  *reinterpret_cast<Chunk<T>*>(to) = chunk;
}

// `side` rows of an operand, a step deep: lines are rows, or (`along`) depths. Chunks of 16 bytes change places by line
// so that the eight rows or, of float32, the four half rows that are read at once lie in different banks.
// Lines of more than 128 bytes lie side by side in as many panels, as warpgroups want them.
template <class T, bool along, int side, bool whole, bool panels = false>
class Operand {
  static constexpr int own = side * step_row / (product_threads * 16);
  static constexpr int line_chunks = along ? side / per_chunk<T> : step_row / 16;  // in shared memory
  static constexpr int line_bytes = panels ? step_row : line_chunks * 16;
  static constexpr int own_stride = product_threads / line_chunks * line_bytes;  // bytes between a thread's chunks
  static constexpr bool as_words = along && sizeof(T) == 4;                      // which `ldmatrix.trans` is not for
  static constexpr int unit = whole ? per_chunk<T> : 1;
  using Place = std::conditional_t<whole, int32_t, int64_t>;
  static_assert(product_threads % line_chunks == 0);

 public:
  static constexpr int bytes = side * step_row;

  __device__ Operand(const Lines<T>& lines, int64_t first_row, int64_t begin, int64_t end)
      : lines_(lines), from_(lines.data + (along ? first_row : 0) + chunk() * per_chunk<T>) {
    left_ = along ? lines.width - first_row - chunk() * per_chunk<T> : 0;
#pragma unroll
    for (int i = 0; i < own; ++i)
      at_[i] = along ? depth_at(begin + line(i), end) : lines.template line<Place, unit>(first_row + line(i));
  }

  // Depths [depth, depth + step_depth) of those before `end`; steps come one after the other.
  __device__ void load(uint8_t* shared, int64_t depth, int64_t end) {
    const int64_t moved = along ? 0 : depth, left = along ? left_ : end - depth - chunk() * per_chunk<T>;
    uint8_t* const to = shared + place(line(0), chunk());
#pragma unroll
    for (int i = 0; i < own; ++i) {
      const bool there = at_[i] >= 0 && left > 0;
      const T* const from = from_ + moved + static_cast<int64_t>(at_[i]) * unit;
      if constexpr (whole)
        copy_async_if(there, to + i * own_stride, from);
      else
        copy_chunk(to + i * own_stride, from, there ? left : 0);
    }
    if constexpr (along)  // ids are there by the time that the next step wants them
#pragma unroll
      for (int i = 0; i < own; ++i) at_[i] = depth_at(depth + step_depth<T> + line(i), end);
  }

  // Of a lane and the rows from `row` on, a multiple of 32: where in a step the first words are that it loads.
  static __device__ int left_place(int row, int lane) {
    if constexpr (as_words) return place(lane % 4, row / 4 + lane / 16) + lane / 4 % 4 * 4;
    if constexpr (along) return place((lane >> 4 << 3) + (lane & 7), row / 8 + (lane >> 3 & 1));
    return place(row + (lane & 15), lane >> 4);
  }
  static __device__ int right_place(int row, int lane) {
    if constexpr (as_words) return left_place(row, lane);
    if constexpr (along) return place(lane & 15, row / 8 + (lane >> 4));
    return place(row + (lane & 7) + (lane >> 4 << 3), lane >> 3 & 1);
  }
  // Words of a product's left operand, 16 rows of a part of the step, or of two right ones, 8 rows each, as `multiply`
  // takes them: of the rows from 16 `tile` behind the lane's place on.
  template <bool left>
  static __device__ void load_words(uint32_t (&words)[4], const uint8_t* shared, int place, int tile, int part) {
    if constexpr (as_words) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int lower = left ? i % 2 : i / 2, behind = left ? i / 2 : i % 2;
        words[i] = *reinterpret_cast<const uint32_t*>(shared + (place ^ (tile * 64 + lower * 32)) +
                                                      (part * 8 + behind * 4) * line_bytes);
      }
    } else if constexpr (along) {
      load_matrices_transposed(words, shared + (place ^ tile * 32) + part * 16 * line_bytes);
    } else {
      load_matrices(words, shared + (place ^ part * part_bytes) + tile * 16 * line_bytes);
    }
  }

 private:
  // Of the thread's i-th chunk: its line, counted from the first of this step or block, and where in it.
  static __device__ int line(int i) { return threadIdx.x / line_chunks + i * (product_threads / line_chunks); }
  static __device__ int chunk() { return threadIdx.x % line_chunks; }
  static __device__ int place(int line, int chunk) {
    const int panel = panels ? chunk / (step_row / 16) : 0;
    if (panels) chunk %= step_row / 16;
    return panel * (step_depth<T> * step_row) + line * line_bytes +
           (chunk ^ (as_words ? 2 * (line & 3) : line & 7)) * 16;
  }
  __device__ Place depth_at(int64_t depth, int64_t end) const {
    return lines_.template line<Place, unit>(depth < end ? depth : lines_.count);
  }

  const Lines<T>& lines_;
  const T* const from_;  // the thread's chunk of line 0
  int64_t left_;         // elements from there on
  Place at_[own];
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

  // Elements [column, column + n) of a row, as many of them as there are; `whole`: all or none, and aligned.
  template <int n, bool whole = false>
  __device__ void write(int64_t row, int64_t column, const T (&values)[n]) const {
    struct alignas(n * sizeof(T)) Pack {
      T element[n];
    };
    if (row >= count) return;
    T* const to = data + row * stride + column;
    if (whole ? column < width : column + n <= width && reinterpret_cast<uintptr_t>(to) % sizeof(Pack) == 0) {
      Pack pack;
#pragma unroll
      for (int i = 0; i < n; ++i) pack.element[i] = values[i];
      *reinterpret_cast<Pack*>(to) = pack;
      return;
    }
    if constexpr (!whole)
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

// What a warp has of a product, `m_tiles` times 16 rows and 32 columns from these on, to where it belongs.
template <bool whole, int m_tiles, class Out>
__device__ void write_tile(const Rows<Out>& out, const float (&total)[m_tiles][4][4], int64_t row, int64_t column,
                           int lane) {
  row += lane / 4;
#pragma unroll
  for (int m = 0; m < m_tiles; ++m)
#pragma unroll
    for (int lower = 0; lower < 2; ++lower, row += 8) {
      if constexpr (sizeof(Out) == 2) {
        uint32_t word[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) word[n] = from_floats<Out>(total[m][n][2 * lower], total[m][n][2 * lower + 1]);
        exchange_words(word, lane);
        Out values[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) values[i].bits = static_cast<uint16_t>(word[i / 2] >> i % 2 * 16);
        out.template write<8, whole>(row, column + 8 * (lane % 4), values);
      } else {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const Out values[2] = {total[m][n][2 * lower], total[m][n][2 * lower + 1]};
          out.template write<2, whole>(row, column + 8 * n + lane % 4 * 2, values);
        }
      }
    }
}

struct Nothing {
  __device__ void operator()() const {}
};

// Rows from first_row and columns from first_column on of out = left rightT, of sums over depths [begin, end). `memory`
// is product_bytes of shared memory; `meanwhile` is called in every step.
template <class T, bool left_along, bool right_along, bool whole, class Out, class Meanwhile = Nothing>
__device__ void multiply_lines(uint8_t* memory, const Lines<T>& left, int64_t first_row, const Lines<T>& right,
                               int64_t first_column, int64_t begin, int64_t end, const Rows<Out>& out,
                               Meanwhile&& meanwhile = {}) {
  constexpr bool as_tf32 = std::is_same_v<T, float>;
  constexpr int m_tiles = block_rows<T> / 2 / 16, n_tiles = warp_columns / 8;
  using Left = Operand<T, left_along, block_rows<T>, whole>;
  using Right = Operand<T, right_along, block_columns, whole>;
  constexpr int stage_bytes = Left::bytes + Right::bytes;
  static_assert(stages * stage_bytes == product_bytes<T>);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_row = warp % 2 * (block_rows<T> / 2), warp_column = warp / 2 * warp_columns;
  const int left_place = Left::left_place(warp_row, lane), right_place = Right::right_place(warp_column, lane);
  const bool has_rows = first_row + warp_row < out.count;
  const int64_t columns = has_rows ? out.width - first_column - warp_column : 0;
  Left left_operand(left, first_row, begin, end);
  Right right_operand(right, first_column, begin, end);

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
    meanwhile();
    const uint8_t* const left_tile = memory + now * stage_bytes;
    const uint8_t* const right_tile = left_tile + Left::bytes;
    float sum[as_tf32 ? m_tiles : 1][n_tiles][4] = {};
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      uint32_t a[m_tiles][4], a_low[m_tiles][4];
#pragma unroll
      for (int m = 0; m < m_tiles; ++m) {
        Left::template load_words<true>(a[m], left_tile, left_place, m, part);
        if constexpr (as_tf32) split(a[m], a[m], a_low[m]);
      }
#pragma unroll
      for (int i = 0; i < n_tiles / 2; ++i) {
        if (columns <= 16 * i) continue;  // the same for a whole warp
        uint32_t b[4], b_low[4];
        Right::template load_words<false>(b, right_tile, right_place, i, part);
        if constexpr (as_tf32) split(b, b, b_low);
#pragma unroll
        for (int m = 0; m < m_tiles; ++m)
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int n = 2 * i + j, k = 2 * j;
            if constexpr (as_tf32) {
              multiply<T>(sum[m][n], a_low[m], b[k], b[k + 1]);
              multiply<T>(sum[m][n], a[m], b_low[k], b_low[k + 1]);
              multiply<T>(sum[m][n], a[m], b[k], b[k + 1]);
            } else {
              multiply<T>(total[m][n], a[m], b[k], b[k + 1]);
            }
          }
      }
      if constexpr (as_tf32)
        if (part % 2)
#pragma unroll
          for (int m = 0; m < m_tiles; ++m)
#pragma unroll
            for (int n = 0; n < n_tiles; ++n)
#pragma unroll
              for (int j = 0; j < 4; ++j) {
                total[m][n][j] += sum[m][n][j];
                sum[m][n][j] = 0;
              }
    }
  }
  wait_for_copies<0>();
  write_tile<whole>(out, total, first_row + warp_row, first_column + warp_column, lane);
}

}  // namespace ofa::factorized_embedding
