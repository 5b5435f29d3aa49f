// What becomes of the screen's bounds, for cuda.cu: limits, the candidates that are left, and the k best of those. A
// warp for each query of a slab. Nothing is sorted: the k-th largest of a query's bounds is found by halving the range
// it lies in, and what is scored, no more than some dozens, is put in its place by counting what comes before it.
#pragma once

#include <algorithm>

#include "topk_similarity/cuda_screen.h"

namespace ofa::topk_similarity {

constexpr int settle_threads = 128, most_neighbors = 128;
constexpr int32_t overflowed = -1;  // instead of a number of candidates: some may be missing

// The k-th largest of `count` numbers in shared memory, at least k, by a warp.
__device__ inline uint32_t kth_largest(const uint32_t* values, int count, int k, int lane) {
  uint32_t low = ~0u, high = 0;  // between which it lies
  for (int i = lane; i < count; i += 32) low = min(low, values[i]), high = max(high, values[i]);
  low = __reduce_min_sync(all_threads, low);
  high = __reduce_max_sync(all_threads, high);
  for (int reaching = count; low < high && reaching != k;) {
    const uint32_t middle = low + (high - low) / 2 + 1;
    unsigned own = 0;
    for (int i = lane; i < count; i += 32) own += values[i] >= middle;
    reaching = static_cast<int>(__reduce_add_sync(all_threads, own));
    if (reaching >= k)
      low = middle;
    else
      high = middle - 1;
  }
  uint32_t least_reaching = ~0u;
  for (int i = lane; i < count; i += 32)
    if (values[i] >= low) least_reaching = min(least_reaching, values[i]);
  return __reduce_min_sync(all_threads, least_reaching);
}

// The first limit: k keys are known to reach the k-th largest low. Queries that are zero or not finite look at no key.
__global__ void __launch_bounds__(settle_threads)
    first_limit(const float* lows, int groups, const double* norms, int64_t count, int k, QueryBound* bounds,
                int32_t* kept_counts) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int64_t query = static_cast<int64_t>(blockIdx.x) * warps + warp;
  if (query >= count) return;
  uint32_t* const values = reinterpret_cast<uint32_t*>(dynamic_shared()) + warp * groups;
  for (int i = lane; i < groups; i += 32) values[i] = static_cast<uint32_t>(pack(lows[query * groups + i], 0) >> 32);
  __syncwarp();
  const uint32_t reached = kth_largest(values, groups, k, lane);
  if (lane) return;
  kept_counts[query] = 0;
  const bool sought = norms[query] > 0 && norms[query] < infinity;
  bounds[query].limit = sought ? upper_of(static_cast<uint64_t>(reached) << 32) : static_cast<float>(infinity);
}

// Candidates of a slab's queries: [queries][splits][capacity] that the screen listed, and how many they are, maybe more
// than there is room for; [queries][most_kept] of the rounds before, and how many, or `overflowed`.
struct Found {
  const uint64_t* lists;
  const int32_t* counts;
  int splits, capacity;
  uint64_t* kept;
  int32_t* kept_counts;
  int most_kept;
};

// Where a query's lists end if they lie one behind the other, `kept` candidates in front: ends[0] = kept to
// ends[splits], by a warp. False if a list has lost candidates.
__device__ inline bool find_ends(const Found& found, int64_t query, int kept, int32_t* ends, int lane) {
  if (lane == 0) ends[0] = kept;
  bool lost = false;
  for (int split = 0; split < found.splits; split += 32) {
    const int own = split + lane;
    const int listed = own < found.splits ? found.counts[query * found.splits + own] : 0;
    lost |= listed > found.capacity;
    const int through = sum_through(min(listed, found.capacity), lane);
    __syncwarp();
    if (own < found.splits) ends[1 + own] = ends[split] + through;
  }
  return __ballot_sync(all_threads, lost) == 0;
}

