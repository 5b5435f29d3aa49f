// first_limit and settle_queries on candidates made for them, beside sorts: what the search gives them seldom, too.
#include <algorithm>
#include <random>

#include "topk_similarity/cuda_settle.h"

using namespace ofa;
using namespace ofa::topk_similarity;

#define REQUIRE(condition)                                                                          \
  if (!(condition)) {                                                                               \
    std::fprintf(stderr, "%s: query %d, line %d: " #condition "\n", name.c_str(), query, __LINE__); \
    std::exit(1);                                                                                   \
  }

constexpr int query_count = 5;  // a block and a warp

struct Case {
  int k, splits, capacity, most_kept, depth;
  int kept;      // candidates before
  int listed;    // of each list, at most; -1: any number of them
  int distinct;  // keys; the others are copies
  float slack;   // between bounds and scores, at most; 0: none
  bool cosine;
  bool limited = false;  // whether a limit is known: a bound that the k best reach, one of them no more than that
  bool finite = true;    // all keys
  bool last = false;
};

double dot(const float* a, const float* b, int depth) {
  double sums[8] = {};
  for (int i = 0; i < depth; ++i) sums[i % 8] += static_cast<double>(a[i]) * b[i];
  for (int half = 4; half; half /= 2)
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  return sums[0];
}

float up(double x) {
  const float near = static_cast<float>(x);
  return near < x ? std::nextafter(near, HUGE_VALF) : near;
}

struct Candidate {
  float upper;
  int32_t key;
  double score;
};
bool better(const Candidate& a, const Candidate& b) {
  return a.score > b.score || (a.score == b.score && a.key < b.key);
}

void check(const std::string& name, const Case& c, std::mt19937& random) {
  const auto below = [&](int count) { return static_cast<int>(random() % static_cast<unsigned>(count)); };
  const int key_count = c.most_kept + c.splits * (c.capacity + 1) + 3, lists = query_count * c.splits;
  std::normal_distribution<float> normal;
  std::vector<float> queries(query_count * c.depth), keys(key_count * c.depth);
  for (float& x : queries) x = normal(random);
  for (float& x : keys) x = normal(random);
  std::fill_n(queries.begin() + 3 * c.depth, c.depth, 0.0f);
  for (int i = c.distinct; i < key_count; ++i)
    std::copy_n(keys.begin() + below(c.distinct) * c.depth, c.depth, keys.begin() + i * c.depth);
  if (!c.finite)
    for (int i = 0; i < key_count; i += 2) keys[i * c.depth] = std::nanf("");
  std::vector<double> query_norms(query_count), key_norms(key_count);
  for (int i = 0; i < query_count; ++i)
    query_norms[i] = std::sqrt(dot(&queries[i * c.depth], &queries[i * c.depth], c.depth));
  for (int i = 0; i < key_count; ++i) key_norms[i] = std::sqrt(dot(&keys[i * c.depth], &keys[i * c.depth], c.depth));
  const double unit = *std::max_element(key_norms.begin() + 1, key_norms.end());

  std::vector<uint64_t> listed(static_cast<size_t>(lists) * c.capacity, ~0ull), kept(query_count * c.most_kept, ~0ull);
  std::vector<int32_t> counts(lists), kept_counts(query_count), overflows(query_count, -1);
  std::vector<QueryBound> bounds(query_count, QueryBound{-2.0f, 1, 1, 1});
  std::vector<std::vector<Candidate>> known(query_count);
  std::vector<bool> lost(query_count);
  for (int query = 0; query < query_count; ++query) {
    const double norm = query_norms[query];
    std::vector<int32_t> order(key_count);
    for (int i = 0; i < key_count; ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), random);
    const auto next = [&] {
      const int32_t key = order.back();
      order.pop_back();
      const double product = dot(&queries[query * c.depth], &keys[key * c.depth], c.depth);
      const double quotient = c.cosine ? product / (norm * key_norms[key]) : product;
      const double score = quotient == quotient ? quotient : -HUGE_VAL;
      const double room = c.slack * (below(3) / 2.0);
      const double bound = score == -HUGE_VAL ? 0.1 : score / (c.cosine ? 1 : norm * unit) + room;
      const Candidate made{up(bound), key, score};
      known[query].push_back(made);
      return pack(made.upper, key);
    };
    if (norm == 0) {
      bounds[query].limit = static_cast<float>(infinity);
      continue;
    }
    if (query == 4 && c.kept < 0) kept_counts[query] = overflowed, lost[query] = true;
    if (c.kept > 0) kept_counts[query] = c.kept;
    for (int i = 0; i < kept_counts[query]; ++i) kept[query * c.most_kept + i] = next();
    for (int split = 0; split < c.splits; ++split) {
      const int list = query * c.splits + split, count = c.listed < 0 ? below(c.capacity + 1) : c.listed;
      counts[list] = count;
      for (int i = 0; i < std::min(count, c.capacity); ++i) listed[list * c.capacity + i] = next();
      if (count > c.capacity) lost[query] = true;
    }
    if (c.limited && static_cast<int>(known[query].size()) > c.k) {
      std::partial_sort(known[query].begin(), known[query].begin() + c.k, known[query].end(), better);
      const auto lower = [](const Candidate& a, const Candidate& b) { return a.upper < b.upper; };
      bounds[query].limit = std::min_element(known[query].begin(), known[query].begin() + c.k, lower)->upper;
    }
  }

  std::vector<float> scores(query_count * c.k, -7.0f);
  std::vector<long long> indices(query_count * c.k, -7);
  unsigned long long undecided = 0, rescored = 0, expected_rescored = 0;
  int32_t overflow_count = 0, expected_overflows = 0;
  const Problem problem{
      query_count,   key_count,      c.depth,    c.k,      {query_norms.data(), key_norms.data(), c.cosine},
      scores.data(), indices.data(), &undecided, &rescored};
  const Found found{listed.data(), counts.data(), c.splits, c.capacity, kept.data(), kept_counts.data(), c.most_kept};
  const SettleRoom room(c.splits, c.capacity, c.most_kept);
  const std::vector<QueryBound> old = bounds;
  constexpr int warps = settle_threads / 32;
  emulator::run(dim3(ceil_div(query_count, warps)), settle_threads, warps * room.bytes, [&] {
    settle_queries<float>(queries.data(), keys.data(), problem, 0, query_count, &unit, found, room, c.last,
                          bounds.data(), overflows.data(), &overflow_count);
  });

  for (int query = 0; query < query_count; ++query) {
    std::vector<Candidate> all = known[query], best, reaching;
    std::sort(all.begin(), all.end(), [](const Candidate& a, const Candidate& b) { return a.upper > b.upper; });
    float limit = old[query].limit;
    const int size = static_cast<int>(all.size());
    if (!lost[query]) {
      for (const Candidate& one : all)
        if (size <= c.k || one.upper >= all[c.k - 1].upper) best.push_back(one);
      if (static_cast<int>(best.size()) > c.most_kept) {
        lost[query] = true;
      } else {
        expected_rescored += best.size();
        std::sort(best.begin(), best.end(), better);
        if (static_cast<int>(best.size()) >= c.k) {
          const double reached = best[c.k - 1].score / (c.cosine ? 1 : query_norms[query] * unit);
          limit = std::max(limit, __double2float_rd(reached - 1e-12 * std::abs(reached)));
        }
        for (const Candidate& one : all)
          if (one.upper >= limit) reaching.push_back(one);
        if (static_cast<int>(reaching.size()) > c.most_kept) lost[query] = true;
      }
    }
    if (lost[query]) {
      REQUIRE(kept_counts[query] == overflowed && bounds[query].limit == static_cast<float>(infinity));
      if (c.last) REQUIRE(std::count(overflows.begin(), overflows.end(), query) == 1);
      expected_overflows += c.last;
      continue;
    }
    if (!c.last) {
      std::vector<uint64_t> expected, left(&kept[query * c.most_kept], &kept[query * c.most_kept] + kept_counts[query]);
      for (const Candidate& one : reaching) expected.push_back(pack(one.upper, one.key));
      std::sort(expected.begin(), expected.end());
      std::sort(left.begin(), left.end());
      REQUIRE(left == expected);
      REQUIRE(bounds[query].limit == limit);
      continue;
    }
    expected_rescored += reaching.size() - best.size();
    std::sort(all.begin(), all.end(), better);
    const bool sought = query_norms[query] > 0;
    for (int i = 0; i < c.k; ++i) {
      const float none = sought ? -HUGE_VALF : 0.0f;
      REQUIRE(scores[query * c.k + i] == (i < size ? static_cast<float>(all[i].score) : none));
      REQUIRE(indices[query * c.k + i] == (i < size ? all[i].key : sought ? key_count - 1 : i));
    }
  }
  const int query = -1;
  REQUIRE(overflow_count == expected_overflows);
  REQUIRE(rescored == expected_rescored);
  REQUIRE(undecided == 0);
}

