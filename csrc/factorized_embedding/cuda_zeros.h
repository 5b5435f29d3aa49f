// Zeros that blocks write while they do something else, for cuda.cu: each has its share, of which it begins a part in
// every step.
#pragma once

#include "cuda.h"

namespace ofa::factorized_embedding {

constexpr int zero_bytes = 3 << 10;  // of shared memory that are zero, for those stores that read them

struct Zeros {
  uint8_t* data;
  int64_t bytes, share;  // of all blocks, and of each, a multiple of 16
};

class ZeroWriter {
 public:
  // All threads of the block call these: `in_steps` if there will be some, the call in each of them, behind a barrier,
  // and `end`.
  __device__ ZeroWriter(const Zeros& zeros, int64_t block, uint8_t* memory)
      : data_(zeros.data),
        at_(min(zeros.bytes, block * zeros.share)),
        end_(min(zeros.bytes, at_ + zeros.share)),
        memory_(memory) {
#ifdef OFA_BULK_STORES
    if (at_ == end_) return;
    for (int i = threadIdx.x; i < zero_bytes / 4; i += blockDim.x) reinterpret_cast<uint32_t*>(memory)[i] = 0;
    publish_to_bulk_stores();
#endif
  }
  __device__ void in_steps(int64_t steps) { step_ = steps ? round_up(ceil_div(end_ - at_, steps), 16) : 0; }
  __device__ void operator()() { write(min(end_ - end_ % 16, at_ + step_)); }
  __device__ void end() {
    __syncthreads();
    write(end_);
    if (const int64_t i = end_ / 16 * 16 + threadIdx.x; i < end_) data_[i] = 0;
#ifdef OFA_BULK_STORES
    if (threadIdx.x == 0) wait_for_bulk_stores();
#endif
  }

 private:
  __device__ void write(int64_t end) {  // as far as that is a multiple of 16
#ifdef OFA_BULK_STORES
    if (threadIdx.x == 0) {
      for (int64_t i = at_; i + 16 <= end; i += zero_bytes)
        store_bulk(data_ + i, memory_, static_cast<int>(min(static_cast<int64_t>(zero_bytes), (end - i) / 16 * 16)));
      commit_bulk_stores();
    }
#else
    for (int64_t i = at_ + 16 * threadIdx.x; i + 16 <= end; i += 16 * blockDim.x) write_zeros(data_ + i);
#endif
    at_ = max(at_, end);
  }

  uint8_t* const data_;
  int64_t at_, end_, step_ = 0;
  uint8_t* const memory_;
};

}  // namespace ofa::factorized_embedding
