// What the search keeps of each query, how it divides its work, and the memory that takes.
#pragma once

#include <algorithm>
#include <functional>

#include "gemm.h"
#include "topk_similarity/kernels.h"
#include "workspace.h"

namespace ofa::topk_similarity {

inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// A key that may be among the k best. Its true score is within `error` of `score`; exactly `score` if error is 0.
struct Candidate {
  double score;
  float error;
  int32_t index;
  double low() const { return score - error; }
  double high() const { return score + error; }
};

struct Before {
  bool operator()(const Candidate& a, const Candidate& b) const {
    return a.score != b.score ? a.score > b.score : a.index < b.index;
  }
};

// What is known of one query over one segment of the keys.
struct State {
  double threshold;  // k keys seen so far have at least this score
  int64_t count;     // of its candidates
  int64_t seen;      // keys in the heap of the k best lower bounds
  int64_t rescored, undecided;
};

// Takes the lower bound of one more key into the heap of the k best, whose least is the threshold. True if it rose.
inline bool raise(double low, int64_t k, State& state, double* heap) {
  if (state.seen < k) {
    heap[state.seen++] = low;
    if (state.seen < k) return false;
    std::make_heap(heap, heap + k, std::greater<double>());
  } else {
    if (low <= heap[0]) return false;
    int64_t at = 0;
    for (int64_t child = 1; child < k; child = 2 * at + 1) {
      child += child + 1 < k && heap[child + 1] < heap[child];
      if (heap[child] >= low) break;
      heap[at] = heap[child];
      at = child;
    }
    heap[at] = low;
  }
  state.threshold = heap[0];
  return true;
}

// How the work is divided. Nothing here changes the result.
struct Plan {
  const TopkScreen& screen = OFA_SELECT(topk_screen);
  bool screened;
  int64_t capacity;    // candidates held for a query
  int64_t slab;        // queries whose candidates are held at once: the keys are encoded anew for each slab
  int64_t block;       // queries of one task
  int64_t segments;    // parts of the keys with candidates of their own, so that few queries keep many threads busy
  int64_t code_bytes;  // of one encoded row
  int64_t chunk;       // keys encoded at once: they stay in a core's L2 cache while all queries pass
  int threads;

  Plan(int64_t queries, int64_t keys, int64_t depth, int64_t k, int threads) : threads(threads) {
    if (queries * keys * depth < 500000) this->threads = threads = 1;
    screened = queries >= 8 && depth <= 1 << 17;  // beyond, encoding costs more than it saves, or sums may overflow
    capacity = std::min(6 * k + 96, keys + 1);    // the bounds of int8 leave some 4 k candidates undecided
    const int64_t unit = screened ? screen.query_tile : 1;
    code_bytes = screened ? round_up(depth, screen.step) * screen.code_size : 0;

    slab = round_up(std::min(queries, std::max<int64_t>(unit, (24 << 20) / (capacity * sizeof(Candidate)))), unit);
    block = screened ? std::clamp(round_up(ceil_div(slab, threads), unit), unit, round_up(128, unit)) : 1;
    segments = std::min(ceil_div(threads, ceil_div(slab, block)), ceil_div(keys, 4096));
    segments = std::max<int64_t>(segments, 1);
    slab = std::max(unit, round_up(slab / segments, unit));
    const int64_t cached = segments * (1 << 20) / (code_bytes + 1);
    chunk = screened ? round_up(std::min(keys, std::max<int64_t>(1024, cached)), screen.key_tile) : 0;
  }
};

struct Scratch {
  Workspace::Array<double> key_norms, query_norms;
  Workspace::Array<char> key_codes, query_codes;
  Workspace::Array<float> key_scale, key_residual, key_norm, tile_norm, tile_residual;
  Workspace::Array<float> query_scale, query_residual, slope, reach, threshold;
  Workspace::Array<int32_t> offset;
  Workspace::Array<double> query_unit, query_inverse;
  Workspace::Array<State> states;
  Workspace::Array<Candidate> candidates, merged;
  Workspace::Array<double> lows, dots, wide;
  Workspace::Array<int32_t> positions, indices;
  Workspace::Array<float> row;

  Scratch(Workspace& memory, const Plan& plan, int64_t queries, int64_t keys, int64_t depth, int64_t k)
      : key_norms(memory, keys),
        query_norms(memory, queries),
        key_codes(memory, plan.chunk * plan.code_bytes),
        query_codes(memory, plan.slab * plan.code_bytes),
        key_scale(memory, plan.chunk),
        key_residual(memory, plan.chunk),
        key_norm(memory, plan.chunk),
        tile_norm(memory, plan.chunk / plan.screen.key_tile),
        tile_residual(memory, plan.chunk / plan.screen.key_tile),
        query_scale(memory, plan.slab),
        query_residual(memory, plan.slab),
        slope(memory, plan.slab),
        reach(memory, plan.slab),
        threshold(memory, plan.slab, plan.segments),
        offset(memory, plan.slab),
        query_unit(memory, plan.slab),
        query_inverse(memory, plan.slab),
        states(memory, plan.slab, plan.segments),
        candidates(memory, plan.slab * plan.capacity, plan.segments),
        merged(memory, plan.capacity * plan.segments, plan.threads),
        lows(memory, plan.slab * k, plan.segments),
        dots(memory, plan.capacity * plan.segments, plan.threads),
        wide(memory, round_up(depth, 8), plan.threads),
        positions(memory, plan.capacity * plan.segments, plan.threads),
        indices(memory, plan.capacity * plan.segments, plan.threads),
        row(memory, scratch_size(depth), plan.threads) {}
};

}  // namespace ofa::topk_similarity
