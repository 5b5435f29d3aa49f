// The search itself: one object for one call.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "parallel.h"
#include "topk_similarity/plan.h"

namespace ofa::topk_similarity {

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
      for (int64_t segment = 0; segment < plan_.heaps(); ++segment)
        std::fill_n(scratch_.states.of(segment), slab_, State{});
      if (plan_.screened) {
        encode_queries();
        chunk_ = 0;
        if (plan_.groups) revisit_first_keys();
        for (; chunk_ < key_count_; chunk_ += plan_.chunk) screen_keys();
      } else {
        scan();
      }
      finish(scores, indices, report);
    }
  }

 private:
  static constexpr int64_t group = 512;  // rows of one task
  static constexpr int64_t no_row = std::numeric_limits<int64_t>::max();
  static constexpr int64_t settled = 64;  // queries of one task
  static constexpr int most_lanes = 64;   // queries of a tile

  State& state(int64_t segment, int64_t query) const { return scratch_.states.of(segment)[query]; }
  Scored* heap(int64_t segment, int64_t query) const { return scratch_.heaps.of(segment) + query * k_; }
  float& threshold(int64_t query) const { return scratch_.threshold.of(0)[query]; }
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

  void encode_queries() {
    const int tile = screen_.query_tile;
    const double roundoff = screen_.rounding + depth_ * screen_.rounding_per_term;
    constexpr double slack = 0x1p-20;  // covers the rounding of the comparison itself and of the float64 scores
    parallel_for(ceil_div(slab_, tile), plan_.threads, [&](int64_t task, int worker) {
      const int64_t at = task * tile, count = std::min<int64_t>(tile, slab_ - at);
      double* factors = scratch_.factors.of(worker);
      for (int64_t i = 0; i < count; ++i) factors[i] = query_norm(at + i) > 0 ? 1 / query_norm(at + i) : 0;
      char* codes = scratch_.query_codes.of(0) + at * plan_.code_bytes;
      const Encoded out{codes, scratch_.query_scale.of(0) + at, scratch_.query_residual.of(0) + at,
                        scratch_.offset.of(0) + at};
      screen_.encode_queries(queries_ + (first_ + at) * row_bytes_, dtype_, count, depth_, factors, out,
                             scratch_.row.of(worker));
      screen_.pack(codes, nullptr, count, depth_, scratch_.query_tiles.of(0) + at * plan_.code_bytes);
      for (int64_t q = at; q < at + tile; ++q) {
        const double scale = q < slab_ ? scratch_.query_scale.of(0)[q] : 0, residual = scratch_.query_residual.of(0)[q];
        const bool zero = scale == 0;
        // |q k - q' k'| <= |q - q'| |k| + |q'| |k - k'|, in units of the query's scale
        scratch_.slope.of(0)[q] = zero ? 0 : (residual + (roundoff + slack) * (1 + residual)) / scale;
        scratch_.reach.of(0)[q] = zero ? 0 : (1 + residual) * (1 + slack) / scale;
        const double unit = zero || cosine_ ? scale : scale * std::ldexp(query_norm(q), key_exponent_ - exponent(q));
        scratch_.query_inverse.of(0)[q] = zero ? 0 : 1 / unit;
        threshold(q) = zero ? infinity : -infinity;
        if (q >= slab_) scratch_.offset.of(0)[q] = 0;
      }
    });
  }

  void encode_keys() {
    if (encoded_ == chunk_) return;
    encoded_ = chunk_;
    const int tile = screen_.key_tile;
    const int64_t size = chunk_size(), tiles = ceil_div(size, tile), together = ceil_div(64, tile);
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

  // Queries from `query` on, and encoded keys from tile `tile` of the chunk on.
  Screen arguments(int64_t query, int64_t queries, int64_t tile, int64_t tiles) const {
    Screen screen{};
    screen.queries = scratch_.query_tiles.of(0) + query * plan_.code_bytes;
    screen.offset = scratch_.offset.of(0) + query;
    screen.threshold = scratch_.threshold.of(0) + query;
    screen.slope = scratch_.slope.of(0) + query;
    screen.reach = scratch_.reach.of(0) + query;
    screen.query_tiles = ceil_div(std::min(queries, slab_ - query), screen_.query_tile);
    screen.keys = scratch_.key_codes.of(0) + tile * screen_.key_tile * plan_.code_bytes;
    screen.tiles = scratch_.tiles.of(0) + tile;
    screen.key_tiles = tiles;
    screen.depth = depth_;
    screen.lows_stride = plan_.groups * screen_.query_tile;
    screen.group = static_cast<int>(plan_.group);
    screen.take = [](void* context, const Hits& hits, int64_t count, int64_t query, int64_t key) {
      const Visit& visit = *static_cast<const Visit*>(context);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t lane = hits.pair[i] & 255;
        visit.search->wait(visit.first_query + (visit.list ? visit.list[lane] : query + lane),
                           visit.first_key + key + (hits.pair[i] >> 8), hits.upper[i], visit.worker);
      }
    };
    return screen;
  }

  int64_t chunk_size() const { return std::min(chunk_ < plan_.first ? plan_.first : plan_.chunk, key_count_ - chunk_); }
  int64_t chunk_tiles() const { return ceil_div(chunk_size(), screen_.key_tile); }

  // Of every query, the largest lower bound of a score in each group of the first keys; from those a threshold; then
  // the candidates among them, where the bounds leave any possible.
  void revisit_first_keys() {
    encode_keys();
    const int64_t tiles = chunk_tiles(), blocks = ceil_div(slab_, plan_.block);
    const int64_t parts = std::min(plan_.groups, std::max<int64_t>(plan_.segments, plan_.first / plan_.cached));
    parallel_for(blocks * parts, plan_.threads, [&](int64_t number, int) {
      const int64_t part = number / blocks, query = number % blocks * plan_.block;
      const int64_t begin = plan_.groups * part / parts * plan_.group,
                    end = std::min(tiles, plan_.groups * (part + 1) / parts * plan_.group);
      Screen screen = arguments(query, plan_.block, begin, end - begin);
      screen.lows = lows(query, begin);
      screen_.run(screen);
    });
    parallel_for(ceil_div(slab_, plan_.visitors), plan_.threads, [&](int64_t number, int worker) {
      const int64_t begin = number * plan_.visitors, end = std::min(slab_, begin + plan_.visitors);
      set_thresholds(begin, end);
      for (int64_t tile = 0; tile < tiles; tile += plan_.group) visit(begin, end, tile, worker);
    });
    settle_all();
    chunk_ = plan_.first;
  }

  float* lows(int64_t query, int64_t tile) const {
    return scratch_.lows.of(0) + query * plan_.groups + tile / plan_.group * screen_.query_tile;
  }

  // As many groups as k hold a key whose score is no lower than this.
  void set_thresholds(int64_t begin, int64_t end) const {
    float found[most_lanes];
    for (int64_t query = begin; query < end; ++query) {
      const int64_t lane = (query - begin) % screen_.query_tile;
      if (lane == 0) screen_.kth_largest(scratch_.lows.of(0) + query * plan_.groups, plan_.groups, k_, found);
      raise_threshold(query, found[lane] - 1e-30f);
    }
  }

  // The candidates among the keys of a chunk, scored at once for the thresholds of those that follow.
  void screen_keys() {
    encode_keys();
    parallel_for(ceil_div(slab_, plan_.block), plan_.threads, [&](int64_t number, int worker) {
      const int64_t query = number * plan_.block;
      Visit visit{this, worker, chunk_, query, nullptr};
      Screen screen = arguments(query, plan_.block, 0, chunk_tiles());
      screen.context = &visit;
      screen_.run(screen);
    });
    settle_all();
  }

  // Multiplies a group of keys again, by those of the queries [begin, end) that may have candidates in it.
  void visit(int64_t begin, int64_t end, int64_t tile, int worker) {
    Screen screen = arguments(begin, end - begin, tile, std::min(plan_.group, chunk_tiles() - tile));
    screen.lows = lows(begin, tile);
    int32_t* list = scratch_.visitors.of(worker);
    const int64_t count = screen_.visitors(screen, list);
    screen.lows = nullptr;
    float threshold[most_lanes], slope[most_lanes], reach[most_lanes];
    int32_t offset[most_lanes];
    char* tile_of_queries = scratch_.visiting.of(worker);
    for (int64_t at = 0; at < count; at += screen_.query_tile) {
      const int64_t some = std::min<int64_t>(screen_.query_tile, count - at);
      Visit visit{this, worker, tile * screen_.key_tile, begin, list + at};
      for (int64_t i = 0; i < screen_.query_tile; ++i) {
        const int64_t query = begin + list[at + std::min(i, some - 1)];
        threshold[i] = i < some ? this->threshold(query) : infinity;
        slope[i] = scratch_.slope.of(0)[query];
        reach[i] = scratch_.reach.of(0)[query];
        offset[i] = scratch_.offset.of(0)[query];
      }
      screen_.pack(scratch_.query_codes.of(0) + begin * plan_.code_bytes, list + at, some, depth_, tile_of_queries);
      screen.queries = tile_of_queries;
      screen.threshold = threshold, screen.slope = slope, screen.reach = reach, screen.offset = offset;
      screen.query_tiles = 1;
      screen.context = &visit;
      screen_.run(screen);
    }
  }

  void wait(int64_t query, int64_t key, float upper, int worker) {
    if (key >= key_count_) return;  // the last tile is filled up
    State& state = this->state(0, query);
    if (state.waiting == plan_.room) {
      sort_out(query);
      settle(query, worker);
    }
    scratch_.candidates.of(0)[query * plan_.room + state.waiting++] = {upper, static_cast<int32_t>(key)};
  }

  // Puts the k waiting candidates with the highest bounds first, and asks for their rows, which are far away.
  void sort_out(int64_t query) const {
    Candidate *list = scratch_.candidates.of(0) + query * plan_.room, *end = list + state(0, query).waiting;
    if (end - list > k_) std::nth_element(list, list + k_, end, Higher());
    for (const Candidate* candidate = list; candidate < std::min(end, list + k_); ++candidate)
      for (int64_t at = 0; at < row_bytes_; at += 64) __builtin_prefetch(keys_ + candidate->key * row_bytes_ + at);
  }

  // Scores the waiting candidates: after the first k, few of the others are still possible.
  void settle(int64_t query, int worker) {
    const Candidate *list = scratch_.candidates.of(0) + query * plan_.room, *end = list + state(0, query).waiting;
    int32_t* keys = scratch_.listed.of(worker);
    for (const Candidate *candidate = list, *middle = std::min(end, list + k_); candidate < end; middle = end) {
      int64_t count = 0;
      // A key whose score equals the threshold may have a lower index than the last of the best.
      for (; candidate < middle; ++candidate) {
        keys[count] = candidate->key;
        count += candidate->upper >= threshold(query);
      }
      score(query, 0, keys, count, worker);
      const State& state = this->state(0, query);
      if (state.found == k_) set_threshold(state.threshold, query);
    }
    state(0, query).waiting = 0;
  }

  void settle_all() {
    parallel_for(ceil_div(slab_, settled), plan_.threads, [&](int64_t number, int worker) {
      const int64_t end = std::min(slab_, (number + 1) * settled);
      sort_out(number * settled);
      for (int64_t query = number * settled; query < end; ++query) {
        if (query + 1 < end) sort_out(query + 1);
        settle(query, worker);
      }
    });
  }

  void score(int64_t query, int64_t segment, const int32_t* keys, int64_t count, int worker) {
    double* dots = scratch_.dots.of(worker);
    exact_.dots(queries_ + (first_ + query) * row_bytes_, keys_, dtype_, keys, count, depth_, dots,
                scratch_.row.of(worker));
    State& state = this->state(segment, query);
    state.scored += count;
    for (int64_t i = 0; i < count; ++i) {
      double score;
      if (cosine_) {
        const double norms = query_norm(query) * scratch_.key_norms.of(0)[keys[i]];
        score = norms > 0 ? dots[i] / norms : 0.0;
      } else {
        score = std::ldexp(dots[i], -exponent(query));
      }
      push({score, keys[i]}, k_, state, heap(segment, query));
    }
  }

  // The score in the units of bounds, rounded down.
  void set_threshold(double score, int64_t query) const {
    const double limit = score * scratch_.query_inverse.of(0)[query];
    const double lowered = limit - std::abs(limit) * 0x1p-21 - (limit == 0 ? 0 : 1e-30);
    raise_threshold(query, static_cast<float>(lowered));
  }

  void raise_threshold(int64_t query, float limit) const { threshold(query) = std::max(threshold(query), limit); }

  // Without a screen: every key's true score.
  void scan() {
    parallel_for(slab_ * plan_.segments, plan_.threads, [&](int64_t number, int worker) {
      const int64_t segment = number % plan_.segments, query = number / plan_.segments;
      const int64_t end = key_count_ * (segment + 1) / plan_.segments;
      int32_t* keys = scratch_.listed.of(worker);
      for (int64_t key = key_count_ * segment / plan_.segments; key < end;) {
        int64_t count = 0;
        while (count < plan_.room && key < end) keys[count++] = static_cast<int32_t>(key++);
        score(query, segment, keys, count, worker);
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
        Scored* list = scratch_.merged.of(worker);
        int64_t count = 0;
        for (int64_t segment = 0; segment < plan_.heaps(); ++segment) {
          const int64_t found = state(segment, query).found;
          std::copy_n(heap(segment, query), found, list + count);
          count += found;
        }
        if (count > k_) std::nth_element(list, list + k_, list + count, Before());
        std::sort(list, list + k_, Before());
        const int exponent = this->exponent(query);
        for (int64_t i = 0; i < k_; ++i) {
          score[i] = static_cast<float>(std::ldexp(list[i].score, exponent));
          index[i] = list[i].index;
        }
      }
    });
    for (int64_t query = 0; query < slab_; ++query) {
      int64_t scored = 0;
      for (int64_t segment = 0; segment < plan_.heaps(); ++segment) scored += state(segment, query).scored;
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

}  // namespace ofa::topk_similarity
