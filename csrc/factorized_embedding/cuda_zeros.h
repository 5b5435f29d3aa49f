// Zeros that blocks write while they do something else, for cuda.cu: each has its share, of which it begins a part in
// every step.
#pragma once

#include "cuda.h"

namespace ofa::factorized_embedding {

struct Zeros {
  uint8_t* data;
  int64_t bytes, share;  // of all blocks, and of each, a multiple of 16
};

class ZeroWriter {
 public:
  // All threads of the block call these: `in_steps` if there will be some, the call in each of them, and `end`.
  __device__ ZeroWriter(const Zeros& zeros, int64_t block)
      : data_(zeros.data), at_(min(zeros.bytes, block * zeros.share)), end_(min(zeros.bytes, at_ + zeros.share)) {}
  __device__ void in_steps(int64_t steps) { step_ = steps ? round_up(ceil_div(end_ - at_, steps), 16) : 0; }
  __device__ void operator()() { write(min(end_ - end_ % 16, at_ + step_)); }
  __device__ void end() {
    write(end_);
    if (const int64_t i = end_ / 16 * 16 + threadIdx.x; i < end_) data_[i] = 0;
  }

 private:
  __device__ void write(int64_t end) {  // as far as that is a multiple of 16
    for (int64_t i = at_ + 16 * threadIdx.x; i + 16 <= end; i += 16 * blockDim.x) write_zeros(data_ + i);
    at_ = max(at_, end);
  }

  uint8_t* const data_;
  int64_t at_, end_, step_ = 0;
};

}  // namespace ofa::factorized_embedding
