#include "subword_sums.h"

#include <algorithm>
#include <vector>

#include "parallel.h"

namespace ofa::subword_sums {
namespace {

const int64_t* ascending(Tensor tensor, const char* name, int64_t count, int64_t last) {
  const int64_t* const at = tensor.data<int64_t>(name, {count});
  if (at[0] != 0 || at[count - 1] != last || !std::is_sorted(at, at + count))
    throw std::invalid_argument(std::string(name) + " must ascend from 0 to " + std::to_string(last));
  return at;
}

void check(const int64_t* values, int64_t count, const char* name, int64_t end) {
  for (int64_t i = 0; i < count; ++i)
    if (values[i] < 0 || values[i] >= end)
      throw std::invalid_argument(std::string(name) + " must lie in [0, " + std::to_string(end) + "), got " +
                                  std::to_string(values[i]));
}

int64_t columns_per_task(int64_t d, int threads) {
  return std::max<int64_t>(32, ((d + threads - 1) / threads + 7) / 8 * 8);
}

}  // namespace

void add(Tensor ids, Tensor id_starts, Tensor vectors, Tensor row_starts, Tensor sums, Tensor totals, int threads) {
  if (vectors.dim() != 2) throw std::invalid_argument("vectors must be [rows, d]");
  const int64_t words = id_starts.numel() - 1, d = vectors.size(1), rows = totals.numel();
  if (words < 0) throw std::invalid_argument("id_starts must not be empty");
  int64_t* const subwords = ids.data<int64_t>("ids", {ids.numel()});
  const int64_t* const id_at = ascending(id_starts, "id_starts", words + 1, ids.numel());
  const int64_t* const row_at = ascending(row_starts, "row_starts", words + 1, vectors.size(0));
  const float* const values = vectors.data<float>("vectors", {vectors.size(0), d});
  double* const out = sums.data<double>("sums", {rows, d});
  double* const counts = totals.data<double>("totals", {rows});
  check(subwords, ids.numel(), "ids", rows);

  constexpr int64_t group = 256;
  parallel_for((words + group - 1) / group, threads, [&](int64_t task, int) {
    for (int64_t w = task * group; w < std::min(words, (task + 1) * group); ++w)
      std::sort(subwords + id_at[w], subwords + id_at[w + 1]);
  });
  // A task owns columns, so that every sum is made in the order of the words.
  const int64_t width = columns_per_task(d, threads);
  std::vector<double> word(d);
  parallel_for((d + width - 1) / width, threads, [&](int64_t task, int) {
    const int64_t first = task * width, last = std::min(d, first + width);
    for (int64_t w = 0; w < words; ++w) {
      std::fill(word.begin() + first, word.begin() + last, 0.0);
      for (int64_t row = row_at[w]; row < row_at[w + 1]; ++row)
        for (int64_t j = first; j < last; ++j) word[j] += values[row * d + j];
      const double occurrences = static_cast<double>(row_at[w + 1] - row_at[w]);
      for (int64_t i = id_at[w]; i < id_at[w + 1]; ++i) {
        if (i > id_at[w] && subwords[i] == subwords[i - 1]) continue;
        double* const sum = out + subwords[i] * d;
        for (int64_t j = first; j < last; ++j) sum[j] += word[j];
        if (task == 0) counts[subwords[i]] += occurrences;
      }
    }
  });
}

void add_weighted(Tensor ids, Tensor id_starts, Tensor words, Tensor vectors, Tensor weights, Tensor sums,
                  int threads) {
  if (vectors.dim() != 2) throw std::invalid_argument("vectors must be [rows, d]");
  const int64_t rows = words.numel(), d = vectors.size(1), size = weights.numel(), starts = id_starts.numel();
  if (!starts) throw std::invalid_argument("id_starts must not be empty");
  const int64_t* const subwords = ids.data<int64_t>("ids", {ids.numel()});
  const int64_t* const id_at = ascending(id_starts, "id_starts", starts, ids.numel());
  const int64_t* const word_of = words.data<int64_t>("words", {rows});
  const float* const values = vectors.data<float>("vectors", {rows, d});
  const double* const weight_of = weights.data<double>("weights", {size});
  double* const out = sums.data<double>("sums", {size, d});
  check(subwords, ids.numel(), "ids", size);
  check(word_of, rows, "words", starts - 1);

  const int64_t width = columns_per_task(d, threads);
  parallel_for((d + width - 1) / width, threads, [&](int64_t task, int) {
    const int64_t first = task * width, last = std::min(d, first + width);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = id_at[word_of[row]]; i < id_at[word_of[row] + 1]; ++i) {
        const double weight = weight_of[subwords[i]];
        double* const sum = out + subwords[i] * d;
        for (int64_t j = first; j < last; ++j) sum[j] += values[row * d + j] * weight;
      }
  });
}

}  // namespace ofa::subword_sums
