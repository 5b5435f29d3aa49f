// What the search keeps of each query, how it divides its work, and the memory that takes.
#pragma once

#include <algorithm>
#include <limits>

#include "gemm.h"
#include "topk_similarity/kernels.h"
#include "workspace.h"

namespace ofa::topk_similarity {

inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

struct Scored {
  double score;
  int32_t index;
};

struct Before {  // without branches, which would be mispredicted
  bool operator()(const Scored& a, const Scored& b) const {
    return (a.score > b.score) | ((a.score == b.score) & (a.index < b.index));
  }
};

// What is known of one query over one segment of the keys.
struct State {
  double threshold = -std::numeric_limits<double>::infinity();  // the least of the k best scores, once there are k
  int64_t found = 0;                                            // in the heap of the k best, the last of them on top
  int64_t scored = 0;                                           // keys whose score was computed
};

// Takes a key into the heap of the k best. True if the threshold rose.
inline bool push(const Scored& next, int64_t k, State& state, Scored* heap) {
  const Before before;
  if (state.found < k) {
    heap[state.found++] = next;
    if (state.found < k) return false;
    std::make_heap(heap, heap + k, before);
  } else {
    if (!before(next, heap[0])) return false;
    // The last of the children moves up all the way; what comes in belongs near the leaves.
    int64_t at = 0, child;
    for (; (child = 2 * at + 2) < k; at = child) {
      child -= before(heap[child], heap[child - 1]);
      heap[at] = heap[child];
    }
    if (child == k) heap[at] = heap[k - 1], at = k - 1;
    for (; at > 0 && before(heap[(at - 1) / 2], next); at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
    heap[at] = next;
  }
  state.threshold = heap[0].score;
  return true;
}

// How the work is divided. Nothing here changes the result.
struct Plan {
  const TopkScreen& screen = OFA_SELECT(topk_screen);
  bool screened;
  int64_t code_bytes;  // of one encoded row
  int64_t slab;        // queries held at once: the keys are encoded anew for each slab
  int64_t block;       // queries of one task: encoded, they stay in a core's L1 cache
  int64_t segments;    // parts of the keys with heaps of their own, so that few queries keep many threads busy
  int64_t seeds;       // keys whose screened products alone give a first threshold
  int64_t chunk;       // keys encoded at once: they stay in a core's L2 cache while all queries pass
  int64_t batch;       // pairs of a block that are scored together
  int64_t scratch;     // floats
  int threads;

  Plan(int64_t queries, int64_t keys, int64_t depth, int64_t k, int threads) : threads(threads) {
    if (queries * keys * depth < 500000) this->threads = threads = 1;
    screened = queries >= 8 && depth <= 1 << 16;  // beyond, encoding costs more than it saves, or takes much memory
    const int64_t unit = screened ? screen.query_tile : 1;
    code_bytes = screened ? round_up(depth, screen.step) * screen.code_size : 0;
    scratch = screened ? screen.scratch_size(depth) : 2 * depth;

    const int64_t held = k * static_cast<int64_t>(sizeof(Scored) + sizeof(float)) + code_bytes + 100;
    slab = round_up(std::min(queries, std::max<int64_t>(unit, (24 << 20) / held)), unit);
    block = 1;
    if (screened) {
      const int64_t tiles = std::max<int64_t>(1, (24 << 10) / (unit * code_bytes + 1));
      block = std::clamp(round_up(ceil_div(slab, threads), unit), unit, std::min<int64_t>(tiles, 8) * unit);
    }
    // Many, so that the pairs of one query meet; but a threshold should not lag by more than a fraction of k.
    batch = std::clamp<int64_t>(block * k / 16, 32, 1024);
    segments = std::min(ceil_div(threads, ceil_div(slab, block)), ceil_div(keys, 4096));
    segments = std::max<int64_t>(segments, 1);
    slab = std::max(unit, round_up(slab / segments, unit));
    const int64_t cached = segments * (1 << 20) / (code_bytes + 1);
    chunk = screened ? round_up(std::min(keys, std::max<int64_t>(1024, cached)), screen.key_tile) : 0;
    // Multiplying again costs far less than scoring what a low threshold lets pass.
    seeds = screened ? std::min(keys, std::max(std::min(keys / 16, 400 * k), 4 * k * screen.key_tile)) : 0;
    seeds = seeds / screen.key_tile < 2 * k ? 0 : seeds / screen.key_tile * screen.key_tile;
  }
};

struct Scratch {
  Workspace::Array<double> key_norms, query_norms;
  Workspace::Array<char> key_codes, query_codes;
  Workspace::Array<KeyTile> tiles;
  Workspace::Array<float> query_scale, query_residual, slope, reach, threshold;
  Workspace::Array<int32_t> offset;
  Workspace::Array<double> query_inverse;
  Workspace::Array<State> states;
  Workspace::Array<Scored> heaps, merged;
  Workspace::Array<Pair> pairs, sorted;
  Workspace::Array<int32_t> places;
  Workspace::Array<double> dots;
  Workspace::Array<float> best_lows, tile_lows, lows;
  Workspace::Array<double> factors;
  Workspace::Array<float> row;

  Scratch(Workspace& memory, const Plan& plan, int64_t queries, int64_t keys, int64_t k)
      : key_norms(memory, keys),
        query_norms(memory, queries),
        key_codes(memory, plan.chunk * plan.code_bytes),
        query_codes(memory, plan.slab * plan.code_bytes),
        tiles(memory, plan.chunk / plan.screen.key_tile),
        query_scale(memory, plan.slab),
        query_residual(memory, plan.slab),
        slope(memory, plan.slab),
        reach(memory, plan.slab),
        threshold(memory, plan.slab, plan.segments),
        offset(memory, plan.slab),
        query_inverse(memory, plan.slab),
        states(memory, plan.slab, plan.segments),
        heaps(memory, plan.slab * k, plan.segments),
        merged(memory, k * plan.segments, plan.threads),
        pairs(memory, plan.batch, plan.threads),
        sorted(memory, plan.batch, plan.threads),
        places(memory, plan.block + 1, plan.threads),
        dots(memory, plan.batch, plan.threads),
        best_lows(memory, plan.seeds ? plan.slab * k : 0),
        tile_lows(memory, plan.seeds ? plan.chunk / plan.screen.key_tile * plan.block : 0, plan.threads),
        lows(memory, plan.seeds ? plan.chunk / plan.screen.key_tile + k : 0, plan.threads),
        factors(memory, std::max(plan.screen.query_tile, plan.screen.key_tile), plan.threads),
        row(memory, plan.scratch, plan.threads) {}
};

}  // namespace ofa::topk_similarity
