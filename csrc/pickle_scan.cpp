#include "pickle_scan.h"

#include <algorithm>
#include <cstring>

namespace ofa::pickle_scan {
namespace {

constexpr uint8_t stop = '.', put = 'p', long_binput = 'r', frame = 0x95;

uint64_t little_endian(const uint8_t* at, int width) {
  uint64_t value = 0;
  for (int i = width; i-- > 0;) value = value << 8 | at[i];
  return value;
}

// Whether a line is a decimal number of at most `most`.
bool is_index(const uint8_t* at, const uint8_t* end, int64_t most) {
  int64_t value = 0;
  const bool digits = end - at > 0 && end - at <= 18 && std::all_of(at, end, [&](uint8_t c) {
                        value = 10 * value + (c - '0');
                        return c >= '0' && c <= '9';
                      });
  return digits && value <= most;
}

// Behind the opcode at `at` and its argument, or null.
const uint8_t* step(const uint8_t* at, const uint8_t* end, const uint8_t* arguments, int64_t before) {
  const uint8_t code = *at++;
  const int kind = arguments[code] >> 4, n = arguments[code] & 15;
  const uint8_t* const argument = at;
  if (kind == 2) {
    for (int line = 0; line < n; ++line) {
      const void* const newline = std::memchr(at, '\n', end - at);
      if (!newline) return nullptr;
      at = static_cast<const uint8_t*>(newline) + 1;
    }
    return code == put && !is_index(argument, at - 1, before) ? nullptr : at;
  }
  if (kind > 1 || n > end - at) return nullptr;
  at += n;
  const uint64_t value = little_endian(argument, std::min(n, 8)), left = end - at;
  if (kind == 1) return value <= left ? at + value : nullptr;
  if (code == long_binput && value > static_cast<uint64_t>(before)) return nullptr;
  return code == frame && value > left ? nullptr : at;
}

}  // namespace

std::pair<int64_t, int64_t> scan(Tensor data, Tensor arguments) {
  const uint8_t* const begin = data.data<uint8_t>("data", {data.numel()});
  const uint8_t* const end = begin + data.numel();
  const uint8_t* const table = arguments.data<uint8_t>("arguments", {256});
  const uint8_t* at = begin;
  int64_t number = 0;
  for (; at < end && *at != stop; ++number) {
    const uint8_t* const next = step(at, end, table, number);
    if (!next) break;
    at = next;
  }
  return {at - begin, number};
}

}  // namespace ofa::pickle_scan
