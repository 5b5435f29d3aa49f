// The screen for GPUs of compute capability 9.0, for cuda.cu: as cuda_screen.h has it, with the products of warpgroups.
//
// A block has 256 queries, which stay in shared memory, and a range of keys, 128 at a time. A thread of its own brings
// those, 64 codes deep, into a ring of stages; two warpgroups multiply them by 128 queries each. They take turns, tile
// by tile, so that one looks at its products while those of the other are computed. A row's products are those of four
// lanes, each of which has a list of its own: nothing is counted by two threads.
#pragma once

#include "topk_similarity/cuda_screen.h"

namespace ofa::topk_similarity {

constexpr int multipliers = query_tile / encoded_at_once, group_warps = 4;  // groups, and one more that copies
constexpr int wgmma_warps = multipliers * group_warps, wgmma_threads = (wgmma_warps + group_warps) * 32;
constexpr int copier_registers = 40, multiplier_registers = 232;
static_assert(32 * group_warps * (copier_registers + multipliers * multiplier_registers) <= 1 << 16);
constexpr int least_stages = 3, most_stages = 24;
constexpr int64_t wgmma_static = (2 * most_stages + multipliers + 1) * sizeof(uint64_t);
constexpr int wgmma_registers = 129;  // more than all sums: a kernel that takes fewer was compiled for other GPUs

inline int64_t wgmma_shared(int stages, int64_t padded) { return padded * query_tile + stages * key_bytes; }
// Stages that a block of `shared` bytes has room for; too few, and it cannot run.
inline int wgmma_stages(int64_t shared, int64_t padded) {
  const int64_t left = shared - wgmma_static - wgmma_shared(0, padded);
  return static_cast<int>(left < 0 ? 0 : left / key_bytes < most_stages ? left / key_bytes : most_stages);
}

// A tile of codes in shared memory, from a row and column on, as warpgroups take their operands: 8 x 16-byte matrices,
// `chunk_bytes` from one to the next along a row and eight rows down the column.
__device__ inline uint64_t operand(const void* codes) {
  const auto field = [](uint32_t bytes) { return static_cast<uint64_t>(bytes >> 4 & 0x3fff); };
  return field(shared_address(codes)) | field(chunk_bytes) << 16 | field(8 * chunk) << 32;
}
// What moves an operand; its address comes in units of 16 bytes.
__device__ constexpr uint64_t moved(int rows, int columns) { return code_offset(rows, columns) >> 4; }

template <bool for_lows>
__global__ void __launch_bounds__(wgmma_threads, 1)
    screen_wgmma(Codes codes, Range range, int ring, float* lows, uint64_t* lists, int32_t* counts, int capacity) {
#ifdef OFA_WARPGROUPS
  __shared__ __align__(8) uint64_t full[most_stages], empty[most_stages], turn[multipliers], held;
  const int padded = codes.padded, slices = padded / half_turned, tile_bytes = encoded_at_once * padded;
  uint8_t* const queries = dynamic_shared();
  uint8_t* const stages = queries + multipliers * tile_bytes;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = warp / group_warps;
  const int64_t first_query = static_cast<int64_t>(blockIdx.x) * query_tile;
  const int first_tile = range.begin + static_cast<int>(blockIdx.y) * range.per_split;
  const int end_tile = min(range.end, first_tile + range.per_split);

  if (threadIdx.x == 0) {
    for (int i = 0; i < ring; ++i) start_barrier(full + i, 1), start_barrier(empty + i, wgmma_warps);
    for (int i = 0; i < multipliers; ++i) start_barrier(turn + i, group_warps);
    start_barrier(&held, 1);
    publish_barriers();
  }
  __syncthreads();

  int stage = 0;
  uint32_t round = 0;  // how often the ring was gone through
  const auto next_stage = [&] {
    if (++stage == ring) stage = 0, ++round;
  };

  if (group == multipliers) {
    keep_registers<copier_registers>();
    if (warp > wgmma_warps || lane || first_tile >= end_tile) return;
    arrive_for_bytes(&held, multipliers * tile_bytes);
    for (int i = 0; i < multipliers; ++i)
      copy_bulk(queries + i * tile_bytes, codes.queries + first_query * padded + i * tile_bytes, tile_bytes, &held);
    const int8_t* from = codes.keys + static_cast<int64_t>(first_tile) * tile_bytes;
    for (int tile = first_tile; tile < end_tile; ++tile)
      for (int step = 0; step < tile_bytes; step += key_bytes, next_stage()) {
        const int bytes = min(key_bytes, tile_bytes - step);
        wait_for_phase(empty + stage, round - 1);
        arrive_for_bytes(full + stage, bytes);
        copy_bulk(stages + stage * key_bytes, from, bytes, full + stage);
        from += bytes;
      }
    return;
  }

  take_registers<multiplier_registers>();
  constexpr int down = encoded_at_once / 64;  // products of 64 rows
  const int first_row = group * encoded_at_once + warp % group_warps * 16 + lane / 4;
  const auto row_of = [](int i) { return i / 2 * 64 + i % 2 * 8; };  // of the thread's rows, from its first
  Bar bars[2 * down];
  int32_t found[2 * down] = {};
#  pragma unroll
  for (int i = 0; i < 2 * down; ++i) bars[i] = Bar(codes.bounds[first_query + first_row + row_of(i)]);
  const int64_t first_list = ((first_query + first_row) * gridDim.y + blockIdx.y) * list_parts + lane % list_parts;
  const int lists_of_row = static_cast<int>(gridDim.y) * list_parts;
  uint64_t* const own_lists = lists + first_list * capacity;

  // Else a tile's stages, which one group lets go only when the other has come, would be more than there are.
  const bool in_turns = 2 * ring > slices + 1;
  const uint32_t key_count = static_cast<uint32_t>(codes.key_count);
  const uint64_t left = operand(queries + group * tile_bytes), right = operand(stages);
  uint64_t keys = right;
  int32_t sum[down][64];
  if (first_tile < end_tile) wait_for_phase(&held, 0);
  for (int tile = first_tile; tile < end_tile; ++tile) {
    const KeyTile at = codes.tiles[tile];
    if (in_turns) wait_for_phase(turn + group, tile - first_tile + group - 1);
    int before = 0;
    for (int slice = 0; slice < slices; ++slice) {
      const bool begins = slice % 2 == 0;  // a stage: the last may have one slice only
      if (begins) {
        wait_for_phase(full + stage, round);
        keys = right + stage * (key_bytes >> 4);
      }
      begin_products();
#  pragma unroll
      for (int m = 0; m < down; ++m)
        multiply_tiles(sum[m], left + slice * moved(0, half_turned) + moved(64 * m, 0),
                       keys + slice % 2 * moved(0, half_turned), slice);
      commit_products();
      if (!begins) continue;
      wait_for_products<1>();
      if (slice && lane == 0) arrive(empty + before);
      before = stage;
      next_stage();
    }
    if (in_turns && lane == 0) arrive(turn + 1 - group);
    wait_for_products<0>();
    if (lane == 0) arrive(empty + before);
#  pragma unroll
    for (int m = 0; m < down; ++m) settle(sum[m]);
    const uint32_t first_key = static_cast<uint32_t>(tile) * key_tile + lane % 4 * 2;

#  pragma unroll
    for (int i = 0; i < 2 * down; ++i) {
      constexpr int parts = 4, part_values = 8;  // of 32 keys each, of which the thread has 8
      const auto value = [&](int part, int j) { return sum[i / 2][16 * part + j / 2 * 4 + i % 2 * 2 + j % 2]; };
      int32_t most[parts];
#  pragma unroll
      for (int part = 0; part < parts; ++part) {
        most[part] = value(part, 0);
#  pragma unroll
        for (int j = 1; j < part_values; ++j) most[part] = max(most[part], value(part, j));
      }
      if constexpr (for_lows) {
#  pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          int32_t of_all = max(most[2 * pair], most[2 * pair + 1]);
          of_all = max(of_all, __shfl_xor_sync(all_threads, of_all, 1));
          of_all = max(of_all, __shfl_xor_sync(all_threads, of_all, 2));
          const int64_t row = first_query + first_row + row_of(i), groups = 2 * (range.end - range.begin);
          if (lane % 4 == 0)
            lows[row * groups + 2 * (tile - range.begin) + pair] =
                fmaf(static_cast<float>(of_all), bars[i].scale * at.scale, -bars[i].slack(at));
        }
      } else {
        const int32_t lowest = bars[i].lowest(at);
        if (max(max(most[0], most[1]), max(most[2], most[3])) < lowest) continue;
        const float scale = bars[i].scale * at.scale, slack = bars[i].slack(at);
        uint64_t* const list = own_lists + row_of(i) * lists_of_row * capacity;
#  pragma unroll
        for (int part = 0; part < parts; ++part) {
          if (most[part] < lowest) continue;
          uint32_t hits = 0;
#  pragma unroll
          for (int j = 0; j < part_values; ++j) hits |= static_cast<uint32_t>(value(part, j) >= lowest) << j;
          while (hits) {  // once, nearly always; registers cannot be indexed, so that the product is chosen by bits
            const uint32_t j = 31 - __clz(hits);
            hits ^= 1u << j;
            const auto by_0 = [&](int from) { return j & 1 ? value(part, from + 1) : value(part, from); };
            const auto by_1 = [&](int from) { return j & 2 ? by_0(from + 2) : by_0(from); };
            const int32_t product = j & 4 ? by_1(4) : by_1(0);
            const uint32_t key = first_key + 32 * part + (j & 6) * 4 + (j & 1);
            const bool present = key < key_count;
            if (present && found[i] < capacity)
              list[found[i]] = pack(fmaf(static_cast<float>(product), scale, slack), static_cast<int32_t>(key));
            found[i] += present;
          }
        }
      }
    }
  }
  if constexpr (!for_lows) {
#  pragma unroll
    for (int i = 0; i < 2 * down; ++i) counts[first_list + row_of(i) * lists_of_row] = found[i];
  }
#endif
}

}  // namespace ofa::topk_similarity
