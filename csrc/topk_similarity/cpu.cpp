#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>

#include "parallel.h"
#include "topk_similarity/plan.h"
#include "topk_similarity/topk_similarity.h"

namespace ofa::topk_similarity {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

class Search {
 public:
  Search(const char* queries, const char* keys, Dtype dtype, int64_t query_count, int64_t key_count, int64_t depth,
         int64_t k, bool cosine, const Plan& plan, const Scratch& scratch)
      : queries_(queries),
        keys_(keys),
        dtype_(dtype),
        query_count_(query_count),
        key_count_(key_count),
        depth_(depth),
        k_(k),
        cosine_(cosine),
        plan_(plan),
        scratch_(scratch),
        row_bytes_(depth * (dtype == Dtype::f32 ? 4 : 2)) {}

  void run(float* scores, int64_t* indices, int64_t* report) {
    measure_all(queries_, query_count_, scratch_.query_norms.of(0), "queries");
    // The screen of cosines can take the norms of keys as it goes, which saves reading the keys twice.
    if (!plan_.screened || !cosine_) measure_all(keys_, key_count_, scratch_.key_norms.of(0), "keys");
    if (!cosine_) {
      const double* norms = scratch_.key_norms.of(0);
      std::frexp(*std::max_element(norms, norms + key_count_), &key_exponent_);
    }
    report[0] = report[1] = 0;
    for (first_ = 0; first_ < query_count_; first_ += plan_.slab) {
      slab_ = std::min(plan_.slab, query_count_ - first_);
      clear();
      if (plan_.screened) {
        encode_queries();
        seed();
        for (chunk_ = 0; chunk_ < key_count_; chunk_ += plan_.chunk) {
          encode_keys();
          screen();
        }
      } else {
        scan();
      }
      finish(scores, indices, report);
    }
  }

 private:
  static constexpr int64_t group = 512;  // rows of one task
  static constexpr int64_t no_row = std::numeric_limits<int64_t>::max();

  // Its pairs wait in the worker's scratch memory until there are enough to score at once.
  struct Task {
    Search* search;
    int64_t query, segment, key;  // the first query in the slab, the first key in the table
    int worker;
    int64_t count = 0;
  };

  State& state(int64_t segment, int64_t query) const { return scratch_.states.of(segment)[query]; }
  Scored* heap(int64_t segment, int64_t query) const { return scratch_.heaps.of(segment) + query * k_; }
  double query_norm(int64_t query) const { return scratch_.query_norms.of(0)[first_ + query]; }

  // The norms of rows [begin, begin + count), noting the first row that is not finite: float32 values that are have a
  // squared norm that is finite in float64.
  void measure(const char* rows, int64_t begin, int64_t count, double* norms, int worker) {
    exact_.squared_norms(rows + begin * row_bytes_, dtype_, count, depth_, norms + begin, scratch_.row.of(worker));
    for (int64_t row = begin; row < begin + count; ++row) {
      if (!std::isfinite(norms[row]))
        for (int64_t known = bad_row_; row < known && !bad_row_.compare_exchange_weak(known, row);) continue;
      norms[row] = std::sqrt(norms[row]);
    }
  }

  void measure_all(const char* rows, int64_t count, double* norms, const char* argument) {
    parallel_for(ceil_div(count, group), plan_.threads, [&](int64_t task, int worker) {
      measure(rows, task * group, std::min(group, count - task * group), norms, worker);
    });
    check_finite(argument);
  }

  void check_finite(const char* argument) const {
    if (bad_row_ != no_row)
      throw std::invalid_argument(std::string(argument) + " must be finite, got NaN or infinity in row " +
                                  std::to_string(bad_row_));
  }

  // Scores are held in units of a power of two, in which no bound overflows or underflows.
  int exponent(int64_t query) const {
    if (cosine_) return 0;
    int exponent;
    std::frexp(query_norm(query), &exponent);
    return exponent + key_exponent_;
  }

  void clear() {
    for (int64_t segment = 0; segment < plan_.segments; ++segment)
      std::fill_n(scratch_.states.of(segment), slab_, State{});
  }

