#include <algorithm>
#include <cstdlib>
#include <limits>

#include "topk_similarity/cuda_screen_wgmma.h"
#include "topk_similarity/cuda_settle.h"
#include "topk_similarity/topk_similarity.h"
#include "workspace.h"

namespace ofa::topk_similarity {
namespace {

constexpr int64_t deepest = 1 << 16;  // for which sums of products of codes stay below 2^31, and roundings small
constexpr int64_t most_of_scan = 1024;
constexpr int64_t most_seeds = 512;  // whose lows a warp has in shared memory
constexpr int most_splits = 16;
constexpr int64_t most_listed = 1 << 27;  // candidates of a slab
constexpr int64_t scan_blocks = 1024;
#ifndef OFA_SLAB  // tests have small ones
#  define OFA_SLAB 65536
#endif
constexpr int64_t most_of_slab = OFA_SLAB / query_tile;  // tiles of queries
static_assert(OFA_SLAB % query_tile == 0);

// Parts of the keys for `tiles` blocks of queries, so that as few processors as can be have nothing to do while the
// last blocks run: few, as each block has to be given its queries first.
int splits_for(int64_t tiles, int64_t processors) {
  int best = 1;
  double most = 0;
  for (int splits = 1; splits <= most_splits; ++splits) {
    const int64_t blocks = tiles * splits, rounds = ceil_div(blocks, processors);
    const double busy = static_cast<double>(blocks) / static_cast<double>(rounds * processors) - 0.01 * splits;
    if (busy > most) most = busy, best = splits;
  }
  return best;
}

// How the work is divided, by sizes alone. Nothing here changes the result.
struct Plan {
  bool screened;
  int64_t padded;    // a row of codes
  int tiles, seeds;  // of keys: all, and those of which only each half's largest score is looked at first
  int64_t slab;      // queries at once
  int splits;        // parts of the keys, side by side
  int lists;         // of a query in a round
  int listed, kept;  // candidates of a query: in each list, and after the round

  Plan(int64_t queries, int64_t keys, int64_t depth, int64_t k, int64_t processors) {
    padded = round_up(depth, half_turned);
    const int64_t whole = keys / key_tile;
    screened = depth > 0 && depth <= deepest && k <= most_neighbors && whole >= k && queries * keys >= 1 << 15;
    tiles = static_cast<int>(ceil_div<int64_t>(keys, key_tile));
    // A sixteenth, if that is not too many: three rounds are enough then, and another would cost more.
    seeds = static_cast<int>(std::min(whole, std::max(std::min(whole / 16, most_seeds), 2 * k)));
    const int room = std::clamp(power_of_2(static_cast<int>(std::min<int64_t>(k, most_neighbors)) * 128), 1024, 4096);
    kept = k <= 32 ? 512 : 1024;
    const int64_t at_once = std::min({most_of_slab, processors, most_listed / room / query_tile});
    const int64_t query_tiles = ceil_div<int64_t>(queries, query_tile);
    slab = ceil_div(query_tiles, ceil_div(query_tiles, at_once)) * query_tile;
    splits = splits_for(slab / query_tile, processors);
    lists = splits * list_parts;
    listed = std::max(room / lists, splits <= 8 ? 64 : 32);
  }
};

struct Scratch {
  Workspace::Array<double> query_norms, key_norms;
  Workspace::Array<unsigned long long> largest;  // norms of queries and of keys
  Workspace::Array<int32_t> overflows, overflow_count;
  Workspace::Array<int8_t> query_codes, key_codes;
  Workspace::Array<QueryBound> bounds;
  Workspace::Array<KeyTile> tiles;
  Workspace::Array<float> lows;
  Workspace::Array<uint64_t> lists, kept;
  Workspace::Array<int32_t> counts, kept_counts;

  Scratch(Workspace& memory, const Plan& plan, int64_t queries, int64_t keys, int64_t slab)
      : query_norms(memory, queries),
        key_norms(memory, keys),
        largest(memory, 2),
        overflows(memory, slab ? queries : 0),
        overflow_count(memory, 1),
        query_codes(memory, slab * plan.padded),
        key_codes(memory, slab ? plan.padded * plan.tiles * key_tile : 0),
        bounds(memory, slab),
        tiles(memory, slab ? plan.tiles : 0),
        lows(memory, slab * 2 * plan.seeds),
        lists(memory, slab * plan.lists * plan.listed),
        kept(memory, slab * plan.kept),
        counts(memory, slab * plan.lists),
        kept_counts(memory, slab) {}
  Scratch(Workspace& memory, const Plan& plan, int64_t queries, int64_t keys)
      : Scratch(memory, plan, queries, keys, plan.screened ? plan.slab : 0) {}
};

template <class T>
class Search {
 public:
  Search(const Queue& queue, const T* queries, const T* keys, const Problem& problem, const Plan& plan,
         const Scratch& scratch)
      : queue_(queue), queries_(queries), keys_(keys), problem_(problem), plan_(plan), scratch_(scratch) {
    if (!plan.screened || std::getenv("OFA_NO_WGMMA") || Queue::registers(screen_wgmma<false>) < wgmma_registers)
      return;
    ring_ = Ring(queue.shared_memory(), plan.padded);
  }

