// The same products in half precision by warpgroups, which GPUs of compute capability 9.0 have: two in a block, each
// with 64 rows and all of its 128 columns. Operands are copied as before, into rows of 128 bytes whose chunks have
// changed places as the tensor cores expect; they read them from shared memory themselves, half as often.
#pragma once

#include "factorized_embedding/cuda_product.h"

namespace ofa::factorized_embedding {

#ifdef OFA_WARPGROUPS

// Where a product's operand begins, in step `part` of four: rows of a depth of 64, or (`along`) lines of 64 rows, in
// panels one behind the other. `memory` is aligned to 1024 bytes, of which eight rows or lines have as many.
template <bool along>
__device__ uint64_t operand_at(const uint8_t* memory, int part) {
  constexpr uint64_t eight = 8 * step_row / 16, panel = 64 * step_row / 16, swizzled_by_128 = 1;
  const uint32_t from = shared_address(memory) + part * (along ? 16 * step_row : part_bytes);
  return from >> 4 | panel << 16 | eight << 32 | swizzled_by_128 << 62;
}

// As multiply_lines.
template <class T, bool left_along, bool right_along, bool whole, class Out, class Meanwhile>
__device__ void multiply_lines_wgmma(uint8_t* memory, const Lines<T>& left, int64_t first_row, const Lines<T>& right,
                                     int64_t first_column, int64_t begin, int64_t end, const Rows<Out>& out,
                                     Meanwhile&& meanwhile) {
  using Left = Operand<T, left_along, block_rows<T>, whole, true>;
  using Right = Operand<T, right_along, block_columns, whole, true>;
  constexpr int stage_bytes = Left::bytes + Right::bytes, group_rows = block_rows<T> / 2;
  static_assert(stages * stage_bytes == product_bytes<T> && stage_bytes % 1024 == 0 && Left::bytes % 1024 == 0);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = warp / 4;
  Left left_operand(left, first_row, begin, end);
  Right right_operand(right, first_column, begin, end);
  const auto load = [&](int64_t depth, int stage) {
    if (depth < end) {
      left_operand.load(memory + stage * stage_bytes, depth, end);
      right_operand.load(memory + stage * stage_bytes + Left::bytes, depth, end);
    }
    commit_copies();
  };
  float total[64] = {};
  for (int stage = 0; stage < stages - 1; ++stage) load(begin + stage * step_depth<T>, stage);
  int now = 0;
  for (int64_t depth = begin; depth < end; depth += step_depth<T>, now = now + 1 < stages ? now + 1 : 0) {
    wait_for_copies<stages - 2>();
    wait_for_products<0>();  // which have read what the next copies replace
    publish_to_products();
    __syncthreads();
    begin_products();
    const uint8_t* const left_tile = memory + now * stage_bytes + group * group_rows * step_row;
    const uint8_t* const right_tile = memory + now * stage_bytes + Left::bytes;
#  pragma unroll
    for (int part = 0; part < parts; ++part)
      multiply_tiles<T, left_along, right_along>(total, operand_at<left_along>(left_tile, part),
                                                 operand_at<right_along>(right_tile, part));
    commit_products();
    load(depth + (stages - 1) * step_depth<T>, now ? now - 1 : stages - 1);
    meanwhile();
  }
  wait_for_products<0>();
  settle(total);
  wait_for_copies<0>();
#  pragma unroll
  for (int i = 0; i < block_columns / warp_columns; ++i) {
    float part[1][4][4];
#  pragma unroll
    for (int j = 0; j < 16; ++j) part[0][j / 4][j % 4] = total[16 * i + j];
    write_tile<whole>(out, part, first_row + group * group_rows + warp % 4 * 16, first_column + i * warp_columns, lane);
  }
}

#endif

}  // namespace ofa::factorized_embedding
