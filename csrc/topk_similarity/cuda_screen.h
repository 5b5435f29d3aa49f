// The screen, for cuda.cu: bounds of all scores from products of int8 codes on tensor cores, by any GPU;
// cuda_screen_wgmma.h has it for those of compute capability 9.0.
//
// A block has 256 queries and a range of keys, eight warps with 64 x 64 products each: 128 keys at a time stream
// through a ring of stages in shared memory. The queries stay there, or stream along where rows are long. A score costs
// one operation beyond its product: the largest of 16 is found, and that alone is compared, as an integer.
#pragma once

#include "topk_similarity/cuda_encode.h"

namespace ofa::topk_similarity {

constexpr int screen_threads = 256, warp_rows = 64, warp_columns = 64;
constexpr int warps_down = query_tile / warp_rows;
static_assert(warps_down * (key_tile / warp_columns) * 32 == screen_threads);
static_assert(encoded_at_once == key_tile && query_tile % encoded_at_once == 0);
constexpr int step_codes = 64;  // of each row, at a time: two products deep, the last perhaps one
constexpr int query_bytes = query_tile * step_codes, key_bytes = key_tile * step_codes;

__host__ __device__ constexpr int stages(bool resident) { return resident ? 4 : 3; }
inline int64_t screen_shared(bool resident, int64_t padded) {
  return resident ? padded * query_tile + stages(true) * key_bytes : stages(false) * (query_bytes + key_bytes);
}

// Lists of a query in each split, one for each of the four lanes that have its products: all keys of one remainder by 4
// of half their number.
constexpr int list_parts = 4;
constexpr int64_t screen_static = query_tile * (sizeof(QueryBound) + sizeof(float) + list_parts * sizeof(int32_t));

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

// What a query's products are compared with.
struct Bar {
  float limit, scale, slope, reach, inverse;

  Bar() = default;
  __device__ explicit Bar(const QueryBound& query)
      : limit(query.limit < static_cast<float>(infinity) ? query.limit - 0x1p-20f * fabsf(query.limit) : query.limit),
        scale(query.scale),
        slope(query.slope),
        reach(query.reach),
        inverse(1 / query.scale) {}

  __device__ float slack(const KeyTile& tile) const { return fmaf(slope, tile.norm, reach * tile.residual); }

