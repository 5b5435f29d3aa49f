// What both directions of the cross entropy on GPUs of compute capability 9.0 are: sums += f(own rowsT) rows, of own
// rows that stay and of others that pass by, read once for both products.
//
// A block has 128 rows of its own, 64 a warpgroup, and two warpgroups that multiply; a thread of a third one copies.
// The scores of a tile, own [64, R] times rows [R, step], become weights in registers, which multiply the same rows of
// [step, R]. The scores of a tile and the sums of the one before are issued together, scores first: a warpgroup makes
// weights of them while its sums are computed, and whatever the other one has issued.
#pragma once

#include <wgmma.h>

#include <type_traits>

#include "cuda.h"

namespace ofa::factorized_cross_entropy {

constexpr int groups = 2, group_rows = 64, block_rows = groups * group_rows, group_threads = 128;
constexpr int pass_threads = (groups + 1) * group_threads, group_warps = 4;
constexpr int copier_registers = 24, multiplier_registers = 240;
static_assert(group_threads * (copier_registers + groups * multiplier_registers) <= 1 << 16);
constexpr int pass_registers = 129;  // more than the sums: a kernel that takes fewer was compiled for other GPUs
constexpr int64_t block_memory = 227 << 10, most_stages = 4;
constexpr float log2_e = 1.44269504088896340736f;

// float16 ends where the probabilities of a large vocabulary are: so many bits larger they fit.
template <class T>
constexpr int magnified = std::is_same_v<T, Half> ? 15 : 0;

// Rows of a matrix of 2-byte elements in shared memory: panels of `panel` columns, in which rows follow each other and
// 16-byte pieces of a row are exchanged as the row's number says, so that neither way to read it hits a bank twice.
// A panel has `rows` rows, a multiple of 8, and begins at a multiple of 8 rows' bytes.
template <int rows, int columns, int panel>
struct Panels {
  static_assert(panel == 16 || panel == 64);
  static constexpr int row_bytes = 2 * panel, count = (columns + panel - 1) / panel, panel_bytes = rows * row_bytes;
  static constexpr int bytes = count * panel_bytes, alignment = 8 * row_bytes;

  // How a warpgroup is told of it, to read rows along their columns: addresses come in units of 16 bytes.
  static constexpr __host__ __device__ uint64_t lines(uint32_t address) {
    return address >> 4 | 1 << 16 | static_cast<uint64_t>(8 * row_bytes >> 4) << 32 |
           static_cast<uint64_t>(panel == 16 ? 3 : 1) << 62;
  }
  static constexpr __host__ __device__ uint64_t line_step(int depth) {  // to the 16 columns from this one on
    return (depth / panel * panel_bytes + depth % panel * 2) >> 4;
  }
  // The same to read columns along the rows, a panel after the other.
  static constexpr uint64_t turned = ((panel_bytes >> 4) - 1) << 16;
  static constexpr __host__ __device__ uint64_t turned_step(int depth) {
    return depth * row_bytes >> 4;
  }  // to the 16 rows from this one on
};

// For ranks up to `sums`, a multiple of 8. As many rows pass by at a time as their scores and weights fit into
// registers beside the sums; and own rows are stored so that they take no more memory than they must.
template <class T_, int sums_>
struct Shape {
  using T = T_;
  static constexpr int sums = sums_, width = ceil_div(sums, 16) * 16;
  static constexpr int step = sums <= 128 ? 128 : sums <= 200 ? 112 : 80;
  static constexpr int panel = 64, own_panel = width % panel ? 16 : panel;
  using Own = Panels<group_rows, width, own_panel>;
  using Rows = Panels<step, width, panel>;
  static_assert(step % 16 == 0 && sums % 8 == 0);

  static constexpr int vectors = 2;  // floats of a row, at most, that weights are made from
  static constexpr int64_t barrier_bytes = 128, stage_bytes = Rows::bytes + vectors * step * sizeof(float);
  static constexpr int64_t room = (block_memory - barrier_bytes - groups * Own::bytes) / stage_bytes;
  static constexpr int stages = room < most_stages ? room : most_stages;
  static_assert(stages >= 2 && (2 * stages + 2) * sizeof(uint64_t) <= barrier_bytes);
  static constexpr int64_t bytes = stages * stage_bytes + groups * Own::bytes + barrier_bytes;
};

// A block's shared memory.
template <class S>
struct Memory {
  uint8_t* const start;

  __device__ uint8_t* rows(int stage) const { return start + stage * S::Rows::bytes; }
  __device__ uint8_t* own(int group) const { return rows(S::stages) + group * S::Own::bytes; }
  __device__ float* vector(int stage, int which) const {
    return reinterpret_cast<float*>(own(groups)) + (stage * S::vectors + which) * S::step;
  }
  __device__ uint64_t* full(int stage) const { return reinterpret_cast<uint64_t*>(vector(S::stages, 0)) + stage; }
  __device__ uint64_t* empty(int stage) const { return full(S::stages + stage); }
  __device__ uint64_t* held() const { return full(2 * S::stages); }          // own rows have come
  __device__ uint64_t* finished() const { return full(2 * S::stages + 1); }  // nobody reads them any more
};

// Where in its ring of stages a thread is, and how many sets of own rows it had.
template <class S>
struct Place {
  int stage = 0;
  uint32_t round = 0, sets = 0;
  __device__ void next() {
    if (++stage == S::stages) stage = 0, ++round;
  }
};

#ifdef OFA_WARPGROUPS

// By the whole block.
template <class S>
__device__ void begin_pass(const Memory<S>& memory) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::stages; ++i)
      start_barrier(memory.full(i), 1), start_barrier(memory.empty(i), groups * group_warps);
    start_barrier(memory.held(), 1);
    start_barrier(memory.finished(), groups * group_warps);
    publish_barriers();
  }
  __syncthreads();
}

