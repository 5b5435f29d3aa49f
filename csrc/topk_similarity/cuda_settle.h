// What becomes of the screen's bounds, for cuda.cu: limits, the candidates that are left, and the k best of those. One
// block for each query of a slab.
#pragma once

#include "topk_similarity/cuda_screen.h"

namespace ofa::topk_similarity {

constexpr int settle_threads = 128, most_neighbors = 128;
static_assert(most_neighbors <= settle_threads);
constexpr int32_t overflowed = -1;  // instead of a number of candidates: some may be missing

struct Largest {  // for sort(): descending
  uint64_t* values;
  __device__ bool before(int a, int b) const { return values[a] > values[b]; }
  __device__ void swap(int a, int b) const {
    const uint64_t other = values[a];
    values[a] = values[b];
    values[b] = other;
  }
};

// The first limit: k keys are known to reach the k-th largest low. Queries that are zero or not finite look at no key.
__global__ void __launch_bounds__(settle_threads)
    first_limit(const float* lows, int groups, const double* norms, int k, QueryBound* bounds, int32_t* kept_counts) {
  uint64_t* const values = reinterpret_cast<uint64_t*>(dynamic_shared());
  const int64_t query = blockIdx.x;
  const int size = power_of_2(groups);
  for (int i = threadIdx.x; i < size; i += settle_threads)
    values[i] = i < groups ? pack(lows[query * groups + i], 0) : 0;
  sort(Largest{values}, size);
  if (threadIdx.x) return;
  kept_counts[query] = 0;
  const bool sought = norms[query] > 0 && norms[query] < infinity;
  bounds[query].limit = sought ? upper_of(values[k - 1]) : static_cast<float>(infinity);
}

// Puts the lists of a query to those kept before, sorts all, raises the limit, and keeps the first: those that reach
// it.
__global__ void __launch_bounds__(settle_threads)
    tighten(const uint64_t* lists, const int32_t* counts, int splits, int capacity, const KeyTile* tiles, int k,
            QueryBound* bounds, uint64_t* kept, int32_t* kept_counts, int most_kept) {
  uint64_t* const values = reinterpret_cast<uint64_t*>(dynamic_shared());
  __shared__ float low[settle_threads];
  __shared__ int32_t left;
  const int64_t query = blockIdx.x;
  uint64_t* const own = kept + query * most_kept;
  int count = kept_counts[query];
  if (count == overflowed) return;
  for (int i = threadIdx.x; i < count; i += settle_threads) values[i] = own[i];
  for (int split = 0; split < splits; ++split) {
    const int64_t list = query * splits + split;
    const int listed = counts[list], taken = min(listed, capacity);
    for (int i = threadIdx.x; i < taken; i += settle_threads) values[count + i] = lists[list * capacity + i];
    count += taken;
    if (taken == listed) continue;
    if (threadIdx.x == 0) kept_counts[query] = overflowed, bounds[query].limit = static_cast<float>(infinity);
    return;
  }
  const int size = power_of_2(count);
  for (int i = count + threadIdx.x; i < size; i += settle_threads) values[i] = 0;
  if (threadIdx.x == 0) left = 0;
  sort(Largest{values}, size);

  QueryBound bound = bounds[query];
  if (count >= k) {  // k keys are known to reach the least of the k first lower bounds
    const int i = threadIdx.x;
    low[i] = i < k ? upper_of(values[i]) - 2 * slack(bound, tiles[key_of(values[i]) / key_tile])
                   : static_cast<float>(infinity);
    for (int step = settle_threads / 2; step > 0; step /= 2) {
      __syncthreads();
      if (i < step) low[i] = fminf(low[i], low[i + step]);
    }
    __syncthreads();
    bound.limit = fmaxf(bound.limit, low[0]);
  }
  int reaching = 0;
  for (int i = threadIdx.x; i < count; i += settle_threads) reaching += upper_of(values[i]) >= bound.limit;
  atomicAdd(&left, reaching);
  __syncthreads();
  const int remaining = left;
  for (int i = threadIdx.x; i < min(remaining, most_kept); i += settle_threads) own[i] = values[i];
  if (threadIdx.x) return;
  const bool fits = remaining <= most_kept;
  kept_counts[query] = fits ? remaining : overflowed;
  bounds[query].limit = fits ? bound.limit : static_cast<float>(infinity);
}

inline int rescore_room(int k) { return power_of_2(k + 32); }

// Scores the candidates of a query, the highest bounds first, until no other can be among the k best. Queries whose
// candidates are not known are listed instead.
template <class T>
__global__ void __launch_bounds__(settle_threads)
    rescore(const T* queries, const T* keys, Problem problem, int64_t first_query, const double* unit,
            const uint64_t* kept, const int32_t* kept_counts, int most_kept, int room, int32_t* list, int32_t* listed) {
  double* const scores = reinterpret_cast<double*>(dynamic_shared());
  const Ranking ranking{scores, reinterpret_cast<int32_t*>(scores + room)};
  const int64_t query = first_query + blockIdx.x;
  const int k = problem.k, group = threadIdx.x / lanes, lane = threadIdx.x % lanes, batch = room - k;
  const int count = kept_counts[blockIdx.x];
  const double norm = problem.norms.queries[query];
  if (count == overflowed) {
    if (threadIdx.x == 0) list[atomicAdd(listed, 1)] = static_cast<int32_t>(query);
    return;
  }
  const bool zero = !(norm > 0 && norm < infinity);  // then every score is 0, or the input was wrong
  for (int i = threadIdx.x; i < room; i += settle_threads) ranking.set(i, zero ? 0.0 : least, zero ? i : no_key);
  const double scale = 1 / (problem.norms.cosine ? 1.0 : norm * *unit);
  const uint64_t* const candidates = kept + blockIdx.x * static_cast<int64_t>(most_kept);
  int start = 0;
  for (; start < count; start += batch) {
    __syncthreads();
    const double reached = ranking.score[k - 1] * scale;
    if (upper_of(candidates[start]) < reached - 1e-12 * fabs(reached)) break;
    for (int at = 0; at < batch; at += settle_threads / lanes) {
      const int i = at + group;
      const bool present = i < batch && start + i < count;
      const int64_t key = present ? key_of(candidates[start + i]) : 0;
      const double dot = add_lanes(
          present ? lane_sum(queries + query * problem.depth, keys + key * problem.depth, problem.depth, lane) : 0.0);
      if (lane || i >= batch) continue;
      ranking.set(k + i, present ? problem.norms.score(dot, query, key) : least,
                  present ? static_cast<int32_t>(key) : no_key);
    }
    sort(ranking, room);
  }
  __syncthreads();
  write(problem, ranking, query);
  if (threadIdx.x == 0) atomicAdd(problem.rescored, static_cast<unsigned long long>(min(start, count)));
}

}  // namespace ofa::topk_similarity
