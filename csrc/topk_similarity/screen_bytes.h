// The screen in int8, for *_simd.cpp: rows as bytes, and their products by AMX tiles or by VNNI.
#pragma once

#include "simd.h"

namespace ofa {
namespace OFA_ISA {

using Code = int8_t;
#if defined(__AMX_INT8__)
constexpr int step = 64, query_tile = 32, key_tile = 32;
constexpr int key_shift = 0;
#else
constexpr int step = 4, query_tile = 64, key_tile = 6;
constexpr int key_shift = 0x80;  // VNNI multiplies unsigned by signed bytes
#endif

}  // namespace OFA_ISA
}  // namespace ofa

#include "topk_similarity/screen.h"

namespace ofa {
namespace OFA_ISA {

// int32 sums are exact. Two rounded factors and at most two rotations of six additions each, for both rows of a pair.
constexpr double rounding = 32 * 0x1p-24, rounding_per_term = 0;

static inline int64_t padded(int64_t depth) { return (depth + 63) / 64 * 64; }
static int64_t scratch_size(int64_t depth) { return (key_tile + 2) * padded(depth); }

// A Hadamard transform of each register: four stages of sums and differences of numbers 1, 2, 4 and 8 lanes apart.
static inline __m512 signs(__mmask16 negative) {
  return _mm512_mask_blend_ps(negative, _mm512_set1_ps(1.0f), _mm512_set1_ps(-1.0f));
}
static inline __m512 mix_16(__m512 x) {
  x = _mm512_fmadd_ps(x, signs(0xaaaa), _mm512_permute_ps(x, 0xb1));
  x = _mm512_fmadd_ps(x, signs(0xcccc), _mm512_permute_ps(x, 0x4e));
  x = _mm512_fmadd_ps(x, signs(0xf0f0), _mm512_shuffle_f32x4(x, x, 0xb1));
  return _mm512_fmadd_ps(x, signs(0xff00), _mm512_shuffle_f32x4(x, x, 0x4e));
}

static inline void mix_64(float* x) {
  const __m512 a = mix_16(_mm512_loadu_ps(x)), b = mix_16(_mm512_loadu_ps(x + 16)), c = mix_16(_mm512_loadu_ps(x + 32)),
               d = mix_16(_mm512_loadu_ps(x + 48));
  const __m512 ab = _mm512_add_ps(a, b), a_b = _mm512_sub_ps(a, b), cd = _mm512_add_ps(c, d), c_d = _mm512_sub_ps(c, d);
  const __m512 eighth = _mm512_set1_ps(0.125f);
  _mm512_storeu_ps(x, _mm512_mul_ps(eighth, _mm512_add_ps(ab, cd)));
  _mm512_storeu_ps(x + 16, _mm512_mul_ps(eighth, _mm512_add_ps(a_b, c_d)));
  _mm512_storeu_ps(x + 32, _mm512_mul_ps(eighth, _mm512_sub_ps(ab, cd)));
  _mm512_storeu_ps(x + 48, _mm512_mul_ps(eighth, _mm512_sub_ps(a_b, c_d)));
}

// Spreads large entries over the others of 64 (16), so that one scale suits all: signs change in a fixed pattern, lest
// entries that are alike gather in one, then an orthogonal matrix acts on each window, the last one overlapping.
static inline void turn(float* x, int64_t depth) {
  if (depth >= 64) {
    for (int64_t d = 0; d < depth; d += 64) mix_64(x + (d + 64 <= depth ? d : depth - 64));
  } else if (depth >= 16) {
    for (int64_t d = 0; d < depth; d += 16) {
      float* window = x + (d + 16 <= depth ? d : depth - 16);
      _mm512_storeu_ps(window, _mm512_mul_ps(_mm512_set1_ps(0.25f), mix_16(_mm512_loadu_ps(window))));
    }
  }
}

// row * factor, turned, padded with zeros. Returns the largest magnitude.
static inline float prepare(const float* row, int64_t depth, double factor, float* turned) {
  // in two factors, as one may lie beyond the range of float
  const float first = factor > 0x1p96 ? 0x1p96f : factor < 0x1p-96 ? 0x1p-96f : 1.0f;
  const __m512 before = _mm512_set1_ps(first), after = _mm512_set1_ps(static_cast<float>(factor / first)),
               pattern[4] = {after * signs(0x6b1c), after * signs(0x92d5), after * signs(0x3aa7),
                             after * signs(0xc64e)};
  for (int64_t d = 0; d < padded(depth); d += 16) {
    const __mmask16 inside = depth - d >= 16 ? 0xffff : depth > d ? (1 << (depth - d)) - 1 : 0;
    const __m512 x = _mm512_mul_ps(_mm512_maskz_loadu_ps(inside, row + d), before);
    _mm512_storeu_ps(turned + d, x * pattern[d / 16 % 4]);
  }
  turn(turned, depth);
  __m512 largest = _mm512_setzero_ps();
  for (int64_t d = 0; d < depth; d += 16) largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_loadu_ps(turned + d)));
  return _mm512_reduce_max_ps(largest);
}

