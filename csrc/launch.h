// How a kernel is started. A test replaces this header by one that runs kernels on CPUs.
#pragma once

#include <cuda_runtime.h>

#include <set>
#include <tuple>
#include <utility>

namespace ofa {

constexpr int32_t kernel_device = 2;  // DLPack's word for where kernels and their tensors are

template <class... Parameters, size_t... i>
cudaError_t start(void (*kernel)(Parameters...), dim3 grid, int threads, int64_t shared, cudaStream_t stream,
                  std::tuple<Parameters...>& values, std::index_sequence<i...>) {
  void* pointers[] = {&std::get<i>(values)...};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, dim3(threads), pointers, shared, stream);
}

// Lets a kernel have all the shared memory that a block can beside its static one; without asking, both together are at
// most 48 KiB. Asked once, as every question takes a good part of the time that a launch does.
inline cudaError_t allow_shared(const void* kernel) {
  static thread_local std::set<std::pair<int, const void*>> allowed;
  int device = 0, most = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess || allowed.count({device, kernel})) return error;
  cudaFuncAttributes own;
  if ((error = cudaFuncGetAttributes(&own, kernel)) != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               most - static_cast<int>(own.sharedSizeBytes));
  if (error == cudaSuccess) allowed.insert({device, kernel});
  return error;
}

// `shared`: bytes of dynamic shared memory.
template <class... Parameters, class... Arguments>
cudaError_t start(void (*kernel)(Parameters...), dim3 grid, int threads, int64_t shared, cudaStream_t stream,
                  Arguments... arguments) {
  if (shared) {
    const cudaError_t error = allow_shared(reinterpret_cast<const void*>(kernel));
    if (error != cudaSuccess) return error;
  }
  std::tuple<Parameters...> values(arguments...);
  return start(kernel, grid, threads, shared, stream, values, std::index_sequence_for<Parameters...>());
}

}  // namespace ofa
