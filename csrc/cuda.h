// What the host side of every CUDA op shares: checked calls, the current device, launches.
#pragma once

#include <launch.h>  // these two in angle brackets, so that tests can put their own in front
#include <ptx.h>

#include <stdexcept>
#include <string>

#include "tensor.h"

namespace ofa {

constexpr double infinity = __builtin_huge_val();
constexpr unsigned all_threads = 0xffffffff;  // of a warp

inline void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next call would report it again
  throw std::runtime_error(std::string(call) + " failed: " + cudaGetErrorString(error));
}

inline int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

inline int processors_of(int device) { return attribute(cudaDevAttrMultiProcessorCount, device); }

// Makes a tensor's device the current one, as long as it lives, and launches kernels on its current stream.
class Queue {
 public:
  explicit Queue(const Tensor& tensor) : device_(tensor.device()), stream_(static_cast<cudaStream_t>(tensor.stream())) {
    if (tensor.device_type() != kernel_device) throw std::invalid_argument("tensors must be on a CUDA device");
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device_ != before_) check(cudaSetDevice(device_), "cudaSetDevice");
  }
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;
  ~Queue() {
    if (device_ != before_) static_cast<void>(cudaSetDevice(before_));  // a destructor has nobody to tell
  }

  // As Tensor::data, of tensors on this device.
  template <class T>
  T* data(const Tensor& tensor, const char* argument, std::initializer_list<int64_t> shape) const {
    check_device(tensor, argument);
    return tensor.data<T>(argument, shape);
  }
  void* data(const Tensor& tensor, const char* argument, std::initializer_list<int64_t> shape) const {
    check_device(tensor, argument);
    return tensor.data(argument, shape);
  }

  // A grid without blocks has nothing to do.
  template <class... Parameters, class... Arguments>
  void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, int threads, int64_t shared,
              Arguments... arguments) const {
    if (!grid.x || !grid.y || !grid.z) return;
    check(start(kernel, grid, threads, shared, stream_, arguments...), name);
  }

  void fill(void* data, int byte, int64_t bytes) const {
    if (bytes) check(cudaMemsetAsync(data, byte, bytes, stream_), "cudaMemsetAsync");
  }

  int shared_memory() const { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device_); }  // of a block
  int processors() const { return processors_of(device_); }

  // Registers of a thread, which tell what a kernel was compiled for where it has code for some GPUs only.
  template <class... Parameters>
  static int registers(void (*kernel)(Parameters...)) {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)), "cudaFuncGetAttributes");
    return attributes.numRegs;
  }

 private:
  void check_device(const Tensor& tensor, const char* argument) const {
    if (tensor.device_type() != kernel_device || tensor.device() != device_)
      throw std::invalid_argument(std::string(argument) + " must be on the CUDA device of the other tensors");
  }

  int device_, before_ = 0;
  cudaStream_t stream_;
};

// Calls function(T{}) with the element type of the kernels' dtypes.
template <class Function>
void with_element(Dtype dtype, const char* argument, Function function) {
  if (dtype == Dtype::f32)
    function(float{});
  else if (dtype == Dtype::f16)
    function(Half{});
  else if (dtype == Dtype::bf16)
    function(Bfloat{});
  else
    throw std::invalid_argument(std::string(argument) + " must be float32, float16 or bfloat16, got " + name(dtype));
}

template <class T>
constexpr __host__ __device__ T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

inline __host__ __device__ int64_t round_up(int64_t count, int64_t multiple) {
  return ceil_div(count, multiple) * multiple;
}

inline __host__ __device__ int power_of_2(int count) {
  int size = 1;
  while (size < count) size *= 2;
  return size;
}

// The sum of the values of a warp's lanes up to this one.
__device__ inline int32_t sum_through(int32_t value, int lane) {
  for (int step = 1; step < 32; step *= 2) {
    const int32_t before = __shfl_up_sync(all_threads, value, step);
    if (lane >= step) value += before;
  }
  return value;
}

}  // namespace ofa
