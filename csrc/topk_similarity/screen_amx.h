// Products of bytes by AMX, for screen_bytes.h.
#pragma once

#include "amx.h"

namespace ofa {
namespace OFA_ISA {

constexpr int half_tile = 16 * 16;  // products of 16 keys and 16 queries, which lie together

// Begins the products of 32 keys and 32 queries in tiles 0 to 3. What these hold, the products of the pair before, is
// stored on the way: stored at the end of its own turn, it would keep the multiplier waiting.
static inline void multiply_tile(const int8_t* keys, const int8_t* queries, int64_t steps, int32_t* before) {
  constexpr int64_t half = 16 * 64;
  for (int64_t t = 0; t < steps; ++t, keys += 2 * half, queries += 2 * half) {
    _tile_loadd(4, keys, 64);
    _tile_loadd(6, queries, 64);
    if (t == 0) {
      _tile_stored(0, before, 64);
      _tile_zero(0);
    }
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, queries + half, 64);
    if (t == 0) {
      _tile_stored(1, before + half_tile, 64);
      _tile_zero(1);
    }
    _tile_dpbssd(1, 4, 7);
    _tile_loadd(5, keys + half, 64);
    if (t == 0) {
      _tile_stored(2, before + 2 * half_tile, 64);
      _tile_zero(2);
    }
    _tile_dpbssd(2, 5, 6);
    if (t == 0) {
      _tile_stored(3, before + 3 * half_tile, 64);
      _tile_zero(3);
    }
    _tile_dpbssd(3, 5, 7);
  }
}

static inline vint largest_of(const int32_t* products) {
  const vint* row = reinterpret_cast<const vint*>(products);
  vint a = larger(row[0], row[2 * 16]), b = larger(row[1], row[2 * 16 + 1]);
#pragma GCC unroll 8
  for (int i = 2; i < 16; i += 2) {
    a = larger(a, larger(row[i], row[2 * 16 + i]));
    b = larger(b, larger(row[i + 1], row[2 * 16 + i + 1]));
  }
  return larger(a, b);
}

static inline void gate_tile(const Screen& s, const int32_t* products, int64_t query, int64_t tile) {
  if (s.lows) {
    raise_lows(s, to_float(largest_of(products)), query, tile);
    raise_lows(s, to_float(largest_of(products + half_tile)), query + 16, tile);
    return;
  }
  vint limit[2];
  find_limits(s, query, s.tiles[tile], limit[0]);
  find_limits(s, query + 16, s.tiles[tile], limit[1]);
  if (!(above(largest_of(products), limit[0]) | above(largest_of(products + half_tile), limit[1]))) return;
  report<4 * 16>(
      s, products, query, tile, [&](int v) { return limit[v / 16 % 2]; },
      [](int i) { return (i / 512 * 16 + i / 16 % 16) << 8 | (i / 256 % 2 * 16 + i % 16); });
}

// Words of 16 queries lie side by side.
static void pack(const void* codes, const int32_t* which, int64_t count, int64_t depth, void* tile) {
  const int64_t steps = (depth + step - 1) / step;
  const int8_t* rows = static_cast<const int8_t*>(codes);
  int8_t* out = static_cast<int8_t*>(tile);
  for (int64_t t = 0; t < steps; ++t)
    for (int first = 0; first < query_tile; first += 16, out += 16 * 64) {
      __m512i row[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        row[i] = first + i >= count
                     ? _mm512_setzero_si512()
                     : _mm512_loadu_si512(rows + ((which ? which[first + i] : first + i) * steps + t) * step);
      transpose(row);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + i * 64, row[i]);
    }
}

// The multiplication of a tile is under way while the products of the one before are compared.
static void screen(const Screen& s) {
  const int64_t steps = (s.depth + step - 1) / step;
  const int8_t *queries = static_cast<const int8_t*>(s.queries), *keys = static_cast<const int8_t*>(s.keys);
  alignas(64) int32_t products[key_tile * query_tile];
  start_products();
  int64_t last_query = 0, last_tile = -1;
  for (int64_t tile = 0; tile < s.key_tiles; ++tile)
    for (int64_t query = 0; query < s.query_tiles * query_tile; query += query_tile) {
      multiply_tile(keys + tile * key_tile * steps * step, queries + query * steps * step, steps, products);
      if (last_tile >= 0) gate_tile(s, products, last_query, last_tile);
      last_query = query;
      last_tile = tile;
    }
  if (last_tile >= 0) {
    _tile_stored(0, products, 64);
    _tile_stored(1, products + half_tile, 64);
    _tile_stored(2, products + 2 * half_tile, 64);
    _tile_stored(3, products + 3 * half_tile, 64);
    gate_tile(s, products, last_query, last_tile);
  }
  finish_products();
}

}  // namespace OFA_ISA
}  // namespace ofa
