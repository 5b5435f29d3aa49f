// The screen, for cuda.cu: bounds of all scores from products of int8 codes on tensor cores.
//
// A block has 256 queries and a range of keys, eight warps with 64 x 64 products each: 128 keys at a time stream
// through a ring of stages in shared memory. The queries stay there, or stream along where rows are long. A score costs
// two operations beyond its product: the largest of 16 is found, and that alone is compared.
#pragma once

#include "tiles.h"
#include "topk_similarity/cuda_encode.h"

namespace ofa::topk_similarity {

constexpr int screen_threads = 256, warp_rows = 64, warp_columns = 64;
constexpr int warps_down = query_tile / warp_rows;
static_assert(warps_down * (key_tile / warp_columns) * 32 == screen_threads);
constexpr int query_bytes = query_tile * tile_row, key_bytes = key_tile * tile_row;  // of one step in depth
static_assert(turned == tile_row && encoded_at_once == key_tile && query_tile % encoded_at_once == 0);

__host__ __device__ constexpr int stages(bool resident) { return resident ? 4 : 3; }
inline int64_t screen_shared(bool resident, int64_t steps) {
  return resident ? steps * query_bytes + stages(true) * key_bytes : stages(false) * (query_bytes + key_bytes);
}
constexpr int64_t screen_static = query_tile * (sizeof(QueryBound) + sizeof(int32_t));

// A candidate: its upper bound, in an order that unsigned numbers have, above its key, the lower the better.
__device__ inline uint64_t pack(float upper, int32_t key) {
  const uint32_t bits = __float_as_uint(upper);
  return static_cast<uint64_t>(bits & 0x80000000u ? ~bits : bits | 0x80000000u) << 32 | ~static_cast<uint32_t>(key);
}
__device__ inline int32_t key_of(uint64_t candidate) { return static_cast<int32_t>(~static_cast<uint32_t>(candidate)); }
__device__ inline float upper_of(uint64_t candidate) {
  const uint32_t bits = static_cast<uint32_t>(candidate >> 32);
  return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

__device__ inline float slack(const QueryBound& query, const KeyTile& tile) {
  return fmaf(query.slope, tile.norm, query.reach * tile.residual);
}

struct Codes {
  const int8_t *queries, *keys;  // whole tiles of rows of `padded` bytes
  const QueryBound* bounds;
  const KeyTile* tiles;
  int steps;  // padded / 64
  int64_t key_count;
};

// Key tiles [begin, end), `per_split` of them to each blockIdx.y.
struct Range {
  int begin, end, per_split;
};

// lows, if not null: [queries][2 (end - begin)], each query's largest lower bound among 64 keys. Else lists:
// [queries][gridDim.y][capacity], the candidates whose upper bound reaches the query's limit; counts, how many there
// are, which may be more than `capacity`.
template <bool resident, bool for_lows>
__global__ void __launch_bounds__(screen_threads, 1)
    screen(Codes codes, Range range, float* lows, uint64_t* lists, int32_t* counts, int capacity) {
  constexpr int ring = stages(resident), stage_bytes = key_bytes + (resident ? 0 : query_bytes);
  __shared__ __align__(16) QueryBound bounds[query_tile];
  __shared__ int32_t found[query_tile];
  uint8_t* const held = dynamic_shared();  // the queries, if resident
  uint8_t* const stage = held + (resident ? codes.steps * query_bytes : 0);

  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int warp_row = warp % warps_down * warp_rows, warp_column = warp / warps_down * warp_columns;
  const int64_t first_query = static_cast<int64_t>(blockIdx.x) * query_tile;
  const int64_t padded = static_cast<int64_t>(codes.steps) * tile_row;
  const int first_tile = range.begin + static_cast<int>(blockIdx.y) * range.per_split;
  const int end_tile = min(range.end, first_tile + range.per_split);
  const int64_t total = static_cast<int64_t>(max(0, end_tile - first_tile)) * codes.steps;

  // `rows` rows from `from` on, 64 bytes of each, as a tile.
  const auto load = [&](uint8_t* to, const int8_t* from, int rows) {
    for (int i = thread; i < rows * chunks; i += screen_threads) {
      const int row = i / chunks, chunk = i % chunks;
      copy_async(to + tile_offset(row, chunk), from + row * padded + chunk * 16);
    }
  };
  const int8_t* const queries = codes.queries + first_query * padded;
  int next_tile = first_tile, next_step = 0, next_stage = 0;
  const auto load_next = [&] {
    if (next_tile < end_tile) {
      uint8_t* const to = stage + next_stage * stage_bytes;
      load(to, codes.keys + static_cast<int64_t>(next_tile) * key_tile * padded + next_step * tile_row, key_tile);
      if (!resident) load(to + key_bytes, queries + next_step * tile_row, query_tile);
      if (++next_step == codes.steps) next_step = 0, ++next_tile;
      next_stage = next_stage + 1 == ring ? 0 : next_stage + 1;
    }
    commit_copies();  // groups are counted, so that an empty one is needed, too
  };

  for (int i = thread; i < query_tile; i += screen_threads) bounds[i] = codes.bounds[first_query + i], found[i] = 0;
  if (resident && total)
    for (int step = 0; step < codes.steps; ++step)
      load(held + step * query_bytes, queries + step * tile_row, query_tile);
  for (int i = 0; i < ring - 1; ++i) load_next();
  __syncthreads();  // the bounds, also where there are no keys

  int32_t sum[4][8][4] = {};
  int step = 0, tile = first_tile, now = 0;
  for (int64_t i = 0; i < total; ++i) {
    wait_for_copies<ring - 2>();
    __syncthreads();  // and everybody is done with the stage that is loaded next
    load_next();
    const uint8_t* const right = stage + now * stage_bytes;
    const uint8_t* const left = resident ? held + step * query_bytes : right + key_bytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[4][4], b[4][4];
#pragma unroll
      for (int m = 0; m < 4; ++m) load_left(a[m], left, warp_row + 16 * m, half, lane);
#pragma unroll
      for (int n = 0; n < 4; ++n) load_right(b[n], right, warp_column + 16 * n, half, lane);
#pragma unroll
      for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int n = 0; n < 8; ++n) multiply_bytes(sum[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
    }
    now = now + 1 == ring ? 0 : now + 1;
    if (++step < codes.steps) continue;

    const KeyTile at = codes.tiles[tile];
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int32_t most = sum[m][0][2 * half];
#pragma unroll
        for (int n = 0; n < 8; ++n) most = max(most, max(sum[m][n][2 * half], sum[m][n][2 * half + 1]));
        const int row = warp_row + 16 * m + 8 * half + lane / 4;
        const QueryBound query = bounds[row];
        const float scale = query.scale * at.scale, own_slack = slack(query, at);
        if (for_lows) {
          most = max(most, __shfl_xor_sync(all_threads, most, 1));
          most = max(most, __shfl_xor_sync(all_threads, most, 2));
          const int64_t groups = 2 * (range.end - range.begin), group = 2 * (tile - range.begin) + warp / warps_down;
          if (lane % 4 == 0)
            lows[(first_query + row) * groups + group] = fmaf(static_cast<float>(most), scale, -own_slack);
        } else if (fmaf(static_cast<float>(most), scale, own_slack) >= query.limit) {
          const int64_t list = (first_query + row) * gridDim.y + blockIdx.y;
#pragma unroll
          for (int n = 0; n < 16; ++n) {
            const float upper = fmaf(static_cast<float>(sum[m][n / 2][2 * half + n % 2]), scale, own_slack);
            const int64_t key = static_cast<int64_t>(tile) * key_tile + warp_column + n / 2 * 8 + lane % 4 * 2 + n % 2;
            if (upper < query.limit || key >= codes.key_count) continue;
            const int place = atomicAdd(&found[row], 1);
            if (place < capacity) lists[list * capacity + place] = pack(upper, static_cast<int32_t>(key));
          }
        }
      }
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[m][n][j] = 0;
    step = 0;
    ++tile;
  }
  wait_for_copies<0>();
  if (for_lows) return;
  __syncthreads();
  for (int i = thread; i < query_tile; i += screen_threads)
    counts[(first_query + i) * gridDim.y + blockIdx.y] = found[i];
}

}  // namespace ofa::topk_similarity