  void encode_queries() {
    const int tile = screen_.query_tile;
    const double roundoff = screen_.rounding + depth_ * screen_.rounding_per_term;
    constexpr double slack = 0x1p-20;  // covers the rounding of the comparison itself and of the float64 scores
    parallel_for(ceil_div(slab_, tile), plan_.threads, [&](int64_t task, int worker) {
      const int64_t at = task * tile, count = std::min<int64_t>(tile, slab_ - at);
      double* factors = scratch_.factors.of(worker);
      for (int64_t i = 0; i < count; ++i) factors[i] = query_norm(at + i) > 0 ? 1 / query_norm(at + i) : 0;
      const Encoded out{scratch_.query_codes.of(0) + at * plan_.code_bytes, scratch_.query_scale.of(0) + at,
                        scratch_.query_residual.of(0) + at, scratch_.offset.of(0) + at};
      screen_.encode_queries(queries_ + (first_ + at) * row_bytes_, dtype_, count, depth_, factors, out,
                             scratch_.row.of(worker));
      for (int64_t q = at; q < at + tile; ++q) {
        const double scale = scratch_.query_scale.of(0)[q], residual = scratch_.query_residual.of(0)[q];
        const bool zero = scale == 0;
        // |q k - q' k'| <= |q - q'| |k| + |q'| |k - k'|, in units of the query's scale
        scratch_.slope.of(0)[q] = zero ? 0 : (residual + (roundoff + slack) * (1 + residual)) / scale;
        scratch_.reach.of(0)[q] = zero ? 0 : (1 + residual) * (1 + slack) / scale;
        const double unit = zero || cosine_ ? scale : scale * std::ldexp(query_norm(q), key_exponent_ - exponent(q));
        scratch_.query_inverse.of(0)[q] = zero ? 0 : 1 / unit;
        for (int64_t segment = 0; segment < plan_.segments; ++segment)
          scratch_.threshold.of(segment)[q] = zero ? infinity : -infinity;
      }
    });
  }

  void encode_keys() {
    if (encoded_ == chunk_) return;
    encoded_ = chunk_;
    const int tile = screen_.key_tile;
    const int64_t size = std::min(plan_.chunk, key_count_ - chunk_), tiles = ceil_div(size, tile),
                  together = ceil_div(64, tile);
    parallel_for(ceil_div(tiles, together), plan_.threads, [&](int64_t task, int worker) {
      for (int64_t t = task * together; t < std::min(tiles, (task + 1) * together); ++t)
        encode_key_tile(t, std::min<int64_t>(tile, size - t * tile), worker);
    });
    check_finite("keys");
  }

  void encode_key_tile(int64_t tile, int64_t count, int worker) {
    const int64_t at = tile * screen_.key_tile;
    if (cosine_ && first_ == 0) measure(keys_, chunk_ + at, count, scratch_.key_norms.of(0), worker);
    const double* norms = scratch_.key_norms.of(0) + chunk_ + at;
    double *factors = scratch_.factors.of(worker), largest = 0;
    for (int64_t i = 0; i < count; ++i) {
      const bool zero = !(norms[i] > 0);
      factors[i] = zero ? 0 : cosine_ ? 1 / norms[i] : std::ldexp(1.0, -key_exponent_);
      if (!zero) largest = std::max({largest, cosine_ ? 1.0 : std::ldexp(norms[i], -key_exponent_), 0x1p-60});
    }
    float scale, residual;
    screen_.encode_keys(keys_ + (chunk_ + at) * row_bytes_, dtype_, count, depth_, factors,
                        Encoded{scratch_.key_codes.of(0) + at * plan_.code_bytes, &scale, &residual, nullptr},
                        scratch_.row.of(worker));
    scratch_.tiles.of(0)[tile] = {scale, 1 / scale, static_cast<float>(largest * (1 + 0x1p-22)), residual};
  }

  // A block of queries and the encoded keys of a segment, from tile `tile` of the chunk.
  Screen arguments(int64_t segment, int64_t query, int64_t tile, int64_t tiles) const {
    Screen screen{};
    screen.queries = scratch_.query_codes.of(0) + query * plan_.code_bytes;
    screen.offset = scratch_.offset.of(0) + query;
    screen.threshold = scratch_.threshold.of(segment) + query;
    screen.slope = scratch_.slope.of(0) + query;
    screen.reach = scratch_.reach.of(0) + query;
    screen.query_tiles = ceil_div(std::min(plan_.block, slab_ - query), screen_.query_tile);
    screen.keys = scratch_.key_codes.of(0) + tile * screen_.key_tile * plan_.code_bytes;
    screen.tiles = scratch_.tiles.of(0) + tile;
    screen.key_tiles = tiles;
    screen.depth = depth_;
    return screen;
  }

