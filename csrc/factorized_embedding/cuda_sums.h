// Sums of the gradient's rows over equal ids, for cuda.cu. The sorted tokens are cut into pieces, so that an id that
// occurs a thousand times is not one thread's work: a piece sums its part of each id, in token order, and what belongs
// to an id of several pieces is added afterwards, in their order.
#pragma once

#include "cuda.h"

namespace ofa::factorized_embedding {

constexpr int piece = 32, sum_threads = 128, loaded_at_once = 8;
static_assert(piece % loaded_at_once == 0 && piece <= sum_threads);

struct Groups {  // as group() left them
  const int64_t *order, *first, *distinct, *count;
  // The id, counted from the first one, of the token at `place`, which is one of those that count.
  __device__ int64_t at(int64_t place) const {
    int64_t low = 0, high = *count;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      if (first[middle] <= place)
        low = middle;
      else
        high = middle;
    }
    return low;
  }
};

// sums[id], of ids whose tokens all lie in this piece; partial[2 piece] of one that goes on from the piece before, and
// partial[2 piece + 1] of one that begins here and goes on in the next.
template <class T>
__global__ void __launch_bounds__(sum_threads)
    sum_pieces(const T* grad, int64_t width, Groups groups, float* sums, float* partial) {
  __shared__ int64_t ends[piece], token[piece], first_id;
  const int64_t ids = *groups.count, tokens = groups.first[ids];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * piece, end = min(begin + piece, tokens);
  if (begin >= tokens) return;
  if (threadIdx.x == 0) first_id = groups.at(begin);
  __syncthreads();
  if (threadIdx.x < piece) {
    ends[threadIdx.x] = groups.first[min(first_id + 1 + static_cast<int64_t>(threadIdx.x), ids)];
    token[threadIdx.x] = begin + threadIdx.x < end ? groups.order[begin + threadIdx.x] : 0;
  }
  __syncthreads();
  const int64_t column = static_cast<int64_t>(blockIdx.y) * sum_threads + threadIdx.x;
  if (column >= width) return;
  bool begins = groups.first[first_id] == begin;
  int found = 0;  // ids that have ended
  float sum = 0;
  for (int64_t place = begin; place < end; place += loaded_at_once) {
    float x[loaded_at_once];
#pragma unroll
    for (int i = 0; i < loaded_at_once; ++i)
      x[i] = place + i < end ? to_float(grad[token[place + i - begin] * width + column]) : 0.0f;
#pragma unroll
    for (int i = 0; i < loaded_at_once; ++i) {
      if (place + i >= end) break;
      sum += x[i];
      const bool ended = place + i + 1 == ends[found];
      if (!ended && place + i + 1 < end) continue;
      float* const to = begins && ended ? sums + (first_id + found) * width
                                        : partial + (2 * static_cast<int64_t>(blockIdx.x) + begins) * width;
      to[column] = sum;
      sum = 0;
      begins = true;
      found += ended;
    }
  }
}

// sums[id], of ids of several pieces: by the block of the piece that they begin in.
__global__ void __launch_bounds__(sum_threads)
    add_pieces(const float* partial, int64_t width, Groups groups, float* sums) {
  __shared__ int64_t id;
  const int64_t tokens = groups.first[*groups.count];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * piece, next = begin + piece;
  if (next >= tokens) return;
  if (threadIdx.x == 0) id = groups.at(next - 1);
  __syncthreads();
  const int64_t end = groups.first[id + 1];
  const int64_t column = static_cast<int64_t>(blockIdx.y) * sum_threads + threadIdx.x;
  if (groups.first[id] < begin || end <= next || column >= width) return;
  const int64_t last = (end - 1) / piece;
  float sum = partial[(2 * static_cast<int64_t>(blockIdx.x) + 1) * width + column];
#pragma unroll 8
  for (int64_t other = blockIdx.x + 1ll; other <= last; ++other) sum += partial[2 * other * width + column];
  sums[id * width + column] = sum;
}

}  // namespace ofa::factorized_embedding
