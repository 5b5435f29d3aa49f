// csrc/tensor_map.h for the emulator.
#pragma once

#include <wgmma.h>

namespace ofa {

inline Boxes boxes(const void* matrix, int64_t rows, int64_t columns, int64_t stride, int box_rows, int panel) {
  if (reinterpret_cast<uintptr_t>(matrix) % 16 || stride % 8)
    emulator::fail("a matrix that is not aligned to 16 bytes");
  if (columns % 8) emulator::fail("boxes end within 16 bytes, which is not emulated");
  return {static_cast<const uint8_t*>(matrix), rows, columns, stride, box_rows, panel};
}

}  // namespace ofa
