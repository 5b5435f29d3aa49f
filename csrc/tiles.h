// Operands of tensor cores in shared memory, for *.cu: tiles whose rows are 64 bytes of a matrix row, as four chunks of
// 16 bytes. Chunks change places by row, so that eight rows of one chunk lie in different banks.
#pragma once

#include <ptx.h>

namespace ofa {

constexpr int tile_row = 64;  // bytes: two products deep
constexpr int chunks = 4;     // of a row

__device__ inline int tile_offset(int row, int chunk) { return row * tile_row + ((chunk ^ (row >> 1 & 3)) << 4); }

// The left operand of a product: 16 rows from `row` on, bytes 32 half to 32 half + 31 of each.
__device__ inline void load_left(uint32_t (&words)[4], const uint8_t* tile, int row, int half, int lane) {
  load_matrices(words, tile + tile_offset(row + (lane & 15), 2 * half + (lane >> 4)));
}

// The right operands of two products, words 0 and 1 of the first and 2 and 3 of the second: 8 rows each.
__device__ inline void load_right(uint32_t (&words)[4], const uint8_t* tile, int row, int half, int lane) {
  load_matrices(words, tile + tile_offset(row + (lane & 7) + (lane >> 4 << 3), 2 * half + (lane >> 3 & 1)));
}

}  // namespace ofa