  // A first threshold: of the first keys, as many tiles as k hold a key whose score exceeds it.
  void seed() {
    int64_t known = 0;  // of the k best bounds of a query
    for (chunk_ = 0; chunk_ < plan_.seeds; chunk_ += plan_.chunk) {
      const int64_t tiles = std::min(plan_.chunk, plan_.seeds - chunk_) / screen_.key_tile;
      encode_keys();
      const int64_t total = known + tiles, kept = std::min(k_, total);
      parallel_for(ceil_div(slab_, plan_.block), plan_.threads, [&](int64_t number, int worker) {
        const int64_t first = number * plan_.block;
        Screen screen = arguments(0, first, 0, tiles);
        screen.lows = scratch_.tile_lows.of(worker);
        screen_.run(screen);
        const int64_t stride = screen.query_tiles * screen_.query_tile;
        float* lows = scratch_.lows.of(worker);
        for (int64_t query = first; query < std::min(first + plan_.block, slab_); ++query) {
          float* best = scratch_.best_lows.of(0) + query * k_;
          std::copy_n(best, known, lows);
          for (int64_t tile = 0; tile < tiles; ++tile) lows[known + tile] = screen.lows[tile * stride + query - first];
          if (total > k_) std::nth_element(lows, lows + k_ - 1, lows + total, std::greater<float>());
          std::copy_n(lows, kept, best);
          if (kept == k_)
            for (int64_t segment = 0; segment < plan_.segments; ++segment)
              raise_limit(*std::min_element(best, best + k_) - 1e-30f, segment, query);
        }
      });
      known = kept;
    }
  }

  void screen() {
    const int64_t tiles = ceil_div(std::min(plan_.chunk, key_count_ - chunk_), screen_.key_tile);
    const int64_t blocks = ceil_div(slab_, plan_.block);
    parallel_for(blocks * plan_.segments, plan_.threads, [&](int64_t number, int worker) {
      const int64_t segment = number / blocks, query = number % blocks * plan_.block;
      const int64_t tile = tiles * segment / plan_.segments;
      Task task{this, query, segment, chunk_ + tile * screen_.key_tile, worker};
      Screen screen = arguments(segment, query, tile, tiles * (segment + 1) / plan_.segments - tile);
      screen.hit = [](void* context, int64_t query, int64_t key, uint64_t mask) {
        Task& task = *static_cast<Task*>(context);
        task.search->hit(task, task.query + query, task.key + key, mask);
      };
      screen.context = &task;
      screen_.run(screen);
      score(task);
    });
  }

  void hit(Task& task, int64_t query, int64_t key, uint64_t mask) {
    const int64_t left = key_count_ - key;  // the last tile is padded
    if (left < 64) mask &= left > 0 ? (uint64_t{1} << left) - 1 : 0;
    for (; mask; mask &= mask - 1) wait(task, query, key + __builtin_ctzll(mask));
  }

  void wait(Task& task, int64_t query, int64_t key) {
    if (task.count == plan_.batch) score(task);
    scratch_.pairs.of(task.worker)[task.count++] = {static_cast<int32_t>(query), static_cast<int32_t>(key)};
  }

  // Gives the waiting pairs their true scores, query by query: their rows and heaps come from far away.
  void score(Task& task) {
    const Pair *pairs = scratch_.pairs.of(task.worker), *end = pairs + task.count;
    Pair* sorted = scratch_.sorted.of(task.worker);
    int32_t* place = scratch_.places.of(task.worker);
    std::fill_n(place, plan_.block + 1, 0);
    for (const Pair* pair = pairs; pair < end; ++pair) ++place[pair->query - task.query + 1];
    for (int64_t i = 1; i < plan_.block; ++i) place[i] += place[i - 1];
    for (const Pair* pair = pairs; pair < end; ++pair) sorted[place[pair->query - task.query]++] = *pair;

    double* dots = scratch_.dots.of(task.worker);
    exact_.dots(queries_ + first_ * row_bytes_, keys_, dtype_, sorted, task.count, depth_, dots,
                scratch_.row.of(task.worker));
    for (int64_t i = 0; i < task.count; ++i) {
      const auto [query, key] = sorted[i];
      double score;
      if (cosine_) {
        const double norms = query_norm(query) * scratch_.key_norms.of(0)[key];
        score = norms > 0 ? dots[i] / norms : 0.0;
      } else {
        score = std::ldexp(dots[i], -exponent(query));
      }
      State& state = this->state(task.segment, query);
      ++state.scored;
      if (push({score, key}, k_, state, heap(task.segment, query)) && plan_.screened)
        set_limit(state.threshold, task.segment, query);
    }
    task.count = 0;
  }

  // The threshold as the screen compares it, rounded down. A key that can only equal it loses to the k before it by its
  // index.
  void set_limit(double threshold, int64_t segment, int64_t query) const {
    const double limit = threshold * scratch_.query_inverse.of(0)[query];
    const double lowered = limit - std::abs(limit) * 0x1p-21 - (limit == 0 ? 0 : 1e-30);
    raise_limit(static_cast<float>(lowered), segment, query);
  }

