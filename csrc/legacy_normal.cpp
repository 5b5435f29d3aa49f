#include "legacy_normal.h"

#include <cmath>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <vector>

#include "parallel.h"

namespace ofa::legacy_normal {
namespace {

// MT19937 (Matsumoto & Nishimura 1998).
constexpr int words = 624, middle = 397;
constexpr int tries_per_key = words / 4;  // of two doubles, each of two words
constexpr int keys_at_once = 32;
constexpr int tries_at_once = keys_at_once * tries_per_key;

uint32_t twisted(uint32_t upper, uint32_t lower) {
  return (((upper & 0x80000000u) | (lower & 0x7fffffffu)) >> 1) ^ (-(lower & 1u) & 0x9908b0dfu);
}

void next_key(const uint32_t* key, uint32_t* out) {
  for (int i = 0; i < words - middle; ++i) out[i] = key[i + middle] ^ twisted(key[i], key[i + 1]);
  for (int i = words - middle; i < words - 1; ++i) out[i] = out[i + middle - words] ^ twisted(key[i], key[i + 1]);
  out[words - 1] = out[middle - 1] ^ twisted(key[words - 1], out[0]);
}

uint32_t tempered(uint32_t y) {
  y ^= y >> 11;
  y ^= (y << 7) & 0x9d2c5680u;
  y ^= (y << 15) & 0xefc60000u;
  return y ^ (y >> 18);
}

// 2 u - 1 for u in [0, 1) of 53 bits: exact, whatever the order of its steps.
double coordinate(uint32_t high, uint32_t low) {
  return (static_cast<int32_t>(high >> 5) * 67108864.0 + static_cast<int32_t>(low >> 6)) / 4503599627370496.0 - 1.0;
}

struct Pairs {
  uint32_t drawn[keys_at_once * words];
  double first[tries_at_once], second[tries_at_once], square[tries_at_once];  // x1, x2, x1² + x2²
  int count;

  void draw(uint32_t* key) {
    next_key(key, drawn);
    for (int i = 1; i < keys_at_once; ++i) next_key(&drawn[(i - 1) * words], &drawn[i * words]);
    std::memcpy(key, &drawn[(keys_at_once - 1) * words], words * sizeof(uint32_t));
  }

  // The points within the unit circle, in order.
  void choose() {
    for (uint32_t& word : drawn) word = tempered(word);
    count = 0;
    const uint32_t* at = drawn;
    for (int i = 0; i < tries_at_once; ++i, at += 4) {
      const double one = coordinate(at[0], at[1]), other = coordinate(at[2], at[3]), sum = one * one + other * other;
      first[count] = one, second[count] = other, square[count] = sum;
      count += sum < 1.0 && sum != 0.0;
    }
  }
};

struct Table {
  const uint8_t* kept;
  const double *mean, *std;
  float* out;
  int64_t rows, width;

  void write(const Pairs& pairs, int64_t begin) const {
    int64_t row = begin / width, column = begin % width;
    for (int i = 0; i < pairs.count && row < rows; ++i) {
      const int64_t other_row = row + (column + 1 == width), other = column + 1 == width ? 0 : column + 1;
      const bool is_kept = kept[row], other_is_kept = other_row < rows && kept[other_row];
      if (is_kept || other_is_kept) {
        // The same calls in the same order as numpy's: a result's last bit depends on them.
        const double factor = std::sqrt(-2.0 * std::log(pairs.square[i]) / pairs.square[i]);
        if (is_kept) out[row * width + column] = mean[column] + std[column] * (factor * pairs.second[i]);
        if (other_is_kept) out[other_row * width + other] = mean[other] + std[other] * (factor * pairs.first[i]);
      }
      row = other_row + (other + 1 == width), column = other + 1 == width ? 0 : other + 1;
    }
  }
};

}  // namespace

void rows(Tensor key, Tensor kept, Tensor mean, Tensor std, Tensor out, int threads) {
  const int64_t width = mean.numel();
  Table table{kept.data<uint8_t>("kept", {kept.numel()}),
              mean.data<double>("mean", {width}),
              std.data<double>("std", {width}),
              out.data<float>("out", {kept.numel(), width}),
              kept.numel(),
              width};
  uint32_t state[words];
  std::memcpy(state, key.data<int32_t>("key", {words}), sizeof state);
  while (table.rows && !table.kept[table.rows - 1]) --table.rows;

  // The words come one after the other, and where a block's numbers go is known once those before it are counted. All
  // else is a worker's own.
  std::mutex mutex;
  std::condition_variable counted;
  int64_t blocks = 0, blocks_counted = 0, numbers = 0;
  std::vector<Pairs> workers(threads);
  parallel_for(threads, threads, [&](int64_t, int worker) {
    for (Pairs& pairs = workers[worker];;) {
      std::unique_lock lock(mutex);
      if (numbers >= table.rows * width) return;
      const int64_t block = blocks++;
      pairs.draw(state);
      lock.unlock();
      pairs.choose();
      lock.lock();
      counted.wait(lock, [&] { return blocks_counted == block; });
      const int64_t begin = numbers;
      numbers += 2 * pairs.count;
      ++blocks_counted;
      lock.unlock();
      counted.notify_all();
      table.write(pairs, begin);
    }
  });
}

}  // namespace ofa::legacy_normal
