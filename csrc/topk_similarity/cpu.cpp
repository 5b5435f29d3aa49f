#include <algorithm>
#include <atomic>
#include <cmath>
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

  struct Task {
    Search* search;
    int64_t query, segment, key;  // the first query in the slab, the first key in the table
    int worker;
  };

  State& state(int64_t segment, int64_t query) const { return scratch_.states.of(segment)[query]; }
  Candidate* candidates(int64_t segment, int64_t query) const {
    return scratch_.candidates.of(segment) + query * plan_.capacity;
  }
  double* lows(int64_t segment, int64_t query) const { return scratch_.lows.of(segment) + query * k_; }
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
      std::fill_n(scratch_.states.of(segment), slab_, State{-infinity, 0, 0, 0, 0});
  }

  void encode_queries() {
    const int tile = screen_.query_tile;
    const double roundoff = (depth_ + 16) * 0x1p-24;
    const double arithmetic = screen_.exact_products ? 0.0 : roundoff / (1.0 - roundoff);
    constexpr double slack = 0x1p-20;  // covers the rounding of the comparison itself and of the float64 scores
    parallel_for(ceil_div(slab_, tile), plan_.threads, [&](int64_t task, int worker) {
      const int64_t at = task * tile, count = std::min<int64_t>(tile, slab_ - at);
      const Encoded out{scratch_.query_codes.of(0) + at * plan_.code_bytes, scratch_.query_scale.of(0) + at,
                        scratch_.query_residual.of(0) + at, scratch_.offset.of(0) + at};
      screen_.encode(queries_ + (first_ + at) * row_bytes_, dtype_, count, depth_,
                     scratch_.query_norms.of(0) + first_ + at, tile, out, scratch_.row.of(worker));
      for (int64_t q = at; q < at + tile; ++q) {
        const double scale = scratch_.query_scale.of(0)[q], residual = scratch_.query_residual.of(0)[q];
        const bool zero = scale == 0;
        // |q k - q' k'| <= |q - q'| |k| + |q'| |k - k'|, in units of the query's scale
        scratch_.slope.of(0)[q] = zero ? 0 : (residual + arithmetic + slack * (1 + residual)) / scale;
        scratch_.reach.of(0)[q] = zero ? 0 : (1 + residual) * (1 + slack) / scale;
        scratch_.query_unit.of(0)[q] =
            zero || cosine_ ? scale : scale * std::ldexp(query_norm(q), key_exponent_ - exponent(q));
        scratch_.query_inverse.of(0)[q] = zero ? 0 : 1 / scratch_.query_unit.of(0)[q];
        for (int64_t segment = 0; segment < plan_.segments; ++segment)
          scratch_.threshold.of(segment)[q] = zero ? infinity : -infinity;
      }
    });
  }

  void encode_keys() {
    const int tile = screen_.key_tile;
    const int64_t size = std::min(plan_.chunk, key_count_ - chunk_);
    parallel_for(ceil_div(size, tile), plan_.threads, [&](int64_t task, int worker) {
      const int64_t at = task * tile, count = std::min<int64_t>(tile, size - at);
      if (cosine_ && first_ == 0) measure(keys_, chunk_ + at, count, scratch_.key_norms.of(0), worker);
      const double* norms = scratch_.key_norms.of(0) + chunk_ + at;
      float *scale = scratch_.key_scale.of(0) + at, *residual = scratch_.key_residual.of(0) + at,
            *norm = scratch_.key_norm.of(0) + at;
      screen_.encode(keys_ + (chunk_ + at) * row_bytes_, dtype_, count, depth_, norms, tile,
                     Encoded{scratch_.key_codes.of(0) + at * plan_.code_bytes, scale, residual, nullptr},
                     scratch_.row.of(worker));
      float largest_norm = 0, largest_residual = 0;
      for (int64_t i = 0; i < tile; ++i) {
        const double relative = scale[i] == 0 ? 0 : cosine_ ? 1 : std::ldexp(norms[i], -key_exponent_);
        scale[i] = static_cast<float>(scale[i] * relative);
        norm[i] = relative == 0 ? 0.0f : static_cast<float>(std::max(relative, 0x1p-60) * (1 + 0x1p-22));
        residual[i] = static_cast<float>(norm[i] * residual[i] * (1 + 0x1p-22));
        largest_norm = std::max(largest_norm, norm[i]);
        largest_residual = std::max(largest_residual, residual[i]);
      }
      scratch_.tile_norm.of(0)[task] = largest_norm;
      scratch_.tile_residual.of(0)[task] = largest_residual;
    });
    check_finite("keys");
  }

  void screen() {
    const int64_t tiles = ceil_div(std::min(plan_.chunk, key_count_ - chunk_), screen_.key_tile);
    const int64_t blocks = ceil_div(slab_, plan_.block);
    parallel_for(blocks * plan_.segments, plan_.threads, [&](int64_t number, int worker) {
      const int64_t segment = number / blocks, query = number % blocks * plan_.block;
      const int64_t tile = tiles * segment / plan_.segments, key = tile * screen_.key_tile;
      Task task{this, query, segment, key, worker};
      Screen arguments;
      arguments.queries = scratch_.query_codes.of(0) + query * plan_.code_bytes;
      arguments.offset = scratch_.offset.of(0) + query;
      arguments.threshold = scratch_.threshold.of(segment) + query;
      arguments.slope = scratch_.slope.of(0) + query;
      arguments.reach = scratch_.reach.of(0) + query;
      arguments.query_tiles = ceil_div(std::min(plan_.block, slab_ - query), screen_.query_tile);
      arguments.keys = scratch_.key_codes.of(0) + key * plan_.code_bytes;
      arguments.key_scale = scratch_.key_scale.of(0) + key;
      arguments.tile_norm = scratch_.tile_norm.of(0) + tile;
      arguments.tile_residual = scratch_.tile_residual.of(0) + tile;
      arguments.key_tiles = tiles * (segment + 1) / plan_.segments - tile;
      arguments.depth = depth_;
      arguments.hit = [](void* context, int64_t query, int64_t key, uint64_t mask, const float* products) {
        const Task& task = *static_cast<Task*>(context);
        task.search->hit(task, task.query + query, task.key + key, mask, products);
      };
      arguments.context = &task;
      screen_.run(arguments);
    });
  }

  void hit(const Task& task, int64_t query, int64_t key, uint64_t mask, const float* products) {
    State& state = this->state(task.segment, query);
    const float *scale = scratch_.key_scale.of(0) + key, *norm = scratch_.key_norm.of(0) + key,
                *residual = scratch_.key_residual.of(0) + key;
    const double unit = scratch_.query_unit.of(0)[query], slope = unit * (1 + 0x1p-20) * scratch_.slope.of(0)[query],
                 reach = unit * (1 + 0x1p-20) * scratch_.reach.of(0)[query];
    const auto candidate = [&](uint64_t bits) {
      const int at = __builtin_ctzll(bits);
      return Candidate{unit * products[at] * scale[at], static_cast<float>(slope * norm[at] + reach * residual[at]),
                       static_cast<int32_t>(chunk_ + key + at)};
    };
    const int64_t left = key_count_ - chunk_ - key;  // the last tile is padded
    if (left < 64) mask &= left > 0 ? (uint64_t{1} << left) - 1 : 0;
    double floor = -infinity;
    if (__builtin_popcountll(mask) > 2 * k_) {  // as in the first tile: k of these keys rule out most of the others
      double low[64];
      int64_t count = 0;
      for (uint64_t bits = mask; bits; bits &= bits - 1) low[count++] = candidate(bits).low();
      std::nth_element(low, low + k_ - 1, low + count, std::greater<double>());
      floor = low[k_ - 1];
    }
    for (; mask; mask &= mask - 1) {
      const Candidate next = candidate(mask);
      // A key that can only equal the threshold loses to the k before it by its index.
      if (next.high() <= state.threshold || next.high() < floor) continue;
      add(next, state, task.segment, query, task.worker);
    }
  }

  void add(const Candidate& candidate, State& state, int64_t segment, int64_t query, int worker) {
    candidates(segment, query)[state.count++] = candidate;
    if (raise(candidate.low(), k_, state, lows(segment, query))) set_limit(state, segment, query);
    if (state.count == plan_.capacity) compact(state, segment, query, worker);
  }

  // The threshold as the screen compares it, rounded down.
  void set_limit(const State& state, int64_t segment, int64_t query) const {
    if (!plan_.screened) return;
    const double limit = state.threshold * scratch_.query_inverse.of(0)[query];
    const double lowered = limit - std::abs(limit) * 0x1p-21 - (limit == 0 ? 0 : 1e-30);
    scratch_.threshold.of(segment)[query] = static_cast<float>(lowered);
  }

  // Makes room: drops what the bounds rule out and, where that is little, decides the rest exactly.
  void compact(State& state, int64_t segment, int64_t query, int worker) {
    Candidate* list = candidates(segment, query);
    state.count = drop(list, state.count, state.threshold);
    if (state.count <= (plan_.capacity + k_) / 2) return;
    const int64_t rescored = rescore(list, state.count, query, worker);
    state.rescored += rescored;
    state.undecided += rescored > 0;
    std::nth_element(list, list + k_ - 1, list + state.count, Before());
    state.count = k_;
    double* heap = lows(segment, query);
    for (int64_t i = 0; i < k_; ++i) heap[i] = list[i].score;
    std::make_heap(heap, heap + k_, std::greater<double>());
    state.threshold = heap[0];
    set_limit(state, segment, query);
  }

  static int64_t drop(Candidate* list, int64_t count, double threshold) {
    return std::remove_if(list, list + count, [=](const Candidate& c) { return c.high() < threshold; }) - list;
  }

  // Gives every candidate its true score.
  int64_t rescore(Candidate* list, int64_t count, int64_t query, int worker) const {
    int32_t *positions = scratch_.positions.of(worker), *indices = scratch_.indices.of(worker);
    int64_t open = 0;
    for (int64_t i = 0; i < count; ++i)
      if (list[i].error != 0) {
        positions[open] = static_cast<int32_t>(i);
        indices[open++] = list[i].index;
      }
    const double* scores = true_scores(indices, open, query, worker);
    for (int64_t i = 0; i < open; ++i) list[positions[i]] = {scores[i], 0.0f, indices[i]};
    return open;
  }

  const double* true_scores(const int32_t* indices, int64_t count, int64_t query, int worker) const {
    double *dots = scratch_.dots.of(worker), *wide = scratch_.wide.of(worker);
    exact_.widen(queries_ + (first_ + query) * row_bytes_, dtype_, depth_, wide);
    exact_.dots(wide, keys_, dtype_, indices, count, depth_, dots, scratch_.row.of(worker));
    const double* key_norms = scratch_.key_norms.of(0);
    const double norm = query_norm(query), unit = std::ldexp(1.0, -exponent(query));
    for (int64_t i = 0; i < count; ++i) {
      const double norms = norm * key_norms[indices[i]];
      dots[i] = !cosine_ ? dots[i] * unit : norms > 0 ? dots[i] / norms : 0.0;
    }
    return dots;
  }

  // Without a screen: every key's true score.
  void scan() {
    parallel_for(slab_ * plan_.segments, plan_.threads, [&](int64_t task, int worker) {
      const int64_t segment = task % plan_.segments, query = task / plan_.segments;
      State& state = this->state(segment, query);
      int32_t* indices = scratch_.indices.of(worker);
      const int64_t end = key_count_ * (segment + 1) / plan_.segments;
      for (int64_t key = key_count_ * segment / plan_.segments; key < end;) {
        const int64_t size = std::min(end - key, plan_.capacity);
        for (int64_t i = 0; i < size; ++i) indices[i] = static_cast<int32_t>(key + i);
        const double* scores = true_scores(indices, size, query, worker);
        for (int64_t i = 0; i < size; ++i) {
          if (scores[i] <= state.threshold) continue;
          add({scores[i], 0.0f, static_cast<int32_t>(key + i)}, state, segment, query, worker);
        }
        key += size;
        state.rescored += size;
      }
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
        Candidate* list = scratch_.merged.of(worker);
        int64_t count = 0;
        double threshold = -infinity;
        for (int64_t segment = 0; segment < plan_.segments; ++segment) {
          const State& part = state(segment, query);
          std::copy_n(candidates(segment, query), part.count, list + count);
          count += part.count;
          threshold = std::max(threshold, part.threshold);
        }
        count = drop(list, count, threshold);
        state(0, query).rescored += rescore(list, count, query, worker);
        std::partial_sort(list, list + k_, list + count, Before());
        const int exponent = this->exponent(query);
        for (int64_t i = 0; i < k_; ++i) {
          score[i] = static_cast<float>(std::ldexp(list[i].score, exponent));
          index[i] = list[i].index;
        }
      }
    });
    for (int64_t query = 0; query < slab_; ++query) {
      int64_t undecided = 0;
      for (int64_t segment = 0; segment < plan_.segments; ++segment) {
        undecided += state(segment, query).undecided;
        report[1] += state(segment, query).rescored;
      }
      report[0] += undecided > 0;
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
  int64_t first_ = 0, slab_ = 0, chunk_ = 0;
};

}  // namespace

int64_t workspace(int64_t queries, int64_t keys, int64_t depth, int64_t k, int threads) {
  Workspace measure;
  Scratch(measure, Plan(queries, keys, depth, k, threads), queries, keys, depth, k);
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
  const Scratch scratch(memory, plan, queries, keys, depth, k);
  Search(query_rows, key_rows, dtype, queries, keys, depth, k, cosine, plan, scratch).run(scores, indices, report);
}

}  // namespace ofa::topk_similarity