  void raise_limit(float limit, int64_t segment, int64_t query) const {
    float& known = scratch_.threshold.of(segment)[query];
    known = std::max(known, limit);
  }

  // Without a screen: every key's true score.
  void scan() {
    parallel_for(slab_ * plan_.segments, plan_.threads, [&](int64_t number, int worker) {
      const int64_t segment = number % plan_.segments, query = number / plan_.segments;
      Task task{this, query, segment, 0, worker};
      const int64_t end = key_count_ * (segment + 1) / plan_.segments;
      for (int64_t key = key_count_ * segment / plan_.segments; key < end; ++key) wait(task, query, key);
      score(task);
    });
  }

  void finish(float* scores, int64_t* indices, int64_t* report) {
    parallel_for(ceil_div(slab_, 16), plan_.threads, [&](int64_t task, int worker) {
      for (int64_t query = task * 16; query < std::min(task * 16 + 16, slab_); ++query) {
        float* score = scores + (first_ + query) * k_;
        int64_t* index = indices + (first_ + query) * k_;
        if (query_norm(query) == 0) {
          for (int64_t i = 0; i < k_; ++i) score[i] = 0.0f, index[i] = i;
          continue;
        }
        Scored* list = scratch_.merged.of(worker);
        int64_t count = 0;
        for (int64_t segment = 0; segment < plan_.segments; ++segment) {
          const int64_t found = state(segment, query).found;
          std::copy_n(heap(segment, query), found, list + count);
          count += found;
        }
        std::partial_sort(list, list + k_, list + count, Before());
        const int exponent = this->exponent(query);
        for (int64_t i = 0; i < k_; ++i) {
          score[i] = static_cast<float>(std::ldexp(list[i].score, exponent));
          index[i] = list[i].index;
        }
      }
    });
    for (int64_t query = 0; query < slab_; ++query) {
      int64_t scored = 0;
      for (int64_t segment = 0; segment < plan_.segments; ++segment) scored += state(segment, query).scored;
      report[0] += plan_.screened && 2 * scored > key_count_;
      report[1] += scored;
    }
  }

  const char *queries_, *keys_;
  const Dtype dtype_;
  const int64_t query_count_, key_count_, depth_, k_;
  const bool cosine_;
  const Plan& plan_;
  const Scratch& scratch_;
  const int64_t row_bytes_;
  const TopkExact& exact_ = OFA_SELECT(topk_exact);
  const TopkScreen& screen_ = plan_.screen;
  std::atomic<int64_t> bad_row_{no_row};
  int key_exponent_ = 0;
  int64_t first_ = 0, slab_ = 0, chunk_ = 0, encoded_ = -1;
};

}  // namespace

int64_t workspace(int64_t queries, int64_t keys, int64_t depth, int64_t k, int threads) {
  Workspace measure;
  Scratch(measure, Plan(queries, keys, depth, k, threads), queries, keys, k);
  return measure.bytes();
}

void forward(Tensor queries_tensor, Tensor keys_tensor, int64_t k, bool cosine, Tensor scores_tensor,
             Tensor indices_tensor, Tensor report_tensor, Tensor workspace, int threads) {
  const int64_t queries = queries_tensor.size(0), keys = keys_tensor.size(0), depth = keys_tensor.size(1);
  const Dtype dtype = keys_tensor.dtype();
  if (queries_tensor.dtype() != dtype || (dtype != Dtype::f32 && dtype != Dtype::f16 && dtype != Dtype::bf16))
    throw std::invalid_argument("queries and keys must share one dtype: float32, float16 or bfloat16");
  if (k < 1 || k > keys) throw std::invalid_argument("k must lie in [1, K]");
  if (keys > std::numeric_limits<int32_t>::max()) throw std::invalid_argument("keys must have fewer than 2^31 rows");
  const char* query_rows = static_cast<const char*>(queries_tensor.data("queries", {queries, depth}));
  const char* key_rows = static_cast<const char*>(keys_tensor.data("keys", {keys, depth}));
  float* scores = scores_tensor.data<float>("scores", {queries, k});
  int64_t* indices = indices_tensor.data<int64_t>("indices", {queries, k});
  int64_t* report = report_tensor.data<int64_t>("report", {2});

  const Plan plan(queries, keys, depth, k, threads);
  Workspace memory(workspace);
  const Scratch scratch(memory, plan, queries, keys, k);
  Search(query_rows, key_rows, dtype, queries, keys, depth, k, cosine, plan, scratch).run(scores, indices, report);
}

}  // namespace ofa::topk_similarity