  void run(unsigned long long* bad_query, unsigned long long* bad_key) const {
    unsigned long long* const largest = scratch_.largest.of(0);
    queue_.fill(largest, 0, 2 * sizeof(unsigned long long));
    norms(queries_, problem_.queries, scratch_.query_norms.of(0), largest, bad_query);
    norms(keys_, problem_.keys, scratch_.key_norms.of(0), largest + 1, bad_key);
    if (!plan_.screened) return scan_all(nullptr, nullptr, problem_.queries);
    const double* const unit = reinterpret_cast<const double*>(largest + 1);  // the dot product's
    queue_.launch("encode", encode<T, true>, dim3(plan_.tiles), encode_threads, 0, keys_, problem_.keys, problem_.depth,
                  static_cast<int>(plan_.padded), scratch_.key_norms.of(0), problem_.norms.cosine ? nullptr : unit,
                  scratch_.key_codes.of(0), scratch_.tiles.of(0), nullptr);
    queue_.fill(scratch_.overflow_count.of(0), 0, sizeof(int32_t));
    for (int64_t first = 0; first < problem_.queries; first += plan_.slab)
      search(first, std::min(plan_.slab, problem_.queries - first), unit);
    scan_all(scratch_.overflows.of(0), scratch_.overflow_count.of(0), problem_.queries);
  }

 private:
  void norms(const T* rows, int64_t count, double* norms, unsigned long long* largest, unsigned long long* bad) const {
    constexpr int threads = 256;
    queue_.launch("measure", measure<T>, dim3(ceil_div<int64_t>(count * lanes, threads)), threads, 0, rows, count,
                  problem_.depth, norms, largest, bad);
  }

  void scan_all(const int32_t* list, const int32_t* listed, int64_t most) const {
    const int room = scan_room(problem_.k);
    const int64_t blocks = std::min(ceil_div<int64_t>(most, scan_queries), scan_blocks);
    queue_.launch("scan", scan<T>, dim3(blocks), scan_threads, scan_shared(room), queries_, keys_, problem_, list,
                  listed, room);
  }

  void screen_tiles(const Codes& codes, int64_t query_tiles, int begin, int end, bool for_lows) const {
    // Seeds are taken from all over the keys, whose order may mean something.
    const int stride = for_lows ? static_cast<int>(problem_.keys / key_tile / plan_.seeds) : 1;
    const Range range{begin, end, ceil_div(end - begin, plan_.splits), stride};
    const dim3 grid(query_tiles, plan_.splits);
    float* const lows = for_lows ? scratch_.lows.of(0) : nullptr;
    if (ring_.count) {
      queue_.launch("screen_wgmma", for_lows ? screen_wgmma<true> : screen_wgmma<false>, grid, wgmma_threads,
                    ring_.shared(plan_.padded), codes, range, ring_, lows, scratch_.lists.of(0), scratch_.counts.of(0),
                    plan_.listed);
      return;
    }
    const bool resident = screen_shared(true, plan_.padded) + screen_static <= queue_.shared_memory();
    auto* const kernel = resident ? (for_lows ? screen<true, true> : screen<true, false>)
                                  : (for_lows ? screen<false, true> : screen<false, false>);
    queue_.launch("screen", kernel, grid, screen_threads, screen_shared(resident, plan_.padded), codes, range, lows,
                  scratch_.lists.of(0), scratch_.counts.of(0), plan_.listed);
  }

