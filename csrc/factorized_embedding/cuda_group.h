// Tokens sorted by id, for cuda.cu: a stable radix sort by kernels of their own, for those that are too many for one
// block (cuda_sort.h). Nothing waits for how many ids there are.
#pragma once

#include "cuda.h"

namespace ofa::factorized_embedding {

constexpr int group_threads = 256, warps = group_threads / 32;
constexpr int radix_bits = 8, radix = 1 << radix_bits, tile_tokens = 2048;  // of a block: eight for each thread
static_assert(radix == group_threads && tile_tokens % group_threads == 0);

// What a pass of the sort reads: the ids themselves at first, then what the last pass wrote. Tokens that do not count,
// with padding or an id out of range, get a key behind all others.
struct Tokens {
  const int64_t* ids;  // or null
  const uint32_t* keys;
  const int32_t* order;
  int64_t count, vocabulary, padding_idx;
  __device__ uint32_t key(int64_t i) const {
    if (!ids) return keys[i];
    const int64_t id = ids[i];
    return static_cast<uint32_t>(id >= 0 && id < vocabulary && id != padding_idx ? id : vocabulary);
  }
  __device__ int32_t token(int64_t i) const { return ids ? static_cast<int32_t>(i) : order[i]; }
};

// Sorted: keys, and the tokens that have them. Of a sparse gradient also the row of each, and what it needs beside
// rows.
struct Sorted {
  uint32_t* keys;
  int32_t *order, *rows;       // rows: or null, where a row's number is its id
  int64_t *distinct, *number;  // ids, ascending, and how many
  int64_t count, vocabulary;
  __device__ bool counts(int64_t i) const { return i < count && keys[i] < vocabulary; }
  __device__ bool begins(int64_t i) const { return counts(i) && (i == 0 || keys[i] != keys[i - 1]); }
  __device__ int64_t row(int64_t i) const { return rows ? rows[i] : static_cast<int64_t>(keys[i]); }
};

inline int bits_of(int64_t number) {
  int bits = 1;
  while (number >> bits) ++bits;
  return bits;
}

// counts[digit][block]
__global__ void __launch_bounds__(group_threads) count_digits(Tokens tokens, int shift, int32_t* counts) {
  __shared__ int32_t found[radix];
  found[threadIdx.x] = 0;
  __syncthreads();
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * tile_tokens;
  for (int64_t i = begin + threadIdx.x; i < min(begin + tile_tokens, tokens.count); i += group_threads)
    atomicAdd(&found[tokens.key(i) >> shift & (radix - 1)], 1);
  __syncthreads();
  counts[static_cast<int64_t>(threadIdx.x) * gridDim.x + blockIdx.x] = found[threadIdx.x];
}

// The sum of the values of the threads before, and of all; called by whole blocks, with memory for a number a warp.
__device__ inline int32_t sum_before(int32_t value, int32_t* total, int32_t* of_warp) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int32_t sum = sum_through(value, lane);
  __syncthreads();  // everybody has read the last call's
  if (lane == 31) of_warp[warp] = sum;
  __syncthreads();
  int32_t before = 0, all = 0;
  for (int w = 0; w < warps; ++w) {
    if (w < warp) before += of_warp[w];
    all += of_warp[w];
  }
  *total = all;
  return before + sum - value;
}

// Each value becomes the sum of those before it; one block.
__global__ void __launch_bounds__(group_threads) accumulate(int32_t* values, int64_t count) {
  __shared__ int32_t of_warp[warps];
  constexpr int each = 8;
  int32_t before = 0;
  for (int64_t first = 0; first < count; first += each * group_threads) {
    const int64_t own = first + threadIdx.x * each;
    int32_t value[each], sum = 0, total;
    for (int j = 0; j < each; ++j) {
      value[j] = own + j < count ? values[own + j] : 0;
      sum += value[j];
    }
    int32_t place = before + sum_before(sum, &total, of_warp);
    for (int j = 0; j < each; ++j) {
      if (own + j < count) values[own + j] = place;
      place += value[j];
    }
    before += total;
  }
}

// The lanes of this warp, among those with a token, whose digit is this lane's.
template <int bits>
__device__ unsigned same_digit(uint32_t digit, bool present) {
  unsigned same = __ballot_sync(all_threads, present);
#pragma unroll
  for (int bit = 0; bit < bits; ++bit) {
    const unsigned set = __ballot_sync(all_threads, (digit >> bit & 1) != 0);
    same &= digit >> bit & 1 ? set : ~set;
  }
  return same;
}

