#include "vector_text.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include "parallel.h"

namespace ofa::vector_text {
namespace {

constexpr double powers_of_ten[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                    1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
constexpr uint64_t exact_integers = uint64_t{1} << 53;

bool is_blank(char c) { return c == ' ' || c == '\t'; }
bool is_digit(char c) { return static_cast<unsigned char>(c - '0') < 10; }

const char* skip_blanks(const char* at, const char* end) {
  while (at < end && is_blank(*at)) ++at;
  return at;
}

// Behind the decimal number at `at`, or null where there is none.
const char* number(const char* at, const char* end, double* value) {
  const char* const begin = at;
  const bool negative = at < end && *at == '-';
  if (at < end && (*at == '-' || *at == '+')) ++at;
  const char* const unsigned_begin = at;
  uint64_t digits = 0;
  const char* const whole = at;
  while (at < end && is_digit(*at)) digits = 10 * digits + (*at++ - '0');
  int64_t count = at - whole, exponent = 0;
  if (at < end && *at == '.') {
    const char* const fraction = ++at;
    while (at < end && is_digit(*at)) digits = 10 * digits + (*at++ - '0');
    count += at - fraction;
    exponent = fraction - at;
  }
  if (!count) return nullptr;
  bool plain = count <= 19;  // no overflow of `digits`
  if (at < end && (*at == 'e' || *at == 'E')) {
    const char* power = at + 1;
    const bool down = power < end && *power == '-';
    if (power < end && (*power == '-' || *power == '+')) ++power;
    const char* const power_begin = power;
    int64_t scale = 0;
    while (power < end && is_digit(*power)) scale = std::min<int64_t>(10 * scale + (*power++ - '0'), 100'000);
    if (power == power_begin) return nullptr;
    exponent += down ? -scale : scale;
    at = power;
  }
  // Both are doubles without an error, so their product or quotient is rounded once.
  if (plain && digits <= exact_integers && exponent >= -22 && exponent <= 22) {
    const double magnitude = static_cast<double>(digits);
    const double scaled = exponent < 0 ? magnitude / powers_of_ten[-exponent] : magnitude * powers_of_ten[exponent];
    *value = negative ? -scaled : scaled;
    return at;
  }
  // from_chars knows no plus sign.
  const auto [stopped, error] = std::from_chars(*begin == '+' ? unsigned_begin : begin, at, *value);
  return error == std::errc{} && stopped == at ? at : nullptr;
}

// Where the word of a line ends, as an offset from its beginning, or -1.
int64_t parse_line(const char* begin, const char* end, float* row, int64_t dim) {
  while (end > begin && (is_blank(end[-1]) || end[-1] == '\r' || end[-1] == '\n')) --end;
  const char* at = begin;
  while (at < end && !is_blank(*at)) ++at;
  const char* const word_end = at;
  if (word_end == begin) return -1;
  for (int64_t i = 0; i < dim; ++i) {
    const char* const next = skip_blanks(at, end);
    double value;
    at = next == at ? nullptr : number(next, end, &value);
    if (!at) return -1;
    row[i] = static_cast<float>(value);
    if (!std::isfinite(row[i])) return -1;
  }
  // Where spaces separate, a tab may belong to the word.
  const bool mixed = *word_end == '\t' && std::memchr(word_end, ' ', end - word_end);
  return at == end && !mixed ? word_end - begin : -1;
}

}  // namespace

int64_t find_lines(Tensor text, Tensor starts) {
  const int64_t bytes = text.numel(), capacity = starts.numel();
  const char* const begin = reinterpret_cast<const char*>(text.data<uint8_t>("text", {bytes}));
  int64_t* const out = starts.data<int64_t>("starts", {capacity});
  if (!capacity) throw std::invalid_argument("starts must have room for one line");
  int64_t lines = 0;
  out[0] = 0;
  while (lines + 1 < capacity && out[lines] < bytes) {
    const void* const newline = std::memchr(begin + out[lines], '\n', bytes - out[lines]);
    if (!newline) break;
    out[++lines] = static_cast<const char*>(newline) - begin + 1;
  }
  return lines;
}

void parse(Tensor text, Tensor starts, Tensor rows, Tensor word_ends, int threads) {
  const int64_t bytes = text.numel(), lines = word_ends.numel(), dim = rows.dim() == 2 ? rows.size(1) : 0;
  const char* const characters = reinterpret_cast<const char*>(text.data<uint8_t>("text", {bytes}));
  const int64_t* const at = starts.data<int64_t>("starts", {lines + 1});
  float* const out = rows.data<float>("rows", {lines, dim});
  int64_t* const ends = word_ends.data<int64_t>("word_ends", {lines});
  for (int64_t i = 0; i < lines; ++i)
    if (at[i] < 0 || at[i] > at[i + 1] || at[i + 1] > bytes)
      throw std::invalid_argument("starts must ascend within the text");
  constexpr int64_t group = 64;
  parallel_for((lines + group - 1) / group, threads, [&](int64_t task, int) {
    for (int64_t i = task * group; i < std::min(lines, (task + 1) * group); ++i) {
      const int64_t end = parse_line(characters + at[i], characters + at[i + 1], out + i * dim, dim);
      ends[i] = end < 0 ? -1 : at[i] + end;
    }
  });
}

}  // namespace ofa::vector_text
