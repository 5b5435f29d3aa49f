// The forward product in half precision, for cuda.cu. A block has 128 tokens, whose coordinates it gathers once and
// keeps, and goes through columns of the result, 128 at a time: of the basis comes what is 112 deep, into one half of a
// ring while the other half is multiplied. Eight warps have 32 columns and 64 tokens each.
#pragma once

#include "factorized_embedding/cuda_product.h"
#include "report.h"

namespace ofa::factorized_embedding {

constexpr int kept_rows = 128, ring_parts = 7, part_depth = 16;  // parts: of one product's depth
constexpr int ring_line = block_columns * 2, ring_bytes = ring_parts * part_depth * ring_line;

struct KeptShape {
  int parts, row_bytes;  // an odd number of chunks, so that eight rows' lie in different banks
  int64_t shared;
  explicit KeptShape(int64_t depth)
      : parts(static_cast<int>(ceil_div<int64_t>(depth, part_depth))),
        row_bytes((2 * parts + 1) * 16),
        shared(static_cast<int64_t>(kept_rows) * row_bytes + 2 * ring_bytes) {}
};

// Blocks in the order of their tokens, `splits` for the same ones, each with `share` times 128 columns. The first block
// looks for wrong ids where there is a report.
template <class T>
__global__ void __launch_bounds__(product_threads, 2)
    look_up_kept(Lines<T> coordinates, Lines<T> basis, Rows<T> out, KeptShape shape, int splits, int share,
                 int64_t* report) {
  constexpr int m_tiles = kept_rows / 2 / 16, n_tiles = warp_columns / 8, line_chunks = ring_line / 16;
  uint8_t* const rows = dynamic_shared();
  uint8_t* const ring = rows + kept_rows * shape.row_bytes;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  int64_t block = blockIdx.x;
  if (report && block-- == 0) {
    const auto wrong = [&](int64_t id) { return id < 0 || id >= coordinates.vocabulary; };
    report_wrong(rows, coordinates.ids, out.count, coordinates.vocabulary, wrong, report);
    return;
  }
  const int64_t first_row = block / splits * kept_rows, first_tile = block % splits * share;
  const int tiles =
      static_cast<int>(min(static_cast<int64_t>(share), ceil_div<int64_t>(out.width, block_columns) - first_tile));
  const int depth = static_cast<int>(basis.count);

  const int own_chunk = thread % line_chunks, own_line = thread / line_chunks;
  constexpr int lines_at_once = product_threads / line_chunks;
  const int ring_place = own_line * ring_line + (own_chunk ^ (own_line & 7)) * 16;
  const auto load_basis = [&](int tile, int part, int half) {
    const int64_t column = (first_tile + tile) * block_columns + own_chunk * per_chunk<T>;
    const int first = part * part_depth + own_line, end = min(shape.parts, part + ring_parts) * part_depth;
    const T* from = basis.data + first * basis.width + column;
    uint8_t* to = ring + half * ring_bytes + ring_place;
#pragma unroll
    for (int i = 0; i < ring_parts; ++i) {
      const int line = first + i * lines_at_once;
      if (line < end)
        copy_async_if(line < depth && column < basis.width, to + i * lines_at_once * ring_line,
                      from + i * lines_at_once * basis.width);
    }
  };
  load_basis(0, 0, 0);
  constexpr int threads_a_row = 8, rows_at_once = product_threads / threads_a_row;
  int32_t line[kept_rows / rows_at_once];
#pragma unroll
  for (int i = 0; i < kept_rows / rows_at_once; ++i)
    line[i] = coordinates.template line<int32_t, per_chunk<T>>(first_row + thread / threads_a_row + i * rows_at_once);
#pragma unroll
  for (int i = 0; i < kept_rows / rows_at_once; ++i) {
    const int row = thread / threads_a_row + i * rows_at_once;
    for (int chunk = thread % threads_a_row; chunk < 2 * shape.parts; chunk += threads_a_row)
      copy_async_if(line[i] >= 0 && chunk * per_chunk<T> < depth, rows + row * shape.row_bytes + chunk * 16,
                    coordinates.data + (static_cast<int64_t>(line[i]) + chunk) * per_chunk<T>);
  }
  commit_copies();

  const int warp_row = warp % 2 * (kept_rows / 2), warp_column = warp / 2 * warp_columns;
  const uint8_t* const left = rows + (warp_row + (lane & 15)) * shape.row_bytes + (lane >> 4) * 16;
  const int right_place = (lane & 15) * ring_line + ((warp_column / 8 + (lane >> 4)) ^ (lane & 7)) * 16;
  int half = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    float total[m_tiles][n_tiles][4] = {};
    for (int part = 0; part < shape.parts; part += ring_parts, half ^= 1) {
      wait_for_copies<0>();
      __syncthreads();  // and everybody has read what the next copies replace
      const bool last = part + ring_parts >= shape.parts;
      if (tile + last < tiles) load_basis(tile + last, last ? 0 : part + ring_parts, half ^ 1);
      commit_copies();
      const int count = min(ring_parts, shape.parts - part);
      const uint8_t* left_part = left + part * part_bytes;
      const uint8_t* right_part = ring + half * ring_bytes + right_place;
      const uint8_t* right_upper = ring + half * ring_bytes + (right_place ^ 32);
#pragma unroll 2
      for (int i = 0; i < count; ++i) {
        uint32_t a[m_tiles][4], b[2][4];
#pragma unroll
        for (int m = 0; m < m_tiles; ++m) load_matrices(a[m], left_part + m * 16 * shape.row_bytes);
        load_matrices_transposed(b[0], right_part);
        load_matrices_transposed(b[1], right_upper);
        left_part += part_bytes, right_part += part_depth * ring_line, right_upper += part_depth * ring_line;
#pragma unroll
        for (int m = 0; m < m_tiles; ++m)
#pragma unroll
          for (int n = 0; n < n_tiles; ++n)
            multiply<T>(total[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
      }
    }
    write_tile<true>(out, total, first_row + warp_row, (first_tile + tile) * block_columns + warp_column, lane);
  }
  wait_for_copies<0>();
}

}  // namespace ofa::factorized_embedding
