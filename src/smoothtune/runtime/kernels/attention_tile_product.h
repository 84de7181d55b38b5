// AMX tile products of bf16 matrices in scratch memory, and the rearrangements that make their operands. Knows nothing
// of attention.
//
// A tile is 16 rows of 64 bytes; the right operand holds pairs of rows in 32-bit words. Sums are float32.
#pragma once

#include "gemm_tiles.h"

#if TILES && defined(__AVX512VBMI__)
#define ATTENTION_TILES 1

namespace attention {

constexpr int64_t PAIRS = 16;  // rows of pairs in a tile, and columns of it

static inline __m512i narrowed(__m512 front, __m512 back) { return (__m512i)_mm512_cvtne2ps_pbh(back, front); }

// Where the bytes of `interleaved` come from.
struct alignas(64) Interleaving {
  uint8_t from[64];
  constexpr Interleaving() : from() {
    for (int i = 0; i < 64; ++i) from[i] = uint8_t(i / 4 * 2 + i / 2 % 2 * 32 + i % 2);
  }
};
constexpr Interleaving INTERLEAVING;

// Word i of the result is (front[i], back[i]) of a row of 16 + 16.
static inline __m512i interleaved(__m512i row) {
  return _mm512_permutexvar_epi8(_mm512_load_si512(&INTERLEAVING), row);
}

// The even and the odd columns of 32.
struct Parities {
  __m512 even, odd;
};

static inline Parities by_parity(const float* row, __mmask32 present) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  if (!row) return {_mm512_setzero_ps(), _mm512_setzero_ps()};
  const __m512 front = _mm512_maskz_loadu_ps(__mmask16(present), row);
  const __m512 back = _mm512_maskz_loadu_ps(__mmask16(present >> 16), row + 16);
  return {_mm512_permutex2var_ps(front, even, back), _mm512_permutex2var_ps(front, odd, back)};
}

// A bf16 row and a float row, whose sum is rounded once.
static inline __m512i plus(__m512i row, __m512 even, __m512 odd) {
  const __m512 low = _mm512_castsi512_ps(_mm512_slli_epi32(row, 16));
  const __m512 high = _mm512_castsi512_ps(_mm512_and_si512(row, _mm512_set1_epi32(int32_t(0xffff0000u))));
  return interleaved(narrowed(_mm512_add_ps(low, even), _mm512_add_ps(high, odd)));
}

// to[c][r] = from[r][c] for 16 x 16 words.
static inline void turn_words(const uint32_t* from, int64_t from_stride, uint32_t* to, int64_t to_stride) {
  for (int c = 0; c < 16; c += 4) {
    __m512i r[4];  // 128-bit lane q of r[i] is columns c ... c + 3 of row 4 q + i
    for (int i = 0; i < 4; ++i) {
      const auto part = [&](int q) { return _mm_loadu_si128((const __m128i*)(from + (4 * q + i) * from_stride + c)); };
      r[i] = _mm512_castsi128_si512(part(0));
      r[i] = _mm512_inserti32x4(r[i], part(1), 1);
      r[i] = _mm512_inserti32x4(r[i], part(2), 2);
      r[i] = _mm512_inserti32x4(r[i], part(3), 3);
    }
    const __m512i a = _mm512_unpacklo_epi32(r[0], r[1]), b = _mm512_unpackhi_epi32(r[0], r[1]);
    const __m512i d = _mm512_unpacklo_epi32(r[2], r[3]), e = _mm512_unpackhi_epi32(r[2], r[3]);
    _mm512_store_si512(to + (c + 0) * to_stride, _mm512_unpacklo_epi64(a, d));
    _mm512_store_si512(to + (c + 1) * to_stride, _mm512_unpackhi_epi64(a, d));
    _mm512_store_si512(to + (c + 2) * to_stride, _mm512_unpacklo_epi64(b, e));
    _mm512_store_si512(to + (c + 3) * to_stride, _mm512_unpackhi_epi64(b, e));
  }
}

// to[c] = (even[c], odd[c]) of two rows of 32 columns.
static inline void pair_rows(__m512i even, __m512i odd, uint32_t* to) {
  const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  const __m512i low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd);
  _mm512_store_si512(to, _mm512_permutex2var_epi64(low, first, high));
  _mm512_store_si512(to + 16, _mm512_permutex2var_epi64(low, second, high));
}

// A in rows, 16 x 32 of them a tile: row `stride` elements apart, 32 columns further `step` elements apart.
struct TileLeft {
  const uint16_t* at;
  int64_t stride, step;
};

// B in rows of pairs: `stride` words apart; 16 rows of pairs further are 16 of these.
struct TileRight {
  const uint32_t* at;
  int64_t stride;
};

template <int M, int N>
static inline void tile_block(TileLeft a, TileRight b, float* c, int64_t ldc, int64_t steps, bool add) {
  const long left = a.stride * 2, right = b.stride * 4, out = ldc * 4;
  float* below = c + 16 * ldc;
  if (add) {
    _tile_loadd(0, c, out);
    if (N > 1) _tile_loadd(1, c + 16, out);
    if (M > 1) _tile_loadd(2, below, out);
    if (M > 1 && N > 1) _tile_loadd(3, below + 16, out);
  } else {
    _tile_zero(0);
    if (N > 1) _tile_zero(1);
    if (M > 1) _tile_zero(2);
    if (M > 1 && N > 1) _tile_zero(3);
  }
  for (int64_t k = 0; k < steps; ++k) {
    const uint16_t* row = a.at + k * a.step;
    const uint32_t* pair = b.at + k * PAIRS * b.stride;
    _tile_loadd(4, row, left);
    _tile_loadd(6, pair, right);
    if (M > 1) _tile_loadd(5, row + 16 * a.stride, left);
    if (N > 1) _tile_loadd(7, pair + 16, right);
    _tile_dpbf16ps(0, 4, 6);
    if (N > 1) _tile_dpbf16ps(1, 4, 7);
    if (M > 1) _tile_dpbf16ps(2, 5, 6);
    if (M > 1 && N > 1) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, out);
  if (N > 1) _tile_stored(1, c + 16, out);
  if (M > 1) _tile_stored(2, below, out);
  if (M > 1 && N > 1) _tile_stored(3, below + 16, out);
}

template <int M>
static inline void tile_rows(TileLeft a, TileRight b, float* c, int64_t ldc, int64_t n, int64_t steps, bool add) {
  int64_t column = 0;
  for (; column + 16 < n; column += 32) tile_block<M, 2>(a, {b.at + column, b.stride}, c + column, ldc, steps, add);
  if (column < n) tile_block<M, 1>(a, {b.at + column, b.stride}, c + column, ldc, steps, add);
}

// C (m x n) = or += A (m x 32 steps) B; m and n are rounded up to 16.
static inline void tile_product(TileLeft a, TileRight b, float* c, int64_t ldc, int64_t m, int64_t n, int64_t steps,
                                bool add) {
  Tiles::settle(a.at);
  int64_t row = 0;
  for (; row + 16 < m; row += 32)
    tile_rows<2>({a.at + row * a.stride, a.stride, a.step}, b, c + row * ldc, ldc, n, steps, add);
  if (row < m) tile_rows<1>({a.at + row * a.stride, a.stride, a.step}, b, c + row * ldc, ldc, n, steps, add);
}

}  // namespace attention
#endif
