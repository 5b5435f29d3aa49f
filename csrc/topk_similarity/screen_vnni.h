// Products of bytes by VNNI, for screen_bytes.h. Keys are shifted by 128, which is taken back in what a query's sums
// begin with.
#pragma once

namespace ofa {
namespace OFA_ISA {

static inline void screen_tile(const Screen& s, const int8_t* queries, const int8_t* keys, int64_t words, int64_t query,
                               int64_t tile) {
  constexpr int vectors = query_tile / lanes;
  vint sum[key_tile][vectors];
#pragma GCC unroll 6
  for (int i = 0; i < key_tile; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) sum[i][j] = *reinterpret_cast<const vint*>(s.offset + query + j * lanes);
  for (int64_t t = 0; t < words; ++t) {
    __m512i value[vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; ++j) value[j] = _mm512_loadu_si512(queries + (t * vectors + j) * 64);
#pragma GCC unroll 6
    for (int i = 0; i < key_tile; ++i) {
      int32_t word;
      std::memcpy(&word, keys + (i * words + t) * 4, 4);
      const __m512i key = _mm512_set1_epi32(word);
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j)
        sum[i][j] = reinterpret_cast<vint>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum[i][j]), key, value[j]));
    }
  }
  gate<key_tile, vectors, vint, int32_t>(s, sum, query, tile);
}

// Words of all queries lie side by side.
static void pack(const void* codes, const int32_t* which, int64_t count, int64_t depth, void* tile) {
  const int64_t words = (depth + step - 1) / step;
  const int32_t* rows = static_cast<const int32_t*>(codes);
  int32_t* out = static_cast<int32_t*>(tile);
  for (int r = 0; r < query_tile; ++r) {
    const int32_t* row = rows + (which && r < count ? which[r] : r) * words;
    for (int64_t i = 0; i < words; ++i) out[i * query_tile + r] = r < count ? row[i] : 0;
  }
}

static void screen(const Screen& s) {
  const int64_t words = (s.depth + step - 1) / step;
  const int8_t *queries = static_cast<const int8_t*>(s.queries), *keys = static_cast<const int8_t*>(s.keys);
  for (int64_t tile = 0; tile < s.key_tiles; ++tile)
    for (int64_t block = 0; block < s.query_tiles; ++block)
      screen_tile(s, queries + block * query_tile * words * step, keys + tile * key_tile * words * step, words,
                  block * query_tile, tile);
}

}  // namespace OFA_ISA
}  // namespace ofa
