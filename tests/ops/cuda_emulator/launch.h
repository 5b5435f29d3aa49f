// csrc/launch.h for the emulator.
#pragma once

#include <cuda_runtime.h>

#include <tuple>

namespace ofa {

constexpr int32_t kernel_device = 1;  // DLPack's word for CPUs

template <class... Parameters, class... Arguments>
cudaError_t start(void (*kernel)(Parameters...), dim3 grid, int threads, int64_t shared, cudaStream_t,
                  Arguments... arguments) {
  if (shared > emulated_shared_memory || grid.y > 65535 || grid.z > 65535 || threads > 1024)
    return cudaErrorInvalidValue;
  std::tuple<Parameters...> values(arguments...);
  emulator::run(grid, threads, shared, [&] { std::apply(kernel, values); });
  return cudaSuccess;
}

}  // namespace ofa