  void search(int64_t first, int64_t count, const double* unit) const {
    const int64_t query_tiles = ceil_div<int64_t>(count, query_tile);
    QueryBound* const bounds = scratch_.bounds.of(0);
    const double* const norms = scratch_.query_norms.of(0) + first;
    const double* const no_unit = nullptr;
    KeyTile* const no_tiles = nullptr;
    queue_.launch("encode", encode<T, false>, dim3(query_tiles * query_tile / encoded_at_once), encode_threads, 0,
                  queries_ + first * problem_.depth, count, problem_.depth, static_cast<int>(plan_.padded), norms,
                  no_unit, scratch_.query_codes.of(0), no_tiles, bounds);

    const Codes codes{scratch_.query_codes.of(0), scratch_.key_codes.of(0),       bounds,
                      scratch_.tiles.of(0),       static_cast<int>(plan_.padded), problem_.keys};
    screen_tiles(codes, query_tiles, 0, plan_.seeds, true);
    const int groups = 2 * plan_.seeds;
    launch_warps("first_limit", first_limit, count, groups * sizeof(uint32_t), scratch_.lows.of(0), groups, norms,
                 count, problem_.k, bounds, scratch_.kept_counts.of(0));
    // As many keys as that limit came from, and then four times those before in each round, with a limit from all of
    // them: a round lists a few times k keys.
    for (int begin = 0, end; begin < plan_.tiles; begin = end) {
      end = static_cast<int>(std::min<int64_t>(plan_.tiles, begin ? 4 * static_cast<int64_t>(begin) : plan_.seeds));
      if (plan_.tiles - end < end / 2) end = plan_.tiles;
      screen_tiles(codes, query_tiles, begin, end, false);
      settle(first, count, unit, end == plan_.tiles);
    }
  }

  void settle(int64_t first, int64_t count, const double* unit, bool last) const {
    const Found found{scratch_.lists.of(0), scratch_.counts.of(0),      plan_.lists, plan_.listed,
                      scratch_.kept.of(0),  scratch_.kept_counts.of(0), plan_.kept};
    const SettleRoom room(plan_.lists, plan_.listed, plan_.kept);
    launch_warps("settle_queries", settle_queries<T>, count, room.bytes, queries_, keys_, problem_, first, count, unit,
                 found, room, last, scratch_.bounds.of(0), scratch_.overflows.of(0), scratch_.overflow_count.of(0));
  }

  // A warp for each query, as many in a block as share the memory that blocks have without asking, up to four.
  template <class... Parameters, class... Arguments>
  void launch_warps(const char* name, void (*kernel)(Parameters...), int64_t count, int64_t shared,
                    Arguments... arguments) const {
    const int64_t warps = std::clamp<int64_t>((48 << 10) / shared, 1, settle_threads / 32);
    queue_.launch(name, kernel, dim3(ceil_div(count, warps)), static_cast<int>(32 * warps), warps * shared,
                  arguments...);
  }

  const Queue& queue_;
  const T *queries_, *keys_;
  const Problem problem_;
  const Plan& plan_;
  const Scratch& scratch_;
  Ring ring_;  // of screen_wgmma, if it can run here
};

}  // namespace

int64_t workspace(int64_t queries, int64_t keys, int64_t depth, int64_t k, int device) {
  Workspace measure;
  Scratch(measure, Plan(queries, keys, depth, k, processors_of(device)), queries, keys);
  return measure.bytes();
}

void forward(Tensor queries_tensor, Tensor keys_tensor, int64_t k, bool cosine, Tensor scores_tensor,
             Tensor indices_tensor, Tensor report_tensor, Tensor workspace, int) {
  const Queue queue(queries_tensor);
  const int64_t queries = queries_tensor.size(0), keys = keys_tensor.size(0), depth = keys_tensor.size(1);
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  if (queries_tensor.dtype() != keys_tensor.dtype())
    throw std::invalid_argument("queries and keys must share one dtype: float32, float16 or bfloat16");
  if (k < 1 || k > keys || k > most_of_scan) throw std::invalid_argument("k must lie in [1, K] and be 1024 at most");
  if (keys > most || queries > most) throw std::invalid_argument("queries and keys must have fewer than 2^31 rows");
  const void* const query_rows = queue.data(queries_tensor, "queries", {queries, depth});
  const void* const key_rows = queue.data(keys_tensor, "keys", {keys, depth});
  auto* const report = reinterpret_cast<unsigned long long*>(queue.data<int64_t>(report_tensor, "report", {4}));
  float* const scores = queue.data<float>(scores_tensor, "scores", {queries, k});
  auto* const indices = reinterpret_cast<long long*>(queue.data<int64_t>(indices_tensor, "indices", {queries, k}));
  queue.data<uint8_t>(workspace, "workspace", {workspace.numel()});

  const Plan plan(queries, keys, depth, k, queue.processors());
  Workspace memory(workspace);
  const Scratch scratch(memory, plan, queries, keys);
  const Norms norms{scratch.query_norms.of(0), scratch.key_norms.of(0), cosine};
  const Problem problem{queries, keys, depth, static_cast<int>(k), norms, scores, indices, report, report + 1};
  queue.fill(report, 0, 2 * sizeof(int64_t));
  queue.fill(report + 2, 0xff, 2 * sizeof(int64_t));
  with_element(queries_tensor.dtype(), "queries", [&](auto element) {
    using T = decltype(element);
    Search<T>(queue, static_cast<const T*>(query_rows), static_cast<const T*>(key_rows), problem, plan, scratch)
        .run(report + 2, report + 3);
  });
}

}  // namespace ofa::topk_similarity
