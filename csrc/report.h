// How a kernel tells of a wrong id or label without anybody waiting for it, for *.cu; see ofa_fast/ops/_reports.py.
#pragma once

#include <limits>

#include "cuda.h"

namespace ofa {

// [position, entry, rows] of the first wrong entry, in memory that the host reads whenever it likes. It is empty, and
// may be written to, while the position is negative; the host resets it.
constexpr int report_words = 3;
constexpr int report_bytes = 32 * 8;                                      // of shared memory
constexpr int64_t least_entry = std::numeric_limits<int64_t>::min() + 1;  // one less: an entry that is not written yet

// Called by a whole block: what it finds among `count` entries, of which wrong(i) holds if i is to be reported.
template <class Wrong>
__device__ void report_wrong(uint8_t* memory, const int64_t* entries, int64_t count, int64_t rows, const Wrong& wrong,
                             int64_t* report) {
  auto* const of_warp = reinterpret_cast<int64_t*>(memory);
  const int warps = blockDim.x / 32;
  int64_t first = count;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x)
    if (wrong(entries[i])) first = min(first, i);
  for (int step = 1; step < 32; step *= 2) first = min(first, __shfl_xor_sync(all_threads, first, step));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = first;
  __syncthreads();
  if (threadIdx.x) return;
  for (int w = 0; w < warps; ++w) first = min(first, of_warp[w]);
  auto* const to = static_cast<volatile int64_t*>(report);
  if (first == count || to[0] >= 0) return;
  to[1] = max(entries[first], least_entry);
  to[2] = rows;
  to[0] = first;
}

}  // namespace ofa