// Every token to its place: behind those of smaller digits, of earlier blocks, and of earlier tokens here.
__global__ void __launch_bounds__(group_threads)
    place_tokens(Tokens tokens, int shift, const int32_t* places, uint32_t* keys, int32_t* order) {
  __shared__ int32_t next[radix], of_warp[warps][radix];
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  next[thread] = places[static_cast<int64_t>(thread) * gridDim.x + blockIdx.x];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * tile_tokens;
  for (int64_t first = begin; first < begin + tile_tokens; first += group_threads) {
    for (int w = 0; w < warps; ++w) of_warp[w][thread] = 0;
    __syncthreads();
    const int64_t i = first + thread;
    const bool present = i < tokens.count;
    const uint32_t key = present ? tokens.key(i) : 0, digit = key >> shift & (radix - 1);
    const unsigned same = same_digit<radix_bits>(digit, present);
    const int rank = __popc(same & ((1u << lane) - 1));
    if (present && rank == 0) of_warp[warp][digit] = __popc(same);
    __syncthreads();
    if (present) {
      int64_t place = next[digit] + rank;
      for (int w = 0; w < warp; ++w) place += of_warp[w][digit];
      keys[place] = key;
      order[place] = tokens.token(i);
    }
    __syncthreads();
    for (int w = 0; w < warps; ++w) next[thread] += of_warp[w][thread];
    __syncthreads();
  }
}

// counts[block]: ids that begin there.
__global__ void __launch_bounds__(group_threads) count_heads(Sorted sorted, int32_t* counts) {
  __shared__ int32_t of_warp[warps];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * tile_tokens;
  int32_t own = 0, total;
  for (int64_t i = begin + threadIdx.x; i < begin + tile_tokens; i += group_threads) own += sorted.begins(i);
  sum_before(own, &total, of_warp);
  if (threadIdx.x == 0) counts[blockIdx.x] = total;
}

// Rows of the sorted tokens [begin, end), of which `found` ids begin before; `begin` is 0 or another block's end. A
// warp has neighbouring tokens: it counts the ids that begin there, and then knows where its own ones come.
__device__ inline void number_tokens(const Sorted& sorted, int64_t begin, int64_t end, int64_t found,
                                     int32_t* of_warp) {
  constexpr int at_once = 8;  // tokens that a thread loads before it looks at the first of them
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t share = ceil_div<int64_t>(end - begin, group_threads) * 32, own_begin = min(end, begin + warp * share),
                own_end = min(end, own_begin + share);
  int32_t heads = 0;
  for (int way = 0; way < 2; ++way) {  // counts, then writes
    for (int64_t first = own_begin; first < own_end; first += 32 * at_once) {
      bool head[at_once];
#pragma unroll
      for (int j = 0; j < at_once; ++j) {
        const int64_t i = first + 32 * j + lane;
        head[j] = i < own_end && sorted.begins(i);
      }
#pragma unroll
      for (int j = 0; j < at_once; ++j) {
        const int64_t i = first + 32 * j + lane;
        const unsigned set = __ballot_sync(all_threads, head[j]);
        const int64_t row = found + heads + __popc(set & ((2u << lane) - 1)) - 1;
        heads += __popc(set);
        if (!way) continue;
        if (head[j]) sorted.distinct[row] = sorted.keys[i];
        if (i < own_end && i < sorted.count) sorted.rows[i] = static_cast<int32_t>(row);
      }
    }
    if (way) break;
    if (lane == 0) of_warp[warp] = heads;
    __syncthreads();
    int32_t all = 0;
    heads = 0;
    for (int w = 0; w < warps; ++w) {
      if (w < warp) heads += of_warp[w];
      all += of_warp[w];
    }
    if (threadIdx.x == 0 && end >= sorted.count) *sorted.number = found + all;
  }
}

__global__ void __launch_bounds__(group_threads) number_rows(Sorted sorted, const int32_t* before) {
  __shared__ int32_t of_warp[warps];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * tile_tokens;
  number_tokens(sorted, begin, begin + tile_tokens, before[blockIdx.x], of_warp);
}

}  // namespace ofa::factorized_embedding