// The scale in which `largest` is at most 127; no smaller than lets its inverse be a float.
static inline float scale_for(float largest) {
  const float scale = largest / 127 * (1 + 0x1p-22f);
  return scale > 0x1p-64f ? scale : 0x1p-64f;
}

// codes[d] = round(turned[d] / scale), in groups of 64 that lie `stride` apart. Returns the norm of what that leaves.
static inline float round_to_bytes(const float* turned, int64_t depth, float scale, int8_t* codes, int64_t stride) {
  const __m512 inverse = _mm512_set1_ps(1 / scale), factor = _mm512_set1_ps(scale);
  __m512 squares = _mm512_setzero_ps();
  const int64_t length = (depth + step - 1) / step * step;
  for (int64_t d = 0; d < length; d += 16) {
    const __mmask16 inside = length - d < 16 ? (1 << (length - d)) - 1 : 0xffff;
    const __m512 x = _mm512_loadu_ps(turned + d);
    const __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
    const __m512 rest = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(rounded), factor, x);
    squares = _mm512_fmadd_ps(rest, rest, squares);
    _mm512_mask_cvtepi32_storeu_epi8(codes + d / 64 * stride + d % 64, inside, rounded);
  }
  // the squares are summed with a relative error of depth / 16 + 8 roundings, and may underflow
  const float slack = 1 + static_cast<float>(depth / 16 + 32) * 0x1p-23f;
  return __builtin_sqrtf(_mm512_reduce_add_ps(squares) * slack) + 0x1p-50f;
}

static void encode_keys(const void* rows, Dtype dtype, int64_t count, int64_t depth, const double* factor,
                        const Encoded& out, float* scratch) {
  const int64_t length = (depth + step - 1) / step * step, width = padded(depth);
  float *wide = scratch, *turned = scratch + width, largest = 0;
  for (int64_t r = 0; r < count; ++r) {
    if (factor[r] == 0) continue;
    const float top = prepare(as_floats(rows, dtype, r, depth, wide), depth, factor[r], turned + r * width);
    if (top > largest) largest = top;
  }
  *out.scale = scale_for(largest);
  *out.residual = 0;
  int8_t* codes = static_cast<int8_t*>(out.codes);
#if defined(__AMX_INT8__)  // [depth / 64][key][64]
  const int64_t row_stride = 64, stride = key_tile * 64;
#else  // [key][depth]
  const int64_t row_stride = length, stride = 64;
#endif
  for (int r = 0; r < key_tile; ++r) {
    int8_t* code = codes + r * row_stride;
    const int64_t from = r < count ? r : 0;
    if (factor[from] == 0) {
      for (int64_t d = 0; d < length; d += 4) std::memset(code + d / 64 * stride + d % 64, 0, 4);
    } else {
      const float rest = round_to_bytes(turned + from * width, depth, *out.scale, code, stride);
      if (rest > *out.residual) *out.residual = rest;
    }
  }
  if (key_shift)
    for (int64_t i = 0; i < key_tile * length; ++i) codes[i] = static_cast<int8_t>(codes[i] ^ key_shift);
}

static void encode_queries(const void* rows, Dtype dtype, int64_t count, int64_t depth, const double* factor,
                           const Encoded& out, float* scratch) {
  const int64_t length = (depth + step - 1) / step * step;
  float *wide = scratch, *turned = scratch + padded(depth);
  int8_t* code = static_cast<int8_t*>(out.codes);
  for (int64_t r = 0; r < count; ++r, code += length) {
    out.scale[r] = out.residual[r] = 0.0f;
    out.offset[r] = 0;
    if (factor[r] == 0) {
      for (int64_t d = 0; d < length; ++d) code[d] = 0;
    } else {
      out.scale[r] = scale_for(prepare(as_floats(rows, dtype, r, depth, wide), depth, factor[r], turned));
      out.residual[r] = round_to_bytes(turned, depth, out.scale[r], code, 64);
    }
    if (key_shift)
      for (int64_t d = 0; d < length; ++d) out.offset[r] -= key_shift * code[d];
  }
}

}  // namespace OFA_ISA
}  // namespace ofa

#if defined(__AMX_INT8__)
#  include "topk_similarity/screen_amx.h"
#else
#  include "topk_similarity/screen_vnni.h"
#endif
