// csrc/wgmma.h for the emulator: what each instruction does according to the PTX manual.
#pragma once

#include <ptx.h>

namespace ofa {

struct alignas(64) Boxes {
  const uint8_t* data;
  int64_t rows, columns, stride;
  int box_rows, panel;
};

inline uint8_t* swizzled_shared() { return dynamic_shared(); }

// Bits 7 and up of an address change as many from 4 on as a row of 32, 64 or 128 bytes has beyond them.
inline uint8_t* swizzled(uint32_t address, int row_bytes) {
  const uint32_t at = (address ^ (address >> 3 & (row_bytes - 1) & ~15u)) - dynamic_from;
  if (at >= emulator::block()->memory.size()) emulator::fail("an operand beyond shared memory");
  return dynamic_shared() + at;
}

inline void copy_box(void* shared, const Boxes& boxes, int column, int row, uint64_t* at) {
  static const uint8_t zeros[16] = {};
  const int row_bytes = 2 * boxes.panel;
  if (shared_address(shared) % (8 * row_bytes)) emulator::fail("a box that is not aligned to its swizzling");
  for (int i = 0; i < boxes.box_rows; ++i)
    for (int j = 0; j < boxes.panel; j += 8) {
      const bool inside = row + i < boxes.rows && column + j < boxes.columns;
      const uint8_t* const from = boxes.data + ((row + i) * boxes.stride + column + j) * 2;
      uint8_t* const to = swizzled(shared_address(shared) + i * row_bytes + 2 * j, row_bytes);
      barrier_at(at).copies.push_back({to, inside ? from : zeros, 16});
    }
}

template <int count>
void settle(float (&)[count]) {}

template <class T>
float half_at(uint64_t operand, int line, int depth, bool turned) {
  const auto field = [&](int from) { return static_cast<uint32_t>(operand >> from & 0x3fff) << 4; };
  const int code = static_cast<int>(operand >> 62), row_bytes = code == 1 ? 128 : code == 2 ? 64 : 32;
  if (code == 0 || (operand & ~0xc0003fff3fff3fffull)) emulator::fail("an operand that is not swizzled");
  const uint32_t address = field(0) + (turned ? 2 * line / row_bytes * field(16) + 2 * line % row_bytes +
                                                    depth / 8 * field(32) + depth % 8 * row_bytes
                                              : line / 8 * field(32) + line % 8 * row_bytes + 2 * depth);
  T value;
  std::memcpy(&value, swizzled(address & ~15u, row_bytes) + address % 16, 2);
  return to_float(value);
}

template <class T, int columns>
struct Warpgroup {
  template <class Left>
  static void compute(float (&s)[columns / 2], bool add, uint64_t right, bool turned, const Left& left) {
    const int lane = emulator::block()->now % 32, warp = emulator::block()->now / 32 % 4;
    for (int i = 0; i < columns / 2; ++i) {
      const int row = 16 * warp + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      float sum = add ? s[i] : 0;
      for (int j = 0; j < 16; ++j) sum += left(row, j) * half_at<T>(right, column, j, turned);
      s[i] = sum;
    }
  }
  template <bool add>
  static void multiply(float (&s)[columns / 2], uint64_t left, uint64_t right) {
    emulator::exchange("wgmma", {});
    emulator::fiber().open_products.push_back([&s, left, right] {
      compute(s, add, right, false, [&](int i, int j) { return half_at<T>(left, i, j, false); });
    });
  }
  static void multiply_turned(float (&s)[columns / 2], const uint32_t (&left)[4], uint64_t right) {
    emulator::Warp::Deposit own{};
    own.value = reinterpret_cast<uintptr_t>(left);
    const auto* const all = emulator::exchange("wgmma", own) + emulator::block()->now % 32 / 4 * 4;
    const uint32_t* rows[4];  // of the lanes that have the same rows
    for (int i = 0; i < 4; ++i) rows[i] = reinterpret_cast<const uint32_t*>(all[i].value);
    emulator::fiber().open_products.push_back([&s, right, rows = std::vector<const uint32_t*>(rows, rows + 4)] {
      compute(s, true, right, true, [&](int i, int j) {
        const uint32_t word = rows[j % 8 / 2][i / 8 % 2 + j / 8 * 2];
        return to_float(T{static_cast<uint16_t>(word >> j % 2 * 16)});
      });
    });
  }
};

inline float power_of_two(float x) { return std::exp2(x); }

}  // namespace ofa
