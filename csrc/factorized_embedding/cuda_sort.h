// Some ten thousand tokens sorted by one block, for cuda.cu, while others do something else: two passes of a stable
// radix sort in shared memory. A warp has neighbouring tokens. It counts their digits, learns where those of each go,
// and takes its tokens there.
#pragma once

#include "factorized_embedding/cuda_group.h"

namespace ofa::factorized_embedding {

constexpr int digit_bits = 10, digits = 1 << digit_bits, words_in_a_block = 1 << 14;
constexpr int most_each = words_in_a_block / group_threads, at_once = 8;     // tokens of a thread, and in a step
constexpr int sort_bytes = (words_in_a_block + warps * digits + warps) * 4;  // of shared memory
#ifndef OFA_SORTED_BY_A_BLOCK                                                // tests have less, which is quicker
#  define OFA_SORTED_BY_A_BLOCK words_in_a_block
#endif
static_assert(OFA_SORTED_BY_A_BLOCK <= words_in_a_block && words_in_a_block <= 1 << 16 && digits == 4 * group_threads);

struct Sorting {
  Tokens from;
  Sorted to;
  int low_bits;  // of a key, the first pass' digit
  bool wanted;
};
// Whether a block can sort these, the largest of whose keys is the vocabulary's size.
inline bool fits_a_block(int64_t tokens, int64_t vocabulary) {
  return !tokens || (tokens <= OFA_SORTED_BY_A_BLOCK && bits_of(vocabulary) <= 2 * digit_bits);
}

// The upper half of a word is a digit, and the lower half moves with it. Of the warp's words [begin, end) the digits
// become places, in order of digits, and of the words where those are the same. `places`: [warp][digit].
__device__ inline void find_places(uint32_t* words, int begin, int end, int32_t* places, int32_t* of_warp) {
  struct alignas(16) Four {
    int32_t count[4];
  };
  const int thread = threadIdx.x, lane = thread % 32;
  const unsigned before = (1u << lane) - 1;
  int32_t* const own = places + thread / 32 * digits;
  for (int i = lane; i < digits / 4; i += 32) reinterpret_cast<Four*>(own)[i] = Four{};
  __syncwarp();
  for (int first = begin + lane; first < end; first += 32 * at_once)
#pragma unroll
    for (int j = 0; j < at_once; ++j)
      if (first + 32 * j < end) atomicAdd(&own[words[first + 32 * j] >> 16], 1);
  __syncthreads();
  Four counts[warps];
  int32_t sum = 0, total;
#pragma unroll
  for (int w = 0; w < warps; ++w) {
    counts[w] = reinterpret_cast<const Four*>(places + w * digits)[thread];
    for (int i = 0; i < 4; ++i) sum += counts[w].count[i];
  }
  int32_t next = sum_before(sum, &total, of_warp);
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int w = 0; w < warps; ++w) {
      const int32_t count = counts[w].count[i];
      counts[w].count[i] = next;
      next += count;
    }
#pragma unroll
  for (int w = 0; w < warps; ++w) reinterpret_cast<Four*>(places + w * digits)[thread] = counts[w];
  __syncthreads();
  for (int first = begin + lane; first - lane < end; first += 32 * at_once) {
    uint32_t word[at_once];
    unsigned same[at_once];
    int32_t place[at_once];
#pragma unroll
    for (int j = 0; j < at_once; ++j) {
      const bool present = first + 32 * j < end;
      word[j] = present ? words[first + 32 * j] : 0;
      same[j] = same_digit<digit_bits>(word[j] >> 16, present);
    }
    // The first of equal ones takes places for all, and nobody waits for an answer before the next ones ask.
#pragma unroll
    for (int j = 0; j < at_once; ++j) {
      const bool asks = first + 32 * j < end && (same[j] & before) == 0;
      place[j] = asks ? atomicAdd(&own[word[j] >> 16], __popc(same[j])) : 0;
      __syncwarp();
    }
#pragma unroll
    for (int j = 0; j < at_once; ++j) {
      place[j] = __shfl_sync(all_threads, place[j], (31 - __clz(same[j] & -same[j])) & 31) + __popc(same[j] & before);
      if (first + 32 * j < end) words[first + 32 * j] = place[j] << 16 | (word[j] & 0xffff);
    }
  }
}

__device__ inline void sort_tokens(uint8_t* memory, const Sorting& sorting) {
  auto* const places = reinterpret_cast<int32_t*>(memory);
  auto* const of_warp = places + warps * digits;
  auto* const words = reinterpret_cast<uint32_t*>(of_warp + warps);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, low_bits = sorting.low_bits;
  const Tokens& from = sorting.from;
  const int count = static_cast<int>(from.count), share = ceil_div(count, group_threads) * 32,
            begin = min(count, warp * share), end = min(count, begin + share);
  for (int first = begin + lane; first < end; first += 32 * at_once) {
    uint32_t key[at_once];
#pragma unroll
    for (int j = 0; j < at_once; ++j) key[j] = first + 32 * j < end ? from.key(first + 32 * j) : 0;
#pragma unroll
    for (int j = 0; j < at_once; ++j)
      if (first + 32 * j < end) words[first + 32 * j] = (key[j] & ((1u << low_bits) - 1)) << 16 | key[j] >> low_bits;
  }
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    find_places(words, begin, end, places, of_warp);
    uint32_t word[most_each];  // all of them, as every word is in another's place
    const uint32_t* const own = words + begin + lane;
    const int left = end - begin - lane;
#pragma unroll
    for (int j = 0; j < most_each; ++j) word[j] = 32 * j < left ? own[32 * j] : 0;
    __syncthreads();
#pragma unroll
    for (int j = 0; j < most_each; ++j) {  // what moves is the higher digit, and then the token
      const uint32_t moved = word[j] << 16 | (pass ? 0 : begin + lane + 32 * j);
      if (32 * j < left) words[word[j] >> 16] = moved;
    }
    __syncthreads();
  }
  for (int first = thread; first < count; first += group_threads * at_once) {
    int32_t token[at_once];
    uint32_t key[at_once];
#pragma unroll
    for (int j = 0; j < at_once; ++j) {
      const int i = first + group_threads * j;
      token[j] = i < count ? words[i] >> 16 : 0;
      key[j] = i < count ? from.key(token[j]) : 0;
    }
#pragma unroll
    for (int j = 0; j < at_once; ++j)
      if (const int i = first + group_threads * j; i < count) {
        sorting.to.keys[i] = key[j];
        sorting.to.order[i] = token[j];
      }
  }
  __syncthreads();
  if (sorting.to.rows) number_tokens(sorting.to, 0, count, 0, of_warp);
}

}  // namespace ofa::factorized_embedding
