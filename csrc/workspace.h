// Scratch memory handed in by Python, divided by the same code that measures it.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "tensor.h"

namespace ofa {

// Default-constructed it only measures; from a [bytes] uint8 tensor it hands out 64-byte aligned arrays.
class Workspace {
 public:
  Workspace() = default;
  explicit Workspace(const Tensor& tensor)
      : base_(tensor.data<uint8_t>("workspace", {tensor.numel()})), capacity_(tensor.numel()) {}

  int64_t bytes() const { return most_ + alignment; }

  // Where the next array lies; and to go on from there again: what was taken since must not be needed any more.
  int64_t used() const { return used_; }
  Workspace& again_from(int64_t used) {
    used_ = used;
    return *this;
  }

  // `count` elements, once per worker.
  template <class T>
  class Array {
   public:
    Array(Workspace& workspace, int64_t count, int workers = 1)
        : stride_((count * static_cast<int64_t>(sizeof(T)) + alignment - 1) / alignment * alignment),
          data_(workspace.take(stride_ * workers)) {}
    T* of(int worker) const { return reinterpret_cast<T*>(data_ + worker * stride_); }

   private:
    int64_t stride_;
    uint8_t* data_;
  };

 private:
  static constexpr int64_t alignment = 64;

  uint8_t* take(int64_t bytes) {
    const int64_t skip = base_ ? -reinterpret_cast<intptr_t>(base_) & (alignment - 1) : 0, at = used_;
    used_ += bytes;
    if (used_ > most_) most_ = used_;
    if (!base_) return nullptr;
    if (skip + used_ > capacity_) throw std::invalid_argument("workspace is too small");
    return base_ + skip + at;
  }

  uint8_t* base_ = nullptr;
  int64_t capacity_ = 0;
  int64_t used_ = 0, most_ = 0;
};

}  // namespace ofa
