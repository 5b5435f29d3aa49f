// Scores as the reference has them, for cuda.cu: float64 products summed in its order, over all keys or over a query's
// candidates. Eight threads sum a product, lane j of them elements j, j + 8, ... in turn.
#pragma once

#include "cuda.h"

namespace ofa::topk_similarity {

constexpr int lanes = 8;
constexpr int32_t no_key = 0x7fffffff;
constexpr double least = -infinity;

// sums[r]: what this lane has of the product of `row` and rows[r]. Steps are loaded together, as each alone would wait
// for memory; zeros behind the end change nothing, since no sum is -0.
template <int count, class T>
__device__ void lane_sums(double (&sums)[count], const T* row, const T* const (&rows)[count], int64_t depth, int lane) {
  constexpr int steps = count < 4 ? 8 : 4, columns = steps * lanes;
  const T* at[count];
  row += lane;
#pragma unroll
  for (int r = 0; r < count; ++r) sums[r] = 0, at[r] = rows[r] + lane;
  for (; depth > 0; depth -= columns) {
    const int present = static_cast<int>(min(depth, static_cast<int64_t>(columns))) - lane;
    T left[steps], right[count][steps];
#pragma unroll
    for (int s = 0; s < steps; ++s) {
      left[s] = s * lanes < present ? row[s * lanes] : T{};
#pragma unroll
      for (int r = 0; r < count; ++r) right[r][s] = s * lanes < present ? at[r][s * lanes] : T{};
    }
#pragma unroll
    for (int s = 0; s < steps; ++s)
#pragma unroll
      for (int r = 0; r < count; ++r)  // exact products, so that a fused addition changes nothing
        sums[r] = fma(static_cast<double>(to_float(left[s])), static_cast<double>(to_float(right[r][s])), sums[r]);
    row += columns;
#pragma unroll
    for (int r = 0; r < count; ++r) at[r] += columns;
  }
}

// Lane j + 4 to lane j, j + 2 to j, 1 to 0; an addition's operands may change places.
__device__ inline double add_lanes(double sum) {
  for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(all_threads, sum, step);
  return sum;
}

// Both norms' product as the reference has it, or 1 for plain products; 0 where the score is 0 by definition.
struct Norms {
  const double *queries, *keys;
  bool cosine;
  __device__ double product(int64_t query, int64_t key) const { return cosine ? queries[query] * keys[key] : 1.0; }
  static __device__ double score(double dot, double product) { return product > 0 ? dot / product : 0.0; }
};

// norms[row], the largest of them as bits, which order as positive numbers do, and the first row that is not finite,
// counted down from the largest uint64: squares of finite float32 numbers are finite in float64.
template <class T>
__global__ void measure(const T* rows, int64_t count, int64_t depth, double* norms, unsigned long long* largest,
                        unsigned long long* first_bad) {
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / lanes;
  const int lane = threadIdx.x % lanes;
  const T* const at = rows + (row < count ? row : 0) * depth;
  double sums[1];
  lane_sums(sums, at, {at}, row < count ? depth : 0, lane);
  const double squared = add_lanes(sums[0]);
  if (lane || row >= count) return;
  const double norm = sqrt(squared);
  norms[row] = norm;
  if (norm < infinity)
    atomicMax(largest, static_cast<unsigned long long>(__double_as_longlong(norm)));
  else
    atomicMin(first_bad, static_cast<unsigned long long>(row));
}

// Scores with their keys in shared memory, which a block sorts: descending, equal scores by ascending keys.
struct Ranking {
  double* score;
  int32_t* key;
  __device__ void set(int at, double new_score, int32_t new_key) const {
    score[at] = new_score;
    key[at] = new_key;
  }
  __device__ bool before(int a, int b) const {
    return score[a] > score[b] || (score[a] == score[b] && key[a] < key[b]);
  }
  __device__ void swap(int a, int b) const {
    const double other_score = score[a];
    const int32_t other_key = key[a];
    set(a, score[b], key[b]);
    set(b, other_score, other_key);
  }
};

// A bitonic sort of `size` entries, a power of two, by all threads of a block.
template <class Entries>
__device__ void sort(const Entries& entries, int size) {
  __syncthreads();
  for (int width = 2; width <= size; width *= 2)
    for (int step = width / 2; step > 0; step /= 2) {
      for (int i = threadIdx.x; i < size / 2; i += blockDim.x) {
        const int low = 2 * i - (i & (step - 1)), high = low + step;
        const bool ascending = low & width;
        if (ascending ? entries.before(low, high) : entries.before(high, low)) entries.swap(low, high);
      }
      __syncthreads();
    }
}

struct Problem {
  int64_t queries, keys, depth;
  int k;
  Norms norms;
  float* scores;                             // [Q, k]
  long long* indices;                        // [Q, k]
  unsigned long long *undecided, *rescored;  // counts
};

__device__ inline void write(const Problem& problem, const Ranking& ranking, int64_t query) {
  for (int i = threadIdx.x; i < problem.k; i += blockDim.x) {
    problem.scores[query * problem.k + i] = static_cast<float>(ranking.score[i]);
    // no_key only where numbers are not finite: an index stays one all the same.
    problem.indices[query * problem.k + i] = min(static_cast<long long>(ranking.key[i]), problem.keys - 1ll);
  }
}

constexpr int scan_queries = 4, scan_threads = 256, scan_groups = scan_threads / lanes;
constexpr int scan_keys = 256;  // after which rankings are looked at

// Room of a ranking: k and all keys of a step.
inline int scan_room(int64_t k) { return power_of_2(static_cast<int>(k) + scan_keys); }
inline int64_t scan_shared(int room) {
  return scan_queries * room * static_cast<int64_t>(sizeof(double) + sizeof(int32_t));
}

// The k best of all keys, for the queries listed, or all where there is no list. A block takes four at a time, so that
// a key's row comes out of the cache for all but the first.
template <class T>
__global__ void __launch_bounds__(scan_threads, 3)
    scan(const T* queries, const T* keys, Problem problem, const int32_t* list, const int32_t* listed, int room) {
  double* const scores = reinterpret_cast<double*>(dynamic_shared());
  int32_t* const found_keys = reinterpret_cast<int32_t*>(scores + scan_queries * room);
  __shared__ int found[scan_queries];  // since the last sort
  __shared__ double threshold[scan_queries];
  const int group = threadIdx.x / lanes, lane = threadIdx.x % lanes, k = problem.k;
  const int64_t count = list ? *listed : problem.queries;
  const auto ranking = [&](int i) { return Ranking{scores + i * room, found_keys + i * room}; };

  for (int64_t begin = static_cast<int64_t>(blockIdx.x) * scan_queries; begin < count;
       begin += static_cast<int64_t>(gridDim.x) * scan_queries) {
    int64_t query[scan_queries];
    const T* rows[scan_queries];
    for (int i = 0; i < scan_queries; ++i) {
      const int64_t at = begin + i < count ? begin + i : begin;
      query[i] = list ? list[at] : at;
      rows[i] = queries + query[i] * problem.depth;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < scan_queries * room; i += blockDim.x) ranking(0).set(i, least, no_key);
    if (threadIdx.x < scan_queries) found[threadIdx.x] = 0, threshold[threadIdx.x] = least;
    __syncthreads();

    for (int64_t first = 0; first < problem.keys; first += scan_keys) {
      for (int64_t key = first + group; key < first + scan_keys; key += scan_groups) {
        const bool present = key < problem.keys;
        double sums[scan_queries], mine = 0;
        lane_sums(sums, keys + (present ? key : 0) * problem.depth, rows, present ? problem.depth : 0, lane);
        for (int i = 0; i < scan_queries; ++i) {
          const double dot = add_lanes(sums[i]);
          if (lane == i) mine = dot;
        }
        if (!present || lane >= scan_queries || begin + lane >= count) continue;
        const int64_t own = list ? list[begin + lane] : begin + lane;
        const double score = Norms::score(mine, problem.norms.product(own, key));
        // A later key does not precede an equal one.
        if (score > threshold[lane])
          ranking(lane).set(k + atomicAdd(&found[lane], 1), score, static_cast<int32_t>(key));
      }
      __syncthreads();
      bool full[scan_queries];
      for (int i = 0; i < scan_queries; ++i)
        full[i] = first + scan_keys >= problem.keys || k + found[i] + scan_keys > room;
      __syncthreads();  // before anybody adds to `found`
      for (int i = 0; i < scan_queries; ++i) {
        if (!full[i]) continue;
        sort(ranking(i), room);
        for (int at = k + threadIdx.x; at < room; at += blockDim.x) ranking(i).set(at, least, no_key);
        if (threadIdx.x == 0) threshold[i] = ranking(i).score[k - 1], found[i] = 0;
        __syncthreads();
      }
    }
    for (int i = 0; i < scan_queries && begin + i < count; ++i) write(problem, ranking(i), query[i]);
    if (threadIdx.x == 0) {
      const int64_t left = count - begin, taken = left < scan_queries ? left : scan_queries;
      atomicAdd(problem.rescored, static_cast<unsigned long long>(taken * problem.keys));
      if (list) atomicAdd(problem.undecided, static_cast<unsigned long long>(taken));
    }
  }
}

}  // namespace ofa::topk_similarity
