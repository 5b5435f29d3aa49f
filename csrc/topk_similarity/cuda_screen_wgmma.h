// The screen for GPUs of compute capability 9.0, for cuda.cu: as cuda_screen.h has it, with the products of warpgroups.
//
// A block has 256 queries, which stay in shared memory, and a range of keys, 128 at a time. A thread of its own brings
// those, as deep as fits, into a ring of stages; two warpgroups multiply them by 128 queries each. They take turns,
// tile by tile, so that one looks at its products while those of the other are computed. A row's products are those of
// four lanes, each of which has a list of its own: nothing is counted by two threads.
#pragma once

#include <algorithm>

#include "topk_similarity/cuda_screen.h"

namespace ofa::topk_similarity {

constexpr int multipliers = query_tile / encoded_at_once, group_warps = 4;  // groups, and one more that copies
constexpr int wgmma_warps = multipliers * group_warps, wgmma_threads = (wgmma_warps + group_warps) * 32;
constexpr int copier_registers = 40, multiplier_registers = 232;
static_assert(32 * group_warps * (copier_registers + multipliers * multiplier_registers) <= 1 << 16);
constexpr int most_stages = 8, least_together = 3;
constexpr int64_t slice_bytes = key_tile * slice_row;  // what a product takes of the keys
constexpr int64_t wgmma_static = 1 << 10;              // the barriers, rounded up
static_assert((2 * most_stages + multipliers + 1) * sizeof(uint64_t) <= wgmma_static / 2);
constexpr int wgmma_registers = 129;  // more than all sums: a kernel that takes fewer was compiled for other GPUs

// How keys go through shared memory: `count` stages of `slices` products each. In turns, stages are let go by both
// groups only when the second one has come to them, so that a whole tile and a stage more must fit.
struct Ring {
  int count = 0, slices = 0;
  bool in_turns = false;