struct Candidates {  // of a query
  const uint64_t *kept, *lists;
  const int32_t* ends;
  int count, capacity;

  // visit(i, candidate) for all of them, 32 at a time, and with zeros behind the last; by a warp. All that precede
  // these 32 have been read then, and may be written over.
  template <class Visit>
  __device__ void each(int lane, Visit visit) const {
    constexpr int at_once = 4;
    for (int first = 0, list = 0; first < count; first += 32 * at_once) {
      uint64_t some[at_once];
#pragma unroll
      for (int j = 0; j < at_once; ++j) {
        const int i = first + 32 * j + lane;
        some[j] = 0;
        if (i >= count) continue;
        while (i >= ends[list]) ++list;
        some[j] = list ? lists[static_cast<int64_t>(list - 1) * capacity + i - ends[list - 1]] : kept[i];
      }
#pragma unroll
      for (int j = 0; j < at_once; ++j) visit(first + 32 * j + lane, some[j]);
    }
  }
};

// Adds up to 32 entries, of the threads that have one, to `count` others: this thread's place.
__device__ inline int append(bool mine, int& count, int lane) {
  const unsigned all = __ballot_sync(all_threads, mine);
  const int at = count + __popc(all & ((1u << lane) - 1));
  count += __popc(all);
  return at;
}

// Scores of entries [begin, end) of a ranking, by a warp: two keys at a time for each eight threads.
template <class T>
__device__ void score(const T* queries, const T* keys, const Problem& problem, int64_t query, const Ranking& ranking,
                      int begin, int end, int lane) {
  constexpr int groups = 32 / lanes;
  const int group = lane / lanes, own = lane % lanes;
  const T* const row = queries + query * problem.depth;
  if (lane == 0 && begin < end) atomicAdd(problem.rescored, static_cast<unsigned long long>(end - begin));
  __syncwarp();
  for (; begin < end; begin += 2 * groups) {
    const int first = begin + group, second = first + groups, mine = own ? second : first;
    const int64_t a = ranking.key[min(first, end - 1)], b = ranking.key[min(second, end - 1)];
    const double norms = problem.norms.product(query, own ? b : a);
    double sums[2];
    lane_sums(sums, row, {keys + a * problem.depth, keys + b * problem.depth}, problem.depth, own);
    const double of_a = add_lanes(sums[0]), of_b = add_lanes(sums[1]);
    if (own < 2 && mine < end) {
      const double score = Norms::score(own ? of_b : of_a, norms);
      ranking.score[mine] = score == score ? score : least;  // or the order would not be one
    }
  }
  __syncwarp();
}

__device__ inline int place(const Ranking& ranking, int count, int entry) {
  int before = 0;
  for (int i = 0; i < count; ++i) before += ranking.before(i, entry);
  return before;
}

// Shared memory of a warp that settles a query: a score for all, where lists end, then bounds or, later, scores.
struct SettleRoom {
  int ends, bytes;
  SettleRoom(int splits, int capacity, int most_kept)
      : ends(ceil_div(splits + 1, 2) * 2),
        bytes(ceil_div(8 + 4 * ends + std::max(4 * (most_kept + splits * capacity), 12 * most_kept), 16) * 16) {}
};

