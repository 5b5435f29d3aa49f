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

// `shared`: bytes of dynamic shared memory.
template <class... Parameters, class... Arguments>
cudaError_t start(void (*kernel)(Parameters...), dim3 grid, int threads, int64_t shared, cudaStream_t stream,
                  Arguments... arguments) {
  constexpr int64_t granted = 48 << 10;  // without asking
  if (shared > granted) {
    const cudaError_t error = cudaFuncSetAttribute(
        reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  std::tuple<Parameters...> values(arguments...);
  return start(kernel, grid, threads, shared, stream, values, std::index_sequence_for<Parameters...>());
}

}  // namespace ofa