  Ring() = default;
  // For a block of `shared` bytes. Fewer, deeper stages wait less. None if the rows are too long for such a block.
  Ring(int64_t shared, int64_t padded) {
    const int64_t room = (shared - wgmma_static - padded * query_tile) / slice_bytes, all = padded / slice_row;
    const auto take = [&](int64_t stage) {
      count = static_cast<int>(std::min<int64_t>(room / stage, most_stages)), slices = static_cast<int>(stage);
    };
    if (room < least_together) return;
    for (int64_t steps = 1; steps < most_stages; ++steps) {
      take(ceil_div(all, steps));
      if ((in_turns = count > steps)) return;
    }
    take(std::max<int64_t>(room / (least_together + 1), 1));
  }
  int64_t shared(int64_t padded) const { return padded * query_tile + count * slices * slice_bytes; }
};

// A tile of codes in shared memory, from a row and column on, as warpgroups take their operands: eight rows of 32 bytes
// after the other, of which bit 4 of an address is changed by bit 7 (what they call swizzling of 32 bytes).
__device__ inline uint64_t operand(const void* codes) {
  const auto field = [](uint32_t bytes) { return static_cast<uint64_t>(bytes >> 4 & 0x3fff); };
  constexpr uint64_t no_stride = 1, swizzled_by_32 = 3;
  return field(shared_address(codes)) | no_stride << 16 | field(8 * slice_row) << 32 | swizzled_by_32 << 62;
}
// What moves an operand; its address comes in units of 16 bytes.
__device__ constexpr uint64_t moved(int rows, int columns) { return code_offset(rows, columns) >> 4; }

// Value j of `count`, a power of two: registers cannot be indexed, so half of them are chosen, bit by bit of j.
template <int count, class Value>
__device__ int32_t chosen(const Value& value, uint32_t j, int from = 0) {
  if constexpr (count == 1) {
    return value(from);
  } else {
    const int32_t low = chosen<count / 2>(value, j, from), high = chosen<count / 2>(value, j, from + count / 2);
    return j & (count / 2) ? high : low;
  }
}

template <bool for_lows>
__global__ void __launch_bounds__(wgmma_threads, 1)
    screen_wgmma(Codes codes, Range range, Ring ring, float* lows, uint64_t* lists, int32_t* counts, int capacity) {
#ifdef OFA_WARPGROUPS
  __shared__ __align__(8) uint64_t full[most_stages], empty[most_stages], turn[multipliers], held;
  const int padded = codes.padded, slices = padded / slice_row, tile_bytes = encoded_at_once * padded;
  const int stage_bytes = ring.slices * static_cast<int>(slice_bytes);
  uint8_t* const queries = dynamic_shared();
  uint8_t* const stages = queries + multipliers * tile_bytes;
  // Told to be the same in all lanes, operands are computed once a warp.
  const int lane = threadIdx.x % 32, warp = __shfl_sync(all_threads, threadIdx.x / 32, 0), group = warp / group_warps;
  const int64_t first_query = static_cast<int64_t>(blockIdx.x) * query_tile;
  const int first_tile = range.begin + static_cast<int>(blockIdx.y) * range.per_split;
  const int end_tile = min(range.end, first_tile + range.per_split);

  if (threadIdx.x == 0) {
    for (int i = 0; i < ring.count; ++i) start_barrier(full + i, 1), start_barrier(empty + i, wgmma_warps);
    for (int i = 0; i < multipliers; ++i) start_barrier(turn + i, group_warps);
    start_barrier(&held, 1);
    publish_barriers();
  }
  __syncthreads();

  int stage = 0;
  uint32_t round = 0;  // how often the ring was gone through
  const auto next_stage = [&] {
    if (++stage == ring.count) stage = 0, ++round;
  };

  if (group == multipliers) {
    keep_registers<copier_registers>();
    if (warp > wgmma_warps || lane || first_tile >= end_tile) return;
    arrive_for_bytes(&held, multipliers * tile_bytes);
    for (int i = 0; i < multipliers; ++i)
      copy_bulk(queries + i * tile_bytes, codes.queries + first_query * padded + i * tile_bytes, tile_bytes, &held);
    for (int tile = first_tile; tile < end_tile; ++tile) {
      const int8_t* const from = codes.keys + range.tile(tile) * tile_bytes;
      for (int at = 0; at < tile_bytes; at += stage_bytes, next_stage()) {
        const int bytes = min(stage_bytes, tile_bytes - at);
        wait_for_phase(empty + stage, round - 1);
        arrive_for_bytes(full + stage, bytes);
        copy_bulk(stages + stage * stage_bytes, from + at, bytes, full + stage);
      }
    }
    return;
  }

  take_registers<multiplier_registers>();
  constexpr int down = encoded_at_once / 64, rows = 2 * down;  // products of 64 rows; rows of a thread
  const int first_row = group * encoded_at_once + warp % group_warps * 16 + lane / 4;
  const auto row_of = [](int i) { return i / 2 * 64 + i % 2 * 8; };  // of the thread's rows, from its first
  Bar bars[rows];
  int32_t found[rows] = {};
#  pragma unroll
  for (int i = 0; i < rows; ++i) bars[i] = Bar(codes.bounds[first_query + first_row + row_of(i)]);
  const int64_t first_list = ((first_query + first_row) * gridDim.y + blockIdx.y) * list_parts + lane % list_parts;
  const int lists_of_row = static_cast<int>(gridDim.y) * list_parts;
  uint64_t* const own_lists = lists + first_list * capacity;

  const uint32_t key_count = static_cast<uint32_t>(codes.key_count);
  const uint64_t left = operand(queries + group * tile_bytes), right = operand(stages);
  int32_t sum[down][64];
  if (first_tile < end_tile) wait_for_phase(&held, 0);
  for (int tile = first_tile; tile < end_tile; ++tile) {
    const KeyTile at = codes.tiles[range.tile(tile)];
    if (ring.in_turns) wait_for_phase(turn + group, tile - first_tile + group - 1);
    int before = 0;
    for (int slice = 0, end; slice < slices; slice = end) {
      end = min(slices, slice + ring.slices);
      wait_for_phase(full + stage, round);
      uint64_t queries_at = left + slice * moved(0, slice_row), keys_at = right + stage * (stage_bytes >> 4);
      for (int i = slice; i < end; ++i) {
        begin_products();
#  pragma unroll
        for (int m = 0; m < down; ++m) multiply_tiles(sum[m], queries_at + moved(64 * m, 0), keys_at, i);
        queries_at += moved(0, slice_row), keys_at += moved(0, slice_row);
      }
      commit_products();
      if (end == slices && ring.in_turns && lane == 0) arrive(turn + 1 - group);
      if (slice) {
        wait_for_products<1>();
        if (lane == 0) arrive(empty + before);
      }
      before = stage;
      next_stage();
    }
    wait_for_products<0>();
    if (lane == 0) arrive(empty + before);
#  pragma unroll
    for (int m = 0; m < down; ++m) settle(sum[m]);

    // Of row i, in the order of their columns, which `column` tells beside the lane's first.
    const auto value = [&](int i, int j) { return sum[i / 2][j / 2 * 4 + i % 2 * 2 + j % 2]; };
    const auto column = [](uint32_t j) { return (j & ~1u) * 4 + (j & 1); };
    constexpr int halves = 2, in_half = 16;
    int32_t most[rows][halves];
#  pragma unroll
    for (int i = 0; i < rows; ++i)
#  pragma unroll
      for (int half = 0; half < halves; ++half) {
        most[i][half] = value(i, in_half * half);
#  pragma unroll
        for (int j = 1; j < in_half; ++j) most[i][half] = max(most[i][half], value(i, in_half * half + j));
      }

    if constexpr (for_lows) {
      const int64_t groups = halves * (range.end - range.begin);
#  pragma unroll
      for (int i = 0; i < rows; ++i)
#  pragma unroll
        for (int half = 0; half < halves; ++half) {
          int32_t of_all = max(most[i][half], __shfl_xor_sync(all_threads, most[i][half], 1));
          of_all = max(of_all, __shfl_xor_sync(all_threads, of_all, 2));
          if (lane % 4 == 0)
            lows[(first_query + first_row + row_of(i)) * groups + halves * (tile - range.begin) + half] =
                fmaf(static_cast<float>(of_all), bars[i].scale * at.scale, -bars[i].slack(at));
        }
    } else {
      const uint32_t first_key = static_cast<uint32_t>(range.tile(tile)) * key_tile + lane % 4 * 2;
      const bool whole = (static_cast<uint32_t>(range.tile(tile)) + 1) * key_tile <= key_count;
#  pragma unroll
      for (int i = 0; i < rows; ++i) {
        const int32_t lowest = bars[i].lowest(at), highest = max(most[i][0], most[i][1]);
        if (!__any_sync(all_threads, highest >= lowest)) continue;
        uint32_t hits = 0;
#  pragma unroll
        for (int j = 0; j < halves * in_half; ++j) hits |= static_cast<uint32_t>(value(i, j) >= lowest) << j;
        const auto append = [&](bool hit, uint32_t j, int32_t product) {
          const float upper = fmaf(static_cast<float>(product), bars[i].scale * at.scale, bars[i].slack(at));
          store_if(hit && found[i] < capacity, own_lists + row_of(i) * lists_of_row * capacity + found[i],
                   pack(upper, static_cast<int32_t>(first_key + column(j))));
          found[i] += hit;
        };
        // A thread seldom has more than one, which then is the largest.
        const bool one = whole && hits && !(hits & (hits - 1));
        append(one, 31 - __clz(hits), highest);
        if (!__any_sync(all_threads, hits && !one)) continue;
        if (one) hits = 0;
        while (hits) {
          const uint32_t j = 31 - __clz(hits);
          hits ^= 1u << j;
          append(first_key + column(j) < key_count, j,
                 chosen<halves * in_half>([&](int at) { return value(i, at); }, j));
        }
      }
    }
  }
  if constexpr (!for_lows) {
#  pragma unroll
    for (int i = 0; i < rows; ++i) counts[first_list + row_of(i) * lists_of_row] = found[i];
  }
#endif
}

}  // namespace ofa::topk_similarity
