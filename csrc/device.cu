#include <cuda_runtime.h>

#include <stdexcept>

#include "device.h"

namespace ofa {

namespace {
__global__ void nothing() {}
}  // namespace

void check_device() {
  cudaFuncAttributes attributes;  // to know them is to have loaded the kernel
  const cudaError_t error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(nothing));
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next call would report it again
  throw std::runtime_error(cudaGetErrorString(error));
}

}  // namespace ofa
