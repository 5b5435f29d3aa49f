// csrc/ptx.h for the emulator: what each instruction does according to the PTX manual.
#pragma once

#include <cuda_runtime.h>

namespace ofa {

inline void copy_async(void* shared, const void* global) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    emulator::fail("a copy that is not aligned to 16 bytes");
  emulator::fiber().open.push_back({shared, global, 16});
}
inline void copy_async_if(bool present, void* shared, const void* global) {
  if (present) return copy_async(shared, global);
  if (reinterpret_cast<uintptr_t>(shared) % 16) emulator::fail("a copy that is not aligned to 16 bytes");
  static const uint8_t zeros[16] = {};
  emulator::fiber().open.push_back({shared, zeros, 16});
}
inline void commit_copies() {
  auto& fiber = emulator::fiber();
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}
template <int pending>
void wait_for_copies() {
  auto& groups = emulator::fiber().groups;
  while (groups.size() > pending) {
    for (const auto& copy : groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
    groups.erase(groups.begin());
  }
}

// load(m, address of row i of matrix m) for each of four matrices.
template <class Load>
void load_matrices(const char* instruction, const void* row, const Load& load) {
  emulator::Warp::Deposit own{};
  own.value = reinterpret_cast<uintptr_t>(row);
  const auto* const all = emulator::exchange(instruction, own);
  for (int m = 0; m < 4; ++m) {
    unsigned banks = 0;
    for (int i = 0; i < 8; ++i) banks |= 1u << all[8 * m + i].value % 128 / 16;
    if (banks != 0xff) emulator::fail("rows of a matrix in the same banks of shared memory");
    load(m, [&](int i) { return reinterpret_cast<const uint8_t*>(all[8 * m + i].value); });
  }
}
inline void load_matrices(uint32_t (&word)[4], const void* row) {
  const int lane = emulator::block()->now % 32;
  load_matrices("ldmatrix", row, [&](int m, auto at) { std::memcpy(&word[m], at(lane / 4) + 4 * (lane % 4), 4); });
}
inline void load_matrices_transposed(uint32_t (&word)[4], const void* row) {
  const int lane = emulator::block()->now % 32;
  load_matrices("ldmatrix.trans", row, [&](int m, auto at) {
    uint16_t half[2];
    for (int i = 0; i < 2; ++i) std::memcpy(&half[i], at(2 * (lane % 4) + i) + 2 * (lane / 4), 2);
    std::memcpy(&word[m], half, 4);
  });
}

inline void write_zeros(void* to) {
  if (reinterpret_cast<uintptr_t>(to) % 16) emulator::fail("zeros that are not aligned to 16 bytes");
  std::memset(to, 0, 16);
}

struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(Bfloat x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
inline float to_float(Half x) { return static_cast<float>(same_bits<_Float16>(x.bits)); }

template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline Half from_float<Half>(float x) {
  return {same_bits<uint16_t>(static_cast<_Float16>(x))};
}
template <>
inline Bfloat from_float<Bfloat>(float x) {
  if (x != x) return {0x7fff};
  const uint32_t bits = __float_as_uint(x);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <class T>
uint32_t from_floats(float first, float second) {
  return from_float<T>(first).bits | static_cast<uint32_t>(from_float<T>(second).bits) << 16;
}

inline uint32_t to_tf32(float x) {
  const uint32_t bits = __float_as_uint(x);
  return std::isfinite(x) ? (bits + 0x1000) & ~0x1fffu : bits;
}

// Products of the elements of two words.
template <class T>
float word_product(uint32_t a, uint32_t b) {
  const auto element = [](uint32_t word, int i) { return to_float(T{static_cast<uint16_t>(word >> 16 * i)}); };
  return element(a, 0) * element(b, 0) + element(a, 1) * element(b, 1);
}
template <>
inline float word_product<float>(uint32_t a, uint32_t b) {  // tensor cores do not look at the last 13 bits
  return __uint_as_float(a & ~0x1fffu) * __uint_as_float(b & ~0x1fffu);
}
template <>
inline float word_product<int8_t>(uint32_t a, uint32_t b) {
  int sum = 0;
  for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
  return static_cast<float>(sum);
}

template <class T, class Sum>
void product(Sum (&sum)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
  const auto* const all = emulator::exchange("mma", {{left[0], left[1], left[2], left[3], right0, right1}, 0});
  const int lane = emulator::block()->now % 32, row = lane / 4;
  for (int j = 0; j < 4; ++j) {
    const int column = lane % 4 * 2 + j % 2, lower = j / 2;
    Sum total = 0;
    for (int half = 0; half < 2; ++half)
      for (int i = 0; i < 4; ++i)
        total += static_cast<Sum>(
            word_product<T>(all[4 * row + i].words[lower + 2 * half], all[4 * column + i].words[4 + half]));
    sum[j] += total;
  }
}
template <class T>
void multiply(float (&sum)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
  product<T>(sum, left, right0, right1);
}
inline void multiply_bytes(int32_t (&sum)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
  product<int8_t>(sum, left, right0, right1);
}

inline uint8_t* dynamic_shared() { return emulator::block()->shared; }
inline uint8_t* dynamic_shared_1024() { return dynamic_shared(); }

// Dynamic shared memory lies behind a kilobyte of other shared memory.
constexpr uint32_t dynamic_from = 1024;
inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(static_cast<const uint8_t*>(shared) - dynamic_shared()) + dynamic_from;
}

#define OFA_WARPGROUPS

inline emulator::Barrier& barrier_at(uint64_t* at) {
  const auto found = emulator::block()->barriers.find(at);
  if (found == emulator::block()->barriers.end()) emulator::fail("a barrier that was not started");
  return found->second;
}
inline void end_phase(emulator::Barrier& barrier) {
  if (barrier.arrived < barrier.arrivals || barrier.bytes) return;
  barrier.arrived = 0;
  ++barrier.phase;
  emulator::block()->idle = 0;
}
inline void start_barrier(uint64_t* at, int arrivals) {
  if (reinterpret_cast<uintptr_t>(at) % 8) emulator::fail("a barrier that is not aligned to 8 bytes");
  emulator::block()->barriers[at].arrivals = arrivals;
}
inline void publish_barriers() {}
inline void arrive_for_bytes(uint64_t* at, int bytes) {
  emulator::Barrier& barrier = barrier_at(at);
  if (++barrier.arrived > barrier.arrivals) emulator::fail("more arrivals than a barrier expects");
  barrier.bytes += bytes;
  emulator::block()->idle = 0;
  end_phase(barrier);
}
inline void arrive(uint64_t* at) { arrive_for_bytes(at, 0); }
inline void copy_bulk(void* shared, const void* global, int bytes, uint64_t* at) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16 || bytes % 16)
    emulator::fail("a copy that is not aligned to 16 bytes");
  barrier_at(at).copies.push_back({shared, global, bytes});
}
inline void wait_for_phase(uint64_t* at, uint32_t number) {
  emulator::Barrier& barrier = barrier_at(at);
  const auto ended = [&] {
    if ((barrier.phase & 1) != (number & 1)) return true;
    for (const auto& copy : barrier.copies) std::memcpy(copy.to, copy.from, copy.bytes), barrier.bytes -= copy.bytes;
    barrier.copies.clear();
    end_phase(barrier);
    return (barrier.phase & 1) != (number & 1);
  };
  emulator::wait_for(emulator::block()->threads, ended);
}

