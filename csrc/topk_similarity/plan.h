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
  int64_t waiting = 0;                                          // candidates
};

// A key that may be among the k best: its score is at most `upper`, in the units of its query's thresholds.
struct Candidate {
  float upper;
  int32_t key;
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

struct Higher {
  bool operator()(const Candidate& a, const Candidate& b) const { return a.upper > b.upper; }
};

class Search;

// Where a block of queries and a range of keys begin. Listed queries are those of one tile, from first_query on.
struct Visit {
  Search* search;
  int worker;
  int64_t first_key, first_query;
  const int32_t* list;
};

// How the work is divided. Nothing here changes the result.
struct Plan {
  const TopkScreen& screen = OFA_SELECT(topk_screen);
  bool screened;
  int64_t code_bytes;  // of one encoded row
  int64_t slab;        // queries held at once
  int64_t block;       // queries of one task of the first pass: encoded, they stay in a core's L1 cache
  int64_t visitors;    // queries of one task of the second pass: enough to fill tiles
  int64_t segments;    // parts of the keys, so that few queries keep many threads busy
  int64_t cached;      // encoded keys that stay in a core's L2 cache while all queries pass
  int64_t first;       // keys that are multiplied twice, first for lower bounds
  int64_t chunk;       // of the other keys, those encoded at once
  int64_t group;       // key tiles with one lower bound in common
  int64_t groups;      // of the first keys; 0 if there are too few for k lower bounds
  int64_t room;        // candidates of a query that may wait, or keys that are scored at once
  int64_t scratch;     // floats
  int threads;

  Plan(int64_t queries, int64_t keys, int64_t depth, int64_t k, int threads) : threads(threads) {
    if (queries * keys * depth < 500000) this->threads = threads = 1;
    screened = queries >= 8 && depth <= 1 << 16;  // beyond, encoding costs more than it saves, or takes much memory
    const int64_t unit = screened ? screen.query_tile : 1;
    code_bytes = screened ? round_up(depth, screen.step) * screen.code_size : 0;
    scratch = screened ? screen.scratch_size(depth) : 2 * depth;

    room = screened ? std::min(keys, 2 * k + 64) : 256;
    cached = std::max<int64_t>(1024, (1 << 20) / (code_bytes + 1));

    // Lower bounds need a first pass, so the keys they are taken of stay encoded: all keys or, for a useful threshold,
    // a part. Finer groups give higher thresholds, and less to multiply again; coarser ones take less memory.
    const int64_t most = (8 << 20) / (code_bytes + 1), tiles = ceil_div(std::min(keys, most), screen.key_tile);
    group = std::clamp<int64_t>(tiles / (4 * k), 1, ceil_div(64, screen.key_tile));
    groups = screened && tiles >= 2 * k ? ceil_div(tiles, group) : 0;
    first = groups ? keys <= most ? keys : groups * group * screen.key_tile : 0;

    // The keys are encoded anew for each slab, if not so few that they stay.
    const int64_t held = k * static_cast<int64_t>(sizeof(Scored)) + room * static_cast<int64_t>(sizeof(Candidate)) +
                         groups * 4 + 2 * code_bytes + 100;
    slab = std::max<int64_t>(unit, (first == keys ? 14 << 20 : 50 << 20) / held);
    slab = round_up(ceil_div(queries, ceil_div(queries, slab)), unit);
    block = visitors = 1;
    if (screened) {
      const int64_t share = round_up(ceil_div(slab, threads), unit);
      block = std::clamp((24 << 10) / (unit * code_bytes + 1), int64_t{1}, int64_t{8}) * unit;
      block = std::min(share, block);
      visitors = std::min(share, round_up(512, unit));
    }
    segments = std::min(ceil_div(threads, ceil_div(slab, block)), ceil_div(keys, 4096));
    segments = std::max<int64_t>(segments, 1);
    chunk = screened ? round_up(std::min(keys, segments * cached), screen.key_tile) : 0;
  }

  int64_t encoded() const { return std::max(chunk, round_up(first, screen.key_tile)); }  // keys at once
  int64_t heaps() const { return screened ? 1 : segments; }                              // of a query
};

struct Scratch {
  Workspace::Array<double> key_norms, query_norms;
  Workspace::Array<char> key_codes, query_codes, query_tiles;
  Workspace::Array<KeyTile> tiles;
  Workspace::Array<float> query_scale, query_residual, slope, reach, threshold, lows;
  Workspace::Array<int32_t> offset;
  Workspace::Array<double> query_inverse;
  Workspace::Array<State> states;
  Workspace::Array<Scored> heaps, merged;
  Workspace::Array<Candidate> candidates;
  Workspace::Array<int32_t> visitors, listed;
  Workspace::Array<char> visiting;
  Workspace::Array<double> dots, factors;
  Workspace::Array<float> row;

  Scratch(Workspace& memory, const Plan& plan, int64_t queries, int64_t keys, int64_t k)
      : key_norms(memory, keys),
        query_norms(memory, queries),
        key_codes(memory, plan.encoded() * plan.code_bytes),
        query_codes(memory, plan.slab * plan.code_bytes),
        query_tiles(memory, plan.slab * plan.code_bytes),
        tiles(memory, plan.encoded() / plan.screen.key_tile),
        query_scale(memory, plan.slab),
        query_residual(memory, plan.slab),
        slope(memory, plan.slab),
        reach(memory, plan.slab),
        threshold(memory, plan.slab),
        lows(memory, plan.slab * plan.groups),
        offset(memory, plan.slab),
        query_inverse(memory, plan.slab),
        states(memory, plan.slab, plan.heaps()),
        heaps(memory, plan.slab * k, plan.heaps()),
        merged(memory, k * plan.heaps(), plan.threads),
        candidates(memory, plan.screened ? plan.slab * plan.room : 0),
        visitors(memory, plan.visitors + 16, plan.threads),
        listed(memory, plan.room, plan.threads),
        visiting(memory, plan.screened ? plan.screen.query_tile * plan.code_bytes : 0, plan.threads),
        dots(memory, plan.room, plan.threads),
        factors(memory, std::max(plan.screen.query_tile, plan.screen.key_tile), plan.threads),
        row(memory, plan.scratch, plan.threads) {}
};

}  // namespace ofa::topk_similarity