// Scores those candidates of each query that have the k highest bounds. The k-th best score is the new limit: no key
// below it is among the k best, and none of those scored has a bound below it. The candidates that reach it are kept;
// or, in the last round, scored, and the k best written. Queries whose candidates are not known are listed then.
template <class T>
__global__ void __launch_bounds__(settle_threads, 6)
    settle_queries(const T* queries, const T* keys, Problem problem, int64_t first_query, int64_t count,
                   const double* unit, Found found, SettleRoom room, bool last, QueryBound* bounds, int32_t* overflows,
                   int32_t* overflow_count) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, k = problem.k, most = found.most_kept;
  const int64_t in_slab = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + warp, query = first_query + in_slab;
  if (in_slab >= count) return;
  double* const kth = reinterpret_cast<double*>(dynamic_shared() + warp * room.bytes);
  int32_t* const ends = reinterpret_cast<int32_t*>(kth + 1);
  uint32_t* const uppers = reinterpret_cast<uint32_t*>(ends + room.ends);
  double* const scores = reinterpret_cast<double*>(uppers);
  const Ranking ranking{scores, reinterpret_cast<int32_t*>(scores + most)};
  uint64_t* const kept = found.kept + in_slab * most;
  const auto give_up = [&] {
    if (lane) return;
    found.kept_counts[in_slab] = overflowed;
    bounds[in_slab].limit = static_cast<float>(infinity);
    if (last) overflows[atomicAdd(overflow_count, 1)] = static_cast<int32_t>(query);
  };

  const int before = found.kept_counts[in_slab];
  if (before == overflowed || !find_ends(found, in_slab, before, ends, lane)) return give_up();
  __syncwarp();
  const Candidates candidates{kept, found.lists + in_slab * found.splits * found.capacity, ends, ends[found.splits],
                              found.capacity};
  candidates.each(lane, [&](int i, uint64_t candidate) {
    if (candidate) uppers[i] = static_cast<uint32_t>(candidate >> 32);
  });
  __syncwarp();
  const uint32_t best = candidates.count > k ? kth_largest(uppers, candidates.count, k, lane) : 0;
  __syncwarp();  // scores take the bounds' place

  int scored = 0;
  const auto choose = [&](bool mine, uint64_t candidate) {
    const int at = append(mine, scored, lane);
    if (mine && at < most) ranking.key[at] = key_of(candidate);
  };
  candidates.each(lane, [&](int, uint64_t candidate) { choose(candidate && candidate >> 32 >= best, candidate); });
  if (scored > most) return give_up();  // they reach any limit
  score(queries, keys, problem, query, ranking, 0, scored, lane);

  const double norm = problem.norms.queries[query];
  const bool sought = norm > 0 && norm < infinity;  // else every score is 0, or the input was wrong
  float limit = bounds[in_slab].limit;
  if (scored >= k) {
    for (int i = lane; i < scored; i += 32)
      if (place(ranking, scored, i) == k - 1) *kth = ranking.score[i];
    __syncwarp();
    const double reached = *kth / (problem.norms.cosine ? 1.0 : norm * *unit);
    limit = fmaxf(limit, __double2float_rd(reached - 1e-12 * fabs(reached)));
  }

  if (!last) {
    int left = 0;
    candidates.each(lane, [&](int, uint64_t candidate) {
      const bool mine = candidate && upper_of(candidate) >= limit;
      const int at = append(mine, left, lane);
      if (mine && at < most) kept[at] = candidate;
    });
    if (left > most) return give_up();
    if (lane == 0) found.kept_counts[in_slab] = left, bounds[in_slab].limit = limit;
    return;
  }
  const int first = scored;
  candidates.each(lane, [&](int, uint64_t candidate) {
    choose(candidate && candidate >> 32 < best && upper_of(candidate) >= limit, candidate);
  });
  if (scored > most) return give_up();
  score(queries, keys, problem, query, ranking, first, scored, lane);
  for (int i = lane; i < scored; i += 32) {
    const int at = place(ranking, scored, i);
    if (at >= k) continue;
    problem.scores[query * k + at] = static_cast<float>(ranking.score[i]);
    problem.indices[query * k + at] = ranking.key[i];
  }
  // Fewer than k only where nothing was sought or numbers are not finite: an index stays one all the same.
  for (int i = scored + lane; i < k; i += 32) {
    problem.scores[query * k + i] = sought ? static_cast<float>(least) : 0.0f;
    problem.indices[query * k + i] = sought ? problem.keys - 1 : i;
  }
}

}  // namespace ofa::topk_similarity