template <int count>
void keep_registers() {
  emulator::exchange("setmaxnreg", {});
}
template <int count>
void take_registers() {
  emulator::exchange("setmaxnreg", {});
}

inline void publish_to_products() {}
inline void begin_products() { emulator::exchange("wgmma.fence", {}); }
inline void commit_products() {
  auto& fiber = emulator::fiber();
  fiber.product_groups.push_back(std::move(fiber.open_products));
  fiber.open_products.clear();
}
// 16 bytes of a row, as an operand's descriptor has them: 14 bits each of the address, of a stride that counts for
// nothing here, and of the stride from eight rows to the next, in units of 16 bytes; and that rows are 32 bytes, of
// whose addresses bit 7 changes bit 4.
inline const int8_t* operand_bytes(uint64_t operand, int row, int half) {
  if ((operand & ~0x00003fff3fff3fffull) != 3ull << 62) emulator::fail("an operand that is not swizzled by 32 bytes");
  const auto field = [&](int from) { return static_cast<uint32_t>(operand >> from & 0x3fff) << 4; };
  if (field(0) % 32) emulator::fail("an operand that does not begin with a row");
  uint32_t address = field(0) + row / 8 * field(32) + row % 8 * 32 + half * 16;
  address ^= address >> 3 & 16;
  return reinterpret_cast<const int8_t*>(dynamic_shared() + (address - dynamic_from));
}
inline void multiply_bytes(int32_t (&s)[64], uint64_t left, uint64_t right, bool add) {
  const int lane = emulator::block()->now % 32, warp = emulator::block()->now / 32 % 4;
  for (int i = 0; i < 64; ++i) {
    const int row = 16 * warp + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    int32_t sum = add ? s[i] : 0;
    for (int half = 0; half < 2; ++half) {
      const int8_t* const a = operand_bytes(left, row, half);
      const int8_t* const b = operand_bytes(right, column, half);
      for (int j = 0; j < 16; ++j) sum += a[j] * b[j];
    }
    s[i] = sum;
  }
}
inline void multiply_tiles(int32_t (&sum)[64], uint64_t left, uint64_t right, bool add) {
  emulator::exchange("wgmma", {});
  emulator::fiber().open_products.push_back([&sum, left, right, add] { multiply_bytes(sum, left, right, add); });
}

