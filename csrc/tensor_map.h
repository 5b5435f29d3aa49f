// How the driver is asked for a matrix whose boxes are copied; its library is found by the runtime, not linked.
#pragma once

#include <cuda_runtime.h>
#include <wgmma.h>

#include <cstdint>
#include <stdexcept>

namespace ofa {

// Boxes of `box_rows` rows of a panel's columns, of a row-major matrix [rows, columns] of 2-byte elements, whose rows
// are `stride` elements apart. The matrix and its rows begin at multiples of 16 bytes.
inline Boxes boxes(const void* matrix, int64_t rows, int64_t columns, int64_t stride, int box_rows, int panel) {
  // The driver's signature with its enumerations as the integers they are: its header's name is that of one here.
  using Encode =
      int (*)(void* map, int type, uint32_t rank, void* address, const uint64_t* sizes, const uint64_t* strides,
              const uint32_t* box, const uint32_t* steps, int interleave, int swizzle, int promotion, int fill);
  constexpr int uint16 = 1, not_interleaved = 0, promoted_to_128 = 2, zeros = 0;
  static const Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
    constexpr unsigned since = 12000;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, since, cudaEnableDefault, &result))
      found = nullptr;
#else
    if (cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result)) found = nullptr;
#endif
    return result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(found) : nullptr;
  }();
  const uint64_t sizes[] = {static_cast<uint64_t>(columns), static_cast<uint64_t>(rows)};
  const uint64_t strides[] = {static_cast<uint64_t>(stride) * 2};
  const uint32_t box[] = {static_cast<uint32_t>(panel), static_cast<uint32_t>(box_rows)}, steps[] = {1, 1};
  const int swizzle = panel == 16 ? 1 : 3;  // of rows of 32 or of 128 bytes
  Boxes result{};
  if (!encode || encode(result.words, uint16, 2, const_cast<void*>(matrix), sizes, strides, box, steps, not_interleaved,
                        swizzle, promoted_to_128, zeros))
    throw std::runtime_error("the driver cannot encode a tensor map");
  return result;
}

}  // namespace ofa
