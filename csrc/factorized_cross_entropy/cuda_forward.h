// The forward pass of the cross entropy on GPUs of compute capability 9.0, for cuda.cu: attention with positions'
// states as queries and the coordinates as keys and values. Its buffers are those of _forward in triton_kernels.py.
#pragma once

#include "factorized_cross_entropy/cuda_pass.h"

namespace ofa::factorized_cross_entropy {

struct ForwardArguments {
  Boxes states, coordinates;
  const int32_t* keys;     // [positions], the labels in ascending order
  const int32_t* counted;  // how many of them are labels
  const float* bias;       // [vocabulary, padded to tiles] in bits, and -infinity behind the last; or null
  float *largest, *sums;   // [splits, positions], the first in bits
  float* partial;          // [splits, count, rank], magnified, or null
  int64_t positions;
  int32_t vocabulary, rank;
  int32_t programs, most;  // blocks that the work is divided for, and splits of the vocabulary at most
};

#ifdef OFA_WARPGROUPS

// The exponentials of 64 positions' scores, of a thread's two, above a bound that follows the largest scores.
template <class S, bool biased>
class Exponentials {
 public:
  static constexpr int bits = magnified<typename S::T>;
  static constexpr float slack = bits ? 0 : 8;  // that exponentials may have above the bound before it follows

  __device__ Exponentials(const Memory<S>& memory, const int32_t* keys, int first, int count, int vocabulary)
      : memory_(memory), vocabulary_(vocabulary) {
#  pragma unroll
    for (int r = 0; r < 2; ++r)
      label_[r] = (first + 8 * r < count ? keys[first + 8 * r] : -1) - static_cast<int>(threadIdx.x % 4 * 2);
  }

  __device__ bool operator()(float (&s)[S::step / 2], int tile, int stage) {
    const int begin = tile * S::step, own_column = threadIdx.x % 4 * 2;
    if constexpr (biased) {
      const float* const shift = memory_.vector(stage, 0) + own_column;
#  pragma unroll
      for (int j = 0; j < S::step / 8; ++j) {
        const float2 at = *reinterpret_cast<const float2*>(shift + 8 * j);
        s[4 * j] = fmaf(s[4 * j], log2_e, at.x), s[4 * j + 1] = fmaf(s[4 * j + 1], log2_e, at.y);
        s[4 * j + 2] = fmaf(s[4 * j + 2], log2_e, at.x), s[4 * j + 3] = fmaf(s[4 * j + 3], log2_e, at.y);
      }
    } else if (begin + S::step > vocabulary_) {
      const int left = vocabulary_ - begin - own_column;
#  pragma unroll
      for (int i = 0; i < S::step / 2; ++i)
        if (column(i) >= left) s[i] = -infinity;
    }
#  pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int at = label_[r] - begin;
      if (static_cast<uint32_t>(at) < S::step) {
#  pragma unroll
        for (int i = 0; i < S::step / 2; ++i)
          if (i % 4 / 2 == r && column(i) == at) s[i] = -infinity;
      }
    }
    float most[2] = {fmaxf(s[0], s[1]), fmaxf(s[2], s[3])};
#  pragma unroll
    for (int j = 1; j < S::step / 8; ++j)
#  pragma unroll
      for (int r = 0; r < 2; ++r) most[r] = fmaxf(most[r], fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]));
    if constexpr (!biased) most[0] *= log2_e, most[1] *= log2_e;
    const bool grew = __any_sync(all_threads, most[0] > largest_[0] + slack || most[1] > largest_[1] + slack);
    if (grew) {
#  pragma unroll
      for (int r = 0; r < 2; ++r) {
        float of_row = fmaxf(most[r], __shfl_xor_sync(all_threads, most[r], 1));
        of_row = fmaxf(of_row, __shfl_xor_sync(all_threads, of_row, 2));
        of_row = fmaxf(of_row, largest_[r]);
        const float safe = of_row == -infinity ? 0 : of_row;  // -inf - -inf is not a number
        scale_[r] = power_of_two(largest_[r] - safe);
        total_[r] *= scale_[r];
        largest_[r] = of_row;
        shift_[r] = bits - safe;
      }
    }