// An element of an operand whose rows of 128 bytes are swizzled: a row's, or (`turned`) a line's of 64 of them.
template <class T>
float element_at(uint64_t operand, int row, int depth, bool turned) {
  if ((operand & ~0xc0003fff3fff3fffull) || operand >> 62 != 1) emulator::fail("an operand not swizzled by 128 bytes");
  const auto field = [&](int from) { return static_cast<uint32_t>(operand >> from & 0x3fff) << 4; };
  uint32_t address = field(0) + (turned ? row / 64 * field(16) + depth / 8 * field(32) + depth % 8 * 128 + row % 64 * 2
                                        : row / 8 * field(32) + row % 8 * 128 + depth * 2);
  address ^= address >> 3 & 0x70;
  T value;
  std::memcpy(&value, dynamic_shared() + (address - dynamic_from), 2);
  return to_float(value);
}
template <class T, bool left_turned, bool right_turned>
void multiply_halves(float (&s)[64], uint64_t left, uint64_t right) {
  const int lane = emulator::block()->now % 32, warp = emulator::block()->now / 32 % 4;
  float a[2][16];
  for (int lower = 0; lower < 2; ++lower)
    for (int j = 0; j < 16; ++j) a[lower][j] = element_at<T>(left, 16 * warp + lane / 4 + 8 * lower, j, left_turned);
  for (int column = lane % 4 * 2; column < 128; column += column % 2 ? 7 : 1)
    for (int j = 0; j < 16; ++j) {
      const float b = element_at<T>(right, column, j, right_turned);
      for (int lower = 0; lower < 2; ++lower) s[column / 8 * 4 + 2 * lower + column % 2] += a[lower][j] * b;
    }
}
template <class T, bool left_turned, bool right_turned>
void multiply_tiles(float (&sum)[64], uint64_t left, uint64_t right) {
  emulator::exchange("wgmma", {});
  emulator::fiber().open_products.push_back(
      [&sum, left, right] { multiply_halves<T, left_turned, right_turned>(sum, left, right); });
}
template <int pending>
void wait_for_products() {
  emulator::exchange("wgmma.wait", {});
  auto& groups = emulator::fiber().product_groups;
  while (groups.size() > pending) {
    for (const auto& product : groups.front()) product();
    groups.erase(groups.begin());
  }
  emulator::exchange("wgmma.waited", {});  // before a thread changes what the others' products read
}
inline void store_if(bool condition, uint64_t* global, uint64_t value) {
  if (condition) *global = value;
}
inline void settle(int32_t (&)[64]) {}
inline void settle(float (&)[64]) {}

}  // namespace ofa
