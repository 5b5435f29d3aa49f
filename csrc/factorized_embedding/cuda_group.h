// Tokens grouped by id, for cuda.cu: a stable radix sort, then the first token of each id. How many ids there are stays
// on the device, so nothing waits for it.
#pragma once

#include "cuda.h"

namespace ofa::factorized_embedding {

constexpr unsigned all_threads = 0xffffffff;
constexpr int group_threads = 256, warps = group_threads / 32;
constexpr int radix = 256, tile_tokens = 2048;  // of a block: eight for each thread
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

// The sum of the values of the threads before, and of all; called by whole blocks.
__device__ inline int32_t sum_before(int32_t value, int32_t* total) {
  __shared__ int32_t of_warp[warps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int32_t sum = value;
  for (int step = 1; step < 32; step *= 2) {
    const int32_t other = __shfl_up_sync(all_threads, sum, step);
    if (lane >= step) sum += other;
  }
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
  constexpr int each = 8;
  int32_t before = 0;
  for (int64_t first = 0; first < count; first += each * group_threads) {
    const int64_t own = first + threadIdx.x * each;
    int32_t value[each], sum = 0, total;
    for (int j = 0; j < each; ++j) {
      value[j] = own + j < count ? values[own + j] : 0;
      sum += value[j];
    }
    int32_t place = before + sum_before(sum, &total);
    for (int j = 0; j < each; ++j) {
      if (own + j < count) values[own + j] = place;
      place += value[j];
    }
    before += total;
  }
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
    unsigned same = __ballot_sync(all_threads, present);
    for (int bit = 1; bit < radix; bit *= 2) {
      const unsigned set = __ballot_sync(all_threads, (digit & bit) != 0);
      same &= digit & bit ? set : ~set;
    }
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

__device__ inline bool is_head(const uint32_t* keys, int64_t i, int64_t vocabulary) {
  return keys[i] < vocabulary && (i == 0 || keys[i] != keys[i - 1]);
}

// counts[block]: ids that begin there.
__global__ void __launch_bounds__(group_threads)
    count_heads(const uint32_t* keys, int64_t tokens, int64_t vocabulary, int32_t* counts) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * tile_tokens;
  int32_t own = 0, total;
  for (int64_t i = begin + threadIdx.x; i < min(begin + tile_tokens, tokens); i += group_threads)
    own += is_head(keys, i, vocabulary);
  sum_before(own, &total);
  if (threadIdx.x == 0) counts[blockIdx.x] = total;
}

__global__ void __launch_bounds__(group_threads)
    write_groups(const uint32_t* keys, const int32_t* sorted, int64_t tokens, int64_t vocabulary, const int32_t* before,
                 int64_t* order, int64_t* first, int64_t* distinct, int64_t* count) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * tile_tokens;
  int64_t found = before[blockIdx.x];
  for (int64_t start = begin; start < begin + tile_tokens; start += group_threads) {
    const int64_t i = start + threadIdx.x;
    const bool head = i < tokens && is_head(keys, i, vocabulary);
    int32_t total;
    const int64_t own = found + sum_before(head, &total);
    found += total;
    if (head) {
      first[own] = i;
      distinct[own] = keys[i];
    }
    if (i < tokens) order[i] = sorted[i];
    // The end of the tokens that count: behind the last of them, or at the very beginning where none does.
    const bool counts = i < tokens && keys[i] < vocabulary;
    const bool last = counts ? i + 1 == tokens || keys[i + 1] >= vocabulary : i == 0;
    if (last) {
      first[own + head] = counts ? i + 1 : 0;
      *count = own + head;
    }
  }
}

}  // namespace ofa::factorized_embedding