#  pragma unroll
    for (int i = 0; i < S::step / 2; ++i) {
      const int r = i % 4 / 2;
      s[i] = power_of_two(biased ? s[i] + shift_[r] : fmaf(s[i], log2_e, shift_[r]));
      total_[r] += s[i];
    }
    return grew;
  }

  __device__ void rescale(float (&sums)[S::sums / 2]) const {
#  pragma unroll
    for (int i = 0; i < S::sums / 2; ++i) sums[i] *= scale_[i % 4 / 2];
  }

  __device__ float largest(int r) const { return largest_[r]; }
  __device__ float total(int r) const {  // of the row, in all four lanes that have it
    float sum = total_[r] + __shfl_xor_sync(all_threads, total_[r], 1);
    sum += __shfl_xor_sync(all_threads, sum, 2);
    return sum / (1 << bits);
  }

 private:
  static constexpr __device__ int column(int i) { return i / 4 * 8 + i % 2; }  // from the lane's first on

  const Memory<S> memory_;
  int vocabulary_, label_[2];
  float largest_[2] = {-static_cast<float>(infinity), -static_cast<float>(infinity)}, shift_[2] = {bits, bits};
  float total_[2] = {}, scale_[2] = {1, 1};
};

template <class S, bool biased>
struct EntryVectors {
  const Memory<S>& memory;
  const float* bias;
  static constexpr int bytes = biased ? S::step * sizeof(float) : 0;
  __device__ void copy(int tile, int stage) const {
    if (biased) copy_bulk(memory.vector(stage, 0), bias + tile * S::step, bytes, memory.full(stage));
  }
};

#endif

// Of a split of the vocabulary: maximum, sum of exponentials, and their weighted sum of coordinates, over all but the
// label. How the work is divided is _share in triton_kernels.py.
template <class S, bool biased>
__global__ void __launch_bounds__(pass_threads, 1) forward_pass(const __grid_constant__ ForwardArguments a) {
#ifdef OFA_WARPGROUPS
  const int count = *a.counted, blocks = max(1, ceil_div(count, block_rows)), tiles = ceil_div(a.vocabulary, S::step);
  const int split_tiles = ceil_div(tiles, max(min(a.programs / blocks, a.most), 1));
  const int split = static_cast<int>(blockIdx.x) / blocks, block = static_cast<int>(blockIdx.x) % blocks;
  const int first_tile = split * split_tiles, own_tiles = min(split_tiles, tiles - first_tile);
  if (own_tiles <= 0 || !count) return;
  const Memory<S> memory{swizzled_shared()};
  begin_pass(memory);
  Place<S> place;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = __shfl_sync(all_threads, warp / group_warps, 0);
  if (group == groups) {
    keep_registers<copier_registers>();
    if (warp == groups * group_warps && lane == 0)
      copy_pass(memory, place, a.states, block * block_rows, a.coordinates, first_tile, own_tiles,
                EntryVectors<S, biased>{memory, a.bias});
  } else {
    take_registers<multiplier_registers>();
    const int first = block * block_rows + group * group_rows + warp % group_warps * 16 + lane / 4;
    Exponentials<S, biased> exponentials(memory, a.keys, first, count, a.vocabulary);
    float sums[S::sums / 2];
    multiply_pass(memory, place, group, first_tile, own_tiles, exponentials, sums);
#  pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t position = first + 8 * r;
      const float total = exponentials.total(r);
      if (position >= count) continue;
      if (lane % 4 == 0) {
        a.largest[split * a.positions + position] = exponentials.largest(r);
        a.sums[split * a.positions + position] = total;
      }
      if (!a.partial) continue;
      float* const to = a.partial + (static_cast<int64_t>(split) * count + position) * a.rank;
#  pragma unroll
      for (int j = 0; j < S::sums / 8; ++j) {
        const int column = 8 * j + lane % 4 * 2;
        if (column < a.rank)
          *reinterpret_cast<float2*>(to + column) = make_float2(sums[4 * j + 2 * r], sums[4 * j + 2 * r + 1]);
      }
    }
  }
#endif
}

}  // namespace ofa::factorized_cross_entropy
