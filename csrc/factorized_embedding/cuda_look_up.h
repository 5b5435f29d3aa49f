// The forward product in half precision, for cuda.cu. A block has 128 tokens, whose coordinates it gathers once and
// keeps, and goes through columns of the result, 128 at a time: of the basis comes what is 112 deep, into one half of a
// ring while the other half is multiplied. Eight warps have 32 columns and 64 tokens each, or two warpgroups, where the
// GPU has them, 64 tokens.
#pragma once

#include <cstdlib>

#include "factorized_embedding/cuda_product_wgmma.h"
#include "report.h"

namespace ofa::factorized_embedding {

constexpr int kept_rows = 128, ring_parts = 7, part_depth = 16;  // parts: of one product's depth
constexpr int ring_line = block_columns * 2, ring_bytes = ring_parts * part_depth * ring_line;
constexpr int kept_part = kept_rows * part_bytes, ring_panel = ring_bytes / 2;  // of which warpgroups' operands consist

struct KeptShape {
  int parts, row_bytes;  // an odd number of chunks, so that eight rows' lie in different banks
  int64_t shared;
  bool warpgroups = !std::getenv("OFA_NO_WGMMA");  // multiply, where the GPU has them
  explicit KeptShape(int64_t depth)
      : parts(static_cast<int>(ceil_div<int64_t>(depth, part_depth))),
        row_bytes((2 * parts + 1) * 16),
        shared(static_cast<int64_t>(kept_rows) * row_bytes + 2 * ring_bytes) {}
};

#ifdef OFA_WARPGROUPS
// Operands of a product: a part of the rows, swizzled by 32 bytes, and one of the ring, by 128 and in two panels.
__device__ inline uint64_t kept_at(const uint8_t* memory) {
  constexpr uint64_t eight = 8 * part_bytes / 16, swizzled_by_32 = 3;
  return shared_address(memory) >> 4 | eight << 32 | swizzled_by_32 << 62;
}
__device__ inline uint64_t ring_at(const uint8_t* memory) {
  constexpr uint64_t eight = 8 * step_row / 16, panel = ring_panel / 16, swizzled_by_128 = 1;
  return shared_address(memory) >> 4 | panel << 16 | eight << 32 | swizzled_by_128 << 62;
}
#endif

// Tokens from first_row on, and `tiles` times 128 columns from first_column on.
template <class T, bool warpgroups>
__device__ void look_up_tiles(uint8_t* memory, const Lines<T>& coordinates, const Lines<T>& basis, const Rows<T>& out,
                              const KeptShape& shape, int64_t first_row, int64_t first_column, int tiles) {
  constexpr int line_chunks = ring_line / 16;
  uint8_t* const rows = memory;
  uint8_t* const ring = rows + (warpgroups ? shape.parts * kept_part : kept_rows * shape.row_bytes);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int depth = static_cast<int>(basis.count);

  const int own_chunk = thread % line_chunks, own_line = thread / line_chunks;
  constexpr int lines_at_once = product_threads / line_chunks;
  constexpr int line_bytes = warpgroups ? step_row : ring_line, panel_chunks = line_bytes / 16;
  const int ring_place =
      own_chunk / panel_chunks * ring_panel + own_line * line_bytes + (own_chunk % panel_chunks ^ (own_line & 7)) * 16;
  const auto load_basis = [&](int tile, int part, int half) {
    const int64_t column = first_column + tile * block_columns + own_chunk * per_chunk<T>;
    const int first = part * part_depth + own_line, end = min(shape.parts, part + ring_parts) * part_depth;
    const T* from = basis.data + first * basis.width + column;
    uint8_t* to = ring + half * ring_bytes + ring_place;
#pragma unroll
    for (int i = 0; i < ring_parts; ++i) {
      const int line = first + i * lines_at_once;
      if (line < end)
        copy_async_if(line < depth && column < basis.width, to + i * lines_at_once * line_bytes,
                      from + i * lines_at_once * basis.width);
    }
  };
  // Warpgroups read parts of 32 bytes a row, whose halves change places in every other four rows.
  const auto kept_place = [&](int row, int chunk) {
    return warpgroups ? chunk / 2 * kept_part + row * part_bytes + ((chunk ^ row >> 2) & 1) * 16
                      : row * shape.row_bytes + chunk * 16;
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
      copy_async_if(line[i] >= 0 && chunk * per_chunk<T> < depth, rows + kept_place(row, chunk),
                    coordinates.data + (static_cast<int64_t>(line[i]) + chunk) * per_chunk<T>);
  }
  commit_copies();

  // What the next copies go to was read, and what is read next has come; returns how many parts that is.
  int half = 0;
  const auto next_parts = [&](int tile, int part) {
    wait_for_copies<0>();
#ifdef OFA_WARPGROUPS
    if constexpr (warpgroups) {
      wait_for_products<0>();
      publish_to_products();
    }
#endif
    __syncthreads();
    const bool last = part + ring_parts >= shape.parts;
    if (tile + last < tiles) load_basis(tile + last, last ? 0 : part + ring_parts, half ^ 1);
    commit_copies();
    return min(ring_parts, shape.parts - part);
  };
#ifdef OFA_WARPGROUPS
  if constexpr (warpgroups) {
    const uint8_t* const left = rows + thread / 128 * (kept_part / 2);
    for (int tile = 0; tile < tiles; ++tile) {
      float total[64] = {};
      for (int part = 0; part < shape.parts; part += ring_parts, half ^= 1) {
        const int count = next_parts(tile, part);
#  pragma unroll 1
        for (int i = 0; i < count; ++i) {
          begin_products();
          multiply_tiles<T, false, true>(total, kept_at(left + (part + i) * kept_part),
                                         ring_at(ring + half * ring_bytes + i * part_depth * step_row));
        }
        commit_products();
      }
      wait_for_products<0>();
      settle(total);
      write_tiles<true>(out, total, first_row + thread / 128 * 64, first_column + tile * block_columns);
    }
    wait_for_copies<0>();
    return;
  }
#endif
  constexpr int m_tiles = kept_rows / 2 / 16, n_tiles = warp_columns / 8;
  const int warp_row = warp % 2 * (kept_rows / 2), warp_column = warp / 2 * warp_columns;
  const uint8_t* const left = rows + (warp_row + (lane & 15)) * shape.row_bytes + (lane >> 4) * 16;
  const int right_place = (lane & 15) * ring_line + ((warp_column / 8 + (lane >> 4)) ^ (lane & 7)) * 16;
  for (int tile = 0; tile < tiles; ++tile) {
    float total[m_tiles][n_tiles][4] = {};
    for (int part = 0; part < shape.parts; part += ring_parts, half ^= 1) {
      const int count = next_parts(tile, part);
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
    write_tile<true>(out, total, first_row + warp_row, first_column + tile * block_columns + warp_column, lane);
  }
  wait_for_copies<0>();
}

// Blocks in the order of their tokens, `splits` for the same ones, each with `share` times 128 columns. The first block
// looks for wrong ids where there is a report.
template <class T>
__global__ void __launch_bounds__(product_threads, 2)
    look_up_kept(Lines<T> coordinates, Lines<T> basis, Rows<T> out, KeptShape shape, int splits, int share,
                 int64_t* report) {
  uint8_t* const memory = dynamic_shared_1024();
  int64_t block = blockIdx.x;
  if (report && block-- == 0) {
    const auto wrong = [&](int64_t id) { return id < 0 || id >= coordinates.vocabulary; };
    report_wrong(memory, coordinates.ids, out.count, coordinates.vocabulary, wrong, report);
    return;
  }
  const int64_t row = block / splits * kept_rows, column = block % splits * share * block_columns;
  const int tiles =
      static_cast<int>(min(static_cast<int64_t>(share), ceil_div<int64_t>(out.width - column, block_columns)));
#ifdef OFA_WARPGROUPS
  if (shape.warpgroups) return look_up_tiles<T, true>(memory, coordinates, basis, out, shape, row, column, tiles);
#endif
  look_up_tiles<T, false>(memory, coordinates, basis, out, shape, row, column, tiles);
}

}  // namespace ofa::factorized_embedding
