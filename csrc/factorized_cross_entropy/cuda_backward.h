// The backward pass of the cross entropy on GPUs of compute capability 9.0, for cuda.cu: a block owns rows of the
// coordinates, and the positions' states pass by. Its buffers are those of _backward in triton_kernels.py.
#pragma once

#include "factorized_cross_entropy/cuda_forward.h"

namespace ofa::factorized_cross_entropy {

struct BackwardArguments {
  Boxes coordinates, states;
  const int32_t* keys;                 // [positions], the labels in ascending order
  const int32_t* bounds;               // [blocks + 1], the first position whose label is in a block or one behind it
  const void* bias;                    // [vocabulary] or null
  const float* log_sums;               // of positions, padded to tiles, in bits
  const float *slopes, *label_slopes;  // of positions, padded to tiles, magnified
  const float* unit;
  void* of_table;    // [vocabulary, rank] or null
  void* of_bias;     // [vocabulary] or null
  Dtype bias_dtype;  // of bias and of_bias
  int32_t vocabulary, rank;
};

#ifdef OFA_WARPGROUPS

__device__ inline float element(const void* data, Dtype dtype, int64_t i) {
  if (dtype == Dtype::f32) return static_cast<const float*>(data)[i];
  if (dtype == Dtype::f16) return to_float(static_cast<const Half*>(data)[i]);
  return to_float(static_cast<const Bfloat*>(data)[i]);
}

template <class S>
struct PositionVectors {
  const Memory<S>& memory;
  const float *log_sums, *slopes;
  static constexpr int each = S::step * sizeof(float), bytes = 2 * each;
  __device__ void copy(int tile, int stage) const {
    copy_bulk(memory.vector(stage, 0), log_sums + tile * S::step, each, memory.full(stage));
    copy_bulk(memory.vector(stage, 1), slopes + tile * S::step, each, memory.full(stage));
  }
};

// Of a thread's two entries: probabilities times the positions' slopes.
template <class S>
class Slopes {
 public:
  __device__ Slopes(const Memory<S>& memory, const BackwardArguments& a, int block, int first)
      : memory_(memory), keys_(a.keys), label_slopes_(a.label_slopes), first_(first) {
    low_ = a.bounds[block], high_ = a.bounds[block + 1];
#  pragma unroll
    for (int r = 0; r < 2; ++r)
      if (a.bias && first + 8 * r < a.vocabulary) shift_[r] = element(a.bias, a.bias_dtype, first + 8 * r) * log2_e;
  }

  __device__ bool operator()(float (&s)[S::step / 2], int tile, int stage) {
    const int own_column = threadIdx.x % 4 * 2, begin = tile * S::step;
    const float* const log_sums = memory_.vector(stage, 0) + own_column;
    const float* const slopes = memory_.vector(stage, 1) + own_column;
#  pragma unroll
    for (int j = 0; j < S::step / 8; ++j) {
      const float2 lse = *reinterpret_cast<const float2*>(log_sums + 8 * j);
      const float2 slope = *reinterpret_cast<const float2*>(slopes + 8 * j);
#  pragma unroll
      for (int i = 4 * j; i < 4 * j + 4; ++i)
        s[i] =
            power_of_two(fmaf(s[i], log2_e, shift_[i % 4 / 2] - (i % 2 ? lse.y : lse.x))) * (i % 2 ? slope.y : slope.x);
    }
    if (begin < high_ && begin + S::step > low_) {  // positions that have a label of this block
#  pragma unroll 1
      for (int position = max(low_, begin); position < min(high_, begin + S::step); ++position) {
        const int row = keys_[position] - first_, column = position - begin - own_column;
        if ((row == 0 || row == 8) && (column & ~7) + (column & 1) == column) {
          const float slope = label_slopes_[position];
#  pragma unroll
          for (int i = 0; i < S::step / 2; ++i)
            if (i / 4 * 8 + i % 2 == column && i % 4 / 2 * 8 == row) s[i] = slope;
        }
      }
    }
#  pragma unroll
    for (int i = 0; i < S::step / 2; ++i) total_[i % 4 / 2] += s[i];
    return false;
  }

  __device__ void rescale(float (&)[S::sums / 2]) const {}
  __device__ float total(int r) const {  // of the row, in all four lanes that have it
    const float sum = total_[r] + __shfl_xor_sync(all_threads, total_[r], 1);
    return sum + __shfl_xor_sync(all_threads, sum, 2);
  }

 private:
  const Memory<S> memory_;
  const int32_t* keys_;
  const float* label_slopes_;
  int first_, low_, high_;
  float shift_[2] = {}, total_[2] = {};
};

#endif

// Rows of the coordinates' gradient and of the bias's: sums of P_tv h_t and of P_tv over all positions t, times `unit`.
template <class S>
__global__ void __launch_bounds__(pass_threads, 1) backward_pass(const __grid_constant__ BackwardArguments a) {
#ifdef OFA_WARPGROUPS
  const int blocks = ceil_div(a.vocabulary, block_rows), tiles = ceil_div(a.bounds[blocks], S::step);
  const Memory<S> memory{swizzled_shared()};
  begin_pass(memory);
  Place<S> place;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = __shfl_sync(all_threads, warp / group_warps, 0);
  if (group == groups) {
    keep_registers<copier_registers>();
    if (warp == groups * group_warps && lane == 0)
      for (int block = blockIdx.x; block < blocks; block += gridDim.x)
        copy_pass(memory, place, a.coordinates, block * block_rows, a.states, 0, tiles,
                  PositionVectors<S>{memory, a.log_sums, a.slopes});
  } else {
    take_registers<multiplier_registers>();
    const float scale = *a.unit / (1 << magnified<typename S::T>);
    for (int block = blockIdx.x; block < blocks; block += gridDim.x) {
      const int first = block * block_rows + group * group_rows + warp % group_warps * 16 + lane / 4;
      Slopes<S> slopes(memory, a, block, first);
      float sums[S::sums / 2] = {};
      if (tiles) multiply_pass(memory, place, group, 0, tiles, slopes, sums);
#  pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int64_t entry = first + 8 * r;
        const float total = slopes.total(r) * scale;
        if (entry >= a.vocabulary) continue;
        if (a.of_bias && lane % 4 == 0) {
          if (a.bias_dtype == Dtype::f32)
            static_cast<float*>(a.of_bias)[entry] = total;
          else if (a.bias_dtype == Dtype::f16)
            static_cast<Half*>(a.of_bias)[entry] = from_float<Half>(total);
          else
            static_cast<Bfloat*>(a.of_bias)[entry] = from_float<Bfloat>(total);
        }
        if (!a.of_table) continue;
        typename S::T* const to = static_cast<typename S::T*>(a.of_table) + entry * a.rank;
#  pragma unroll
        for (int j = 0; j < S::sums / 8; ++j) {
          const int column = 8 * j + lane % 4 * 2;
          if (column < a.rank)
            *reinterpret_cast<uint32_t*>(to + column) =
                from_floats<typename S::T>(sums[4 * j + 2 * r] * scale, sums[4 * j + 2 * r + 1] * scale);
        }
      }
    }
  }
#endif
}

}  // namespace ofa::factorized_cross_entropy