void check_first_limit(int groups, int k, int distinct, std::mt19937& random) {
  const std::string name = "first_limit " + std::to_string(groups) + " " + std::to_string(k);
  std::vector<float> lows(query_count * groups);
  for (float& x : lows) x = (static_cast<int>(random() % distinct) - distinct / 2) / 64.0f;
  std::vector<double> norms{1, 2, 0, infinity, std::nan("")};
  std::vector<QueryBound> bounds(query_count);
  std::vector<int32_t> kept_counts(query_count, 7);
  emulator::run(dim3(2), settle_threads, settle_threads / 32 * groups * sizeof(uint32_t), [&] {
    first_limit(lows.data(), groups, norms.data(), query_count, k, bounds.data(), kept_counts.data());
  });
  for (int query = 0; query < query_count; ++query) {
    std::sort(&lows[query * groups], &lows[query * groups] + groups, std::greater<float>());
    REQUIRE(kept_counts[query] == 0);
    REQUIRE(bounds[query].limit == (query < 2 ? lows[query * groups + k - 1] : HUGE_VALF));
  }
}

int main() {
  std::mt19937 random(7);
  int checked = 0;
  const auto both = [&](const std::string& name, Case c) {
    for (const bool last : {false, true}) {
      c.last = last;
      check(name + (last ? ", last" : ""), c, random);
      ++checked;
    }
  };
  // k, splits, capacity, most_kept, depth, kept, listed, distinct, slack, cosine
  both("k = 1", {1, 3, 20, 64, 9, 5, -1, 1000, 0.2f, true});
  both("k = 128", {128, 4, 60, 256, 9, 100, -1, 1000, 0.1f, false});
  both("exactly k", {12, 3, 4, 64, 9, 0, 4, 1000, 0.2f, true});
  both("one fewer than k", {13, 3, 4, 64, 9, 0, 4, 1000, 0.2f, true});
  both("none", {4, 3, 4, 64, 9, 0, 0, 1000, 0.2f, true});
  both("as many as there is room for", {10, 3, 33, 64, 9, 64, 33, 1000, 0.1f, true});
  both("one more in a list", {10, 3, 33, 64, 9, 64, 34, 1000, 0.1f, true});
  both("more than are kept", {10, 3, 33, 16, 9, 16, 33, 1000, 4.0f, true});
  both("lost before", {10, 3, 33, 64, 9, -1, 20, 1000, 0.1f, false});
  both("equal bounds, as many as are kept", {10, 2, 32, 64, 9, 0, 32, 1, 0.0f, true});
  both("equal bounds, more than are kept", {10, 2, 33, 64, 9, 0, 33, 1, 0.0f, true});
  both("equal scores", {10, 3, 20, 128, 9, 40, -1, 4, 0.1f, false});
  both("bounds that are the scores", {10, 3, 20, 128, 9, 40, -1, 1000, 0.0f, false});
  both("many lists", {5, 70, 3, 64, 9, 7, -1, 1000, 0.1f, true});
  both("long rows", {5, 2, 20, 64, 150, 7, -1, 1000, 0.1f, true});
  both("one column", {5, 2, 20, 64, 1, 7, -1, 1000, 0.1f, false});
  both("a limit that nothing raises", {10, 3, 20, 128, 9, 40, -1, 1000, 0.4f, true, true});
  both("keys that are not finite", {10, 3, 20, 128, 9, 40, -1, 1000, 0.1f, false, false, false});
  for (int i = 0; i < 40; ++i) {
    const int k = 1 + static_cast<int>(random() % 30), most_kept = k + static_cast<int>(random() % 100);
    both("random " + std::to_string(i),
         {k, 1 + static_cast<int>(random() % 9), 1 + static_cast<int>(random() % 40), most_kept,
          1 + static_cast<int>(random() % 90), static_cast<int>(random() % (most_kept + 1)), -1,
          1 + static_cast<int>(random() % (i % 2 ? 5 : 1000)), 0.1f * (random() % 3), random() % 2 == 0,
          random() % 3 == 0});
  }
  for (const int groups : {1, 31, 32, 33, 122, 1024})
    for (const int k : {1, 10, 128})
      for (const int distinct : {1, 3, 1 << 20})
        if (k <= groups) check_first_limit(groups, k, distinct, random), ++checked;
  std::printf("%d cases\n", checked);
}