  // A product whose upper bound reaches the limit is no smaller. The lower limit has room for this line's roundings, of
  // which those in proportion to the slack are the 2^-19 that its factors were raised by. What is not a number, a
  // slack that equals the limit where scales are next to nothing, lets all pass.
  __device__ int32_t lowest(const KeyTile& tile) const {
    return __float2int_rd(fmaxf((limit - slack(tile)) * (inverse * tile.inverse), -2e9f));
  }
};

struct Codes {
  const int8_t *queries, *keys;  // whole tiles of rows of `padded` codes
  const QueryBound* bounds;
  const KeyTile* tiles;
  int padded;  // a multiple of 32
  int64_t key_count;
};

// Key tiles [begin, end), `per_split` of them to each blockIdx.y; or of all tiles those that are multiples of `stride`.
struct Range {
  int begin, end, per_split, stride;
  __device__ int64_t tile(int number) const { return static_cast<int64_t>(number) * stride; }
};

// lows, if not null: [queries][2 (end - begin)], each query's largest lower bound among 64 keys. Else lists:
// [queries][gridDim.y][list_parts][capacity], the candidates whose upper bound reaches the query's limit; counts, how
// many there are, which may be more than `capacity`.
template <bool resident, bool for_lows>
__global__ void __launch_bounds__(screen_threads, 1)
    screen(Codes codes, Range range, float* lows, uint64_t* lists, int32_t* counts, int capacity) {
  constexpr int ring = stages(resident), stage_bytes = key_bytes + (resident ? 0 : query_bytes);
  constexpr int query_parts = query_tile / encoded_at_once;  // tiles of codes
  __shared__ __align__(16) QueryBound bounds[query_tile];
  __shared__ float inverses[query_tile];
  __shared__ int32_t found[query_tile * list_parts];
  uint8_t* const held = dynamic_shared();  // the queries, if resident
  const int padded = codes.padded, steps = ceil_div(padded, step_codes), tile_bytes = encoded_at_once * padded;
  uint8_t* const stage = held + (resident ? query_parts * tile_bytes : 0);

  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int warp_row = warp % warps_down * warp_rows, warp_column = warp / warps_down * warp_columns;
  const int64_t first_query = static_cast<int64_t>(blockIdx.x) * query_tile;
  const int first_tile = range.begin + static_cast<int>(blockIdx.y) * range.per_split;
  const int end_tile = min(range.end, first_tile + range.per_split);
  const int64_t total = static_cast<int64_t>(max(0, end_tile - first_tile)) * steps;

  const auto load = [&](uint8_t* to, const int8_t* from, int bytes) {
    for (int i = 16 * thread; i < bytes; i += 16 * screen_threads) copy_async(to + i, from + i);
  };
  const int8_t* const queries = codes.queries + first_query * padded;
  int next_tile = first_tile, next_step = 0, next_stage = 0;
  const auto load_next = [&] {
    if (next_tile < end_tile) {
      uint8_t* const to = stage + next_stage * stage_bytes;
      const int from = next_step * key_bytes, bytes = min(key_bytes, tile_bytes - from);
      load(to, codes.keys + range.tile(next_tile) * tile_bytes + from, bytes);
      if (!resident)
        for (int i = 0; i < query_parts; ++i) load(to + (i + 1) * key_bytes, queries + i * tile_bytes + from, bytes);
      if (++next_step == steps) next_step = 0, ++next_tile;
      next_stage = next_stage + 1 == ring ? 0 : next_stage + 1;
    }
    commit_copies();  // groups are counted, so that an empty one is needed, too
  };

  for (int i = thread; i < query_tile; i += screen_threads) {
    const Bar bar(codes.bounds[first_query + i]);
    bounds[i] = {bar.limit, bar.scale, bar.slope, bar.reach};
    inverses[i] = bar.inverse;
  }
  for (int i = thread; i < query_tile * list_parts; i += screen_threads) found[i] = 0;
  if (resident && total) load(held, queries, query_parts * tile_bytes);
  for (int i = 0; i < ring - 1; ++i) load_next();
  __syncthreads();  // the bounds, also where there are no keys

  int32_t sum[4][8][4] = {};
  int step = 0, tile = first_tile, now = 0;
  for (int64_t i = 0; i < total; ++i) {
    wait_for_copies<ring - 2>();
    __syncthreads();  // and everybody is done with the stage that is loaded next
    load_next();
    const uint8_t* const right = stage + now * stage_bytes;
    const uint8_t* const left = (resident ? held + step * key_bytes : right + key_bytes) +
                                warp_row / encoded_at_once * (resident ? tile_bytes : key_bytes);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (half && padded - step * step_codes <= half_turned) break;
      uint32_t a[4][4], b[4][4];
#pragma unroll
      for (int m = 0; m < 4; ++m)
        load_matrices(a[m], left + code_offset(warp_row % encoded_at_once + 16 * m + (lane & 15),
                                               chunk * (2 * half + (lane >> 4))));
#pragma unroll
      for (int n = 0; n < 4; ++n)
        load_matrices(b[n], right + code_offset(warp_column + 16 * n + (lane & 7) + (lane >> 4 << 3),
                                                chunk * (2 * half + (lane >> 3 & 1))));
#pragma unroll
      for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int n = 0; n < 8; ++n) multiply_bytes(sum[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
    }
    now = now + 1 == ring ? 0 : now + 1;
    if (++step < steps) continue;

    const KeyTile at = codes.tiles[range.tile(tile)];
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int32_t most = sum[m][0][2 * half];
#pragma unroll
        for (int n = 0; n < 8; ++n) most = max(most, max(sum[m][n][2 * half], sum[m][n][2 * half + 1]));
        const int row = warp_row + 16 * m + 8 * half + lane / 4;
        Bar bar;
        bar.limit = bounds[row].limit, bar.scale = bounds[row].scale, bar.slope = bounds[row].slope;
        bar.reach = bounds[row].reach, bar.inverse = inverses[row];
        if (for_lows) {
          most = max(most, __shfl_xor_sync(all_threads, most, 1));
          most = max(most, __shfl_xor_sync(all_threads, most, 2));
          const int64_t groups = 2 * (range.end - range.begin), group = 2 * (tile - range.begin) + warp / warps_down;
          if (lane % 4 == 0)
            lows[(first_query + row) * groups + group] =
                fmaf(static_cast<float>(most), bar.scale * at.scale, -bar.slack(at));
          continue;
        }
        const int32_t lowest = bar.lowest(at);
        if (most < lowest) continue;
        const int part = lane % list_parts;
        uint64_t* const list = lists + (((first_query + row) * gridDim.y + blockIdx.y) * list_parts + part) *
                                           static_cast<int64_t>(capacity);
#pragma unroll
        for (int n = 0; n < 16; ++n) {
          const int32_t product = sum[m][n / 2][2 * half + n % 2];
          if (product < lowest) continue;
          const int64_t key = range.tile(tile) * key_tile + warp_column + n / 2 * 8 + lane % 4 * 2 + n % 2;
          if (key >= codes.key_count) continue;
          const int place = atomicAdd(&found[row * list_parts + part], 1);
          if (place < capacity)
            list[place] =
                pack(fmaf(static_cast<float>(product), bar.scale * at.scale, bar.slack(at)), static_cast<int32_t>(key));
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
  for (int i = thread; i < query_tile * list_parts; i += screen_threads)
    counts[((first_query + i / list_parts) * gridDim.y + blockIdx.y) * list_parts + i % list_parts] = found[i];
}

}  // namespace ofa::topk_similarity