// By one thread: own rows from `own_row` on, and rows of `tiles` tiles from `first` on. `vectors(tile, stage)` starts
// the copies of their vectors, and returns how many bytes those are.
template <class S, class Vectors>
__device__ void copy_pass(const Memory<S>& memory, Place<S>& place, const Boxes& own, int own_row, const Boxes& rows,
                          int first, int tiles, Vectors vectors) {
  for (int tile = first; tile < first + tiles; ++tile, place.next()) {
    uint64_t* const full = memory.full(place.stage);
    wait_for_phase(memory.empty(place.stage), place.round - 1);
    arrive_for_bytes(full, S::Rows::bytes + vectors.bytes);
    for (int i = 0; i < S::Rows::count; ++i)
      copy_box(memory.rows(place.stage) + i * S::Rows::panel_bytes, rows, i * S::panel, tile * S::step, full);
    vectors.copy(tile, place.stage);
    if (tile > first) continue;
    wait_for_phase(memory.finished(), place.sets++ - 1);
    arrive_for_bytes(memory.held(), groups * S::Own::bytes);
    for (int group = 0; group < groups; ++group)
      for (int i = 0; i < S::Own::count; ++i)
        copy_box(memory.own(group) + i * S::Own::panel_bytes, own, i * S::own_panel, own_row + group * group_rows,
                 memory.held());
  }
}

template <class S>
__device__ void multiply_scores(float (&scores)[S::step / 2], uint64_t own, uint64_t rows) {
  using Product = Warpgroup<typename S::T, S::step>;
  Product::template multiply<false>(scores, own, rows);
#  pragma unroll
  for (int depth = 16; depth < S::width; depth += 16)
    Product::template multiply<true>(scores, own + S::Own::line_step(depth), rows + S::Rows::line_step(depth));
}

template <class S>
__device__ void multiply_weights(float (&sums)[S::sums / 2], const uint32_t (&weights)[S::step / 16][4],
                                 uint64_t rows) {
#  pragma unroll
  for (int depth = 0; depth < S::step; depth += 16)
    Warpgroup<typename S::T, S::sums>::multiply_turned(sums, weights[depth / 16],
                                                       rows + S::Rows::turned + S::Rows::turned_step(depth));
}

// Scores and weights are columns 8 j + 2 (lane % 4) and the next one of two rows, as Warpgroup has them.
template <class S>
__device__ void pack_weights(uint32_t (&weights)[S::step / 16][4], const float (&values)[S::step / 2]) {
#  pragma unroll
  for (int i = 0; i < S::step / 4; ++i)
    weights[i / 4][i % 4] = from_floats<typename S::T>(values[2 * i], values[2 * i + 1]);
}

// By a warpgroup, on `tiles` tiles, at least one. `weigh(scores, tile, stage)` makes weights of scores, in place, and
// `weigh.rescale(sums)` follows when it returned true, which is the same in a warp.
template <class S, class Weigh>
__device__ void multiply_pass(const Memory<S>& memory, Place<S>& place, int group, int first, int tiles, Weigh& weigh,
                              float (&sums)[S::sums / 2]) {
  const bool speaks = threadIdx.x % 32 == 0;
  const uint64_t own = S::Own::lines(shared_address(memory.own(group)));
  const uint64_t ring = S::Rows::lines(shared_address(memory.start));
  const auto rows = [&](int stage) { return ring + stage * (S::Rows::bytes >> 4); };
  float scores[S::step / 2];
  uint32_t weights[S::step / 16][4];
#  pragma unroll
  for (float& sum : sums) sum = 0;

  wait_for_phase(memory.held(), place.sets++);
  wait_for_phase(memory.full(place.stage), place.round);
  begin_products();
  multiply_scores<S>(scores, own, rows(place.stage));
  commit_products();
  wait_for_products<0>();
  settle(scores);
  weigh(scores, first, place.stage);
  pack_weights<S>(weights, scores);

  for (int tile = first + 1; tile < first + tiles; ++tile) {
    const int before = place.stage;
    place.next();
    wait_for_phase(memory.full(place.stage), place.round);
    begin_products();
    multiply_scores<S>(scores, own, rows(place.stage));
    commit_products();
    multiply_weights<S>(sums, weights, rows(before));
    commit_products();
    wait_for_products<1>();
    settle(scores);
    const bool grew = weigh(scores, tile, place.stage);
    wait_for_products<0>();
    settle(sums);
    if (speaks) arrive(memory.empty(before));
    if (grew) weigh.rescale(sums);
    pack_weights<S>(weights, scores);
  }
  if (speaks) arrive(memory.finished());
  begin_products();
  multiply_weights<S>(sums, weights, rows(place.stage));
  commit_products();
  wait_for_products<0>();
  settle(sums);
  if (speaks) arrive(memory.empty(place.stage));
  place.next();
}

#endif

}  // namespace ofa::factorized_cross_entropy
