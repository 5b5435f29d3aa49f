// How a kernel is started. A test replaces this header by one that runs kernels on CPUs.
#pragma once

#include <cuda_runtime.h>

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

// Lets a kernel have `shared` bytes beside its static shared memory; without asking, both together are at most 48 KiB.
inline cudaError_t allow_shared(const void* kernel, int64_t shared) {
  constexpr int64_t granted = 48 << 10;
  cudaFuncAttributes own;
  cudaError_t error = cudaFuncGetAttributes(&own, kernel);
  if (error != cudaSuccess || shared + static_cast<int64_t>(own.sharedSizeBytes) <= granted) return error;
  // All that the device has, or a thread that launches the kernel with less would take it from the others.
  int device = 0, most = 0;
  if ((error = cudaGetDevice(&device)) != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              most - static_cast<int>(own.sharedSizeBytes));
}

// `shared`: bytes of dynamic shared memory.
template <class... Parameters, class... Arguments>
cudaError_t start(void (*kernel)(Parameters...), dim3 grid, int threads, int64_t shared, cudaStream_t stream,
                  Arguments... arguments) {
  if (shared) {
    const cudaError_t error = allow_shared(reinterpret_cast<const void*>(kernel), shared);
    if (error != cudaSuccess) return error;
  }
  std::tuple<Parameters...> values(arguments...);
  return start(kernel, grid, threads, shared, stream, values, std::index_sequence_for<Parameters...>());
}

}  // namespace ofa
