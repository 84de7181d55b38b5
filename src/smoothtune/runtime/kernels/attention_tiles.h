// The matrix products of attention in bf16 on AMX tiles, sums in float32. Knows nothing of softmax.
//
// One head of one row: `keys` tokens and head size d, padded with zeros to multiples of 32 (`deep_` columns). A tile is
// 16 rows of 64 bytes; the right operand holds pairs of rows in 32-bit words. Biased queries, keys and values, dropped
// probabilities and gradients of scores are rounded to bf16.
#pragma once

#include "attention_room.h"
#include "attention_softmax.h"
#include "gemm_tiles.h"

#if TILES && defined(__AVX512VBMI__)
#define ATTENTION_TILES 1

namespace attention {

constexpr int64_t PAIRS = 16;  // rows of pairs in a tile, and columns of it

// Row of 32 as two of 16, columns begin at 0 and 16.
struct Halves {
  __m512 front, back;
};

static inline Halves widened(__m512i row) {
  const auto wide = [](__m256i half) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)); };
  return {wide(_mm512_castsi512_si256(row)), wide(_mm512_extracti64x4_epi64(row, 1))};
}

static inline __m512i narrowed(__m512 front, __m512 back) { return (__m512i)_mm512_cvtne2ps_pbh(back, front); }

// Word i of the result is (front[i], back[i]) of a row of 16 + 16.
static inline __m512i interleaved(__m512i row) {
  alignas(64) static const auto order = [] {
    struct { uint16_t at[32]; } made{};
    for (int i = 0; i < 32; ++i) made.at[i] = uint16_t(i / 2 + i % 2 * 16);
    return made;
  }();
  return _mm512_permutexvar_epi16(_mm512_load_si512(&order), row);
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
static inline void tile_product(TileLeft a, TileRight b, float* c, int64_t ldc, int64_t m, int64_t n, int64_t steps, bool add) {
  Tiles::settle(a.at);
  int64_t row = 0;
  for (; row + 16 < m; row += 32)
    tile_rows<2>({a.at + row * a.stride, a.stride, a.step}, b, c + row * ldc, ldc, n, steps, add);
  if (row < m) tile_rows<1>({a.at + row * a.stride, a.stride, a.step}, b, c + row * ldc, ldc, n, steps, add);
}

class TileProducts {
 public:
  using Number = bf16;
  using Setup = Tiles;

  TileProducts(int64_t keys, int64_t size, Room& room)
      : keys_(keys), size_(size), deep_((size + 31) / 32 * 32), blocks_((keys + 31) / 32) {
    const int64_t area = blocks_ * QUERIES * deep_;
    for (uint16_t** rows : {&q_, &k_, &v_, &g_}) *rows = room.take<uint16_t>(area);
    for (uint32_t** words : {&q_turned_, &g_turned_, &q_pairs_, &k_pairs_, &v_pairs_, &g_pairs_}) *words = room.take<uint32_t>(area / 2);
    for (float** sums : {&dk_, &dv_}) *sums = room.take<float>(area);
    mixed_ = room.take<float>(QUERIES * deep_);
    by_key_ = room.take<uint16_t>(2 * blocks_ * QUERIES * QUERIES);
    by_query_ = room.take<uint16_t>(blocks_ * QUERIES * QUERIES);
  }

  void read(const bf16* q, const bf16* k, const bf16* v, int64_t stride, const float* bias, int64_t bias_stride) {
    read_rows(q, stride, bias, q_);
    read_rows(k, stride, bias + bias_stride, k_);
    read_rows(v, stride, bias + 2 * bias_stride, v_);
    turn(q_, q_turned_);
  }

  void pair_for_forward() { pair(v_, v_pairs_); }

  void read_gradient(const bf16* g, int64_t stride) {
    read_rows(g, stride, nullptr, g_);
    turn(g_, g_turned_);
    pair(g_, g_pairs_);
    pair(q_, q_pairs_);
    pair(k_, k_pairs_);
  }

  // out (keys, QUERIES) of the queries of `block`: K Q^T and V dO^T.
  void scores(int64_t block, int groups, float* out) { from_turned(k_, q_turned_, block, groups, out); }
  void probability_gradients(int64_t block, int groups, float* out) { from_turned(v_, g_turned_, block, groups, out); }

  // The mixed values (QUERIES, wide) of a block's dropped probabilities.
  const float* mix(int groups, const float* dropped) {
    pack<false, true>(groups, dropped, nullptr);
    return over_keys(groups, v_pairs_);
  }

  // The gradient (QUERIES, wide) of the block's queries; those of keys and values are added up in `dk` and `dv`.
  const float* gradients(int64_t block, int groups, const float* dropped, const float* ds) {
    uint16_t* ds_by_key = by_key_ + blocks_ * QUERIES * QUERIES;
    pack<true, false>(groups, dropped, by_key_);
    pack<true, true>(groups, ds, ds_by_key);
    add_over_queries(by_key_, g_pairs_, block, dv_);
    add_over_queries(ds_by_key, q_pairs_, block, dk_);
    return over_keys(groups, k_pairs_);
  }

  const float* dk() const { return dk_; }
  const float* dv() const { return dv_; }

  // Writes `count` rows of `from`, each times its factor if there are any, and adds their sums to `sums` if not null.
  void write(const float* from, const float* factors, int64_t count, bf16* to, int64_t stride, float* sums) const {
    for (int64_t c = 0; c < size_; c += 32) {
      const __mmask32 present = columns(c);
      __m512 front_sum = _mm512_setzero_ps(), back_sum = front_sum;
      for (int64_t t = 0; t < count; ++t) {
        const __m512 factor = _mm512_set1_ps(factors ? factors[t] : 1.0f);
        const __m512 front = _mm512_mul_ps(_mm512_load_ps(from + t * deep_ + c), factor);
        const __m512 back = _mm512_mul_ps(_mm512_load_ps(from + t * deep_ + c + 16), factor);
        _mm512_mask_storeu_epi16(to + t * stride + c, present, narrowed(front, back));
        front_sum = _mm512_add_ps(front_sum, front);
        back_sum = _mm512_add_ps(back_sum, back);
      }
      if (sums) add_to(sums + c, present, front_sum, back_sum);
    }
  }

 private:
  __mmask32 columns(int64_t from) const { return size_ - from >= 32 ? ~__mmask32(0) : (__mmask32(1) << (size_ - from)) - 1; }

  static void add_to(float* sums, __mmask32 present, __m512 front, __m512 back) {
    const __mmask16 low = __mmask16(present), high = __mmask16(present >> 16);
    _mm512_mask_storeu_ps(sums, low, _mm512_add_ps(front, _mm512_maskz_loadu_ps(low, sums)));
    _mm512_mask_storeu_ps(sums + 16, high, _mm512_add_ps(back, _mm512_maskz_loadu_ps(high, sums + 16)));
  }

  void read_rows(const bf16* from, int64_t stride, const float* bias, uint16_t* to) const {
    for (int64_t c = 0; c < deep_; c += 32) {
      const __mmask32 present = columns(c);
      Halves added{_mm512_setzero_ps(), _mm512_setzero_ps()};
      if (bias) {
        added.front = _mm512_maskz_loadu_ps(__mmask16(present), bias + c);
        added.back = _mm512_maskz_loadu_ps(__mmask16(present >> 16), bias + c + 16);
      }
      for (int64_t t = 0; t < keys_; ++t) {
        const __m512i row = _mm512_maskz_loadu_epi16(present, from + t * stride + c);
        _mm_prefetch((const char*)(from + t * stride + c + size_), _MM_HINT_T0);
        const Halves wide = widened(row);
        _mm512_store_si512(to + t * deep_ + c, bias ? narrowed(_mm512_add_ps(wide.front, added.front), _mm512_add_ps(wide.back, added.back)) : row);
      }
      for (int64_t t = keys_; t < blocks_ * QUERIES; ++t) _mm512_store_si512(to + t * deep_ + c, _mm512_setzero_si512());
    }
  }

  // to[block][word of a row][query]: the right operand when the sum runs along the columns.
  void turn(const uint16_t* rows, uint32_t* to) const {
    const int64_t words = deep_ / 2;
    const uint32_t* from = reinterpret_cast<const uint32_t*>(rows);
    for (int64_t t = 0; t < blocks_ * QUERIES; t += 16)
      for (int64_t c = 0; c < words; c += 16)
        turn_words(from + t * words + c, words, to + (t / QUERIES * words + c) * QUERIES + t % QUERIES, QUERIES);
  }

  // to[pair of rows][column]: the right operand when the sum runs along the rows.
  void pair(const uint16_t* rows, uint32_t* to) const {
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    for (int64_t t = 0; t < blocks_ * PAIRS; ++t)
      for (int64_t c = 0; c < deep_; c += 32) {
        const __m512i even = _mm512_load_si512(rows + 2 * t * deep_ + c), odd = _mm512_load_si512(rows + (2 * t + 1) * deep_ + c);
        const __m512i low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd);
        _mm512_store_si512(to + t * deep_ + c, _mm512_permutex2var_epi64(low, first, high));
        _mm512_store_si512(to + t * deep_ + c + 16, _mm512_permutex2var_epi64(low, second, high));
      }
  }

  // A block of (keys, QUERIES) in bf16, as it lies (`by_key`) and turned, 32 keys of each query after another.
  template <bool ByKey, bool ByQuery>
  void pack(int groups, const float* from, uint16_t* by_key) {
    for (int64_t begin = 0; begin < keys_; begin += 32)
      for (int group = 0; group < 2; ++group) {
        alignas(64) uint32_t words[PAIRS * 16];
        for (int64_t p = 0; p < PAIRS; ++p) {
          const int64_t j = begin + 2 * p;
          const float* at = from + j * QUERIES + group * LANES;
          const bool some = group < groups && j < keys_;
          const __m512 even = some ? _mm512_load_ps(at) : _mm512_setzero_ps();
          const __m512 odd = some && j + 1 < keys_ ? _mm512_load_ps(at + QUERIES) : _mm512_setzero_ps();
          const __m512i both = narrowed(even, odd);
          if (ByKey) {
            _mm256_store_si256((__m256i*)(by_key + j * QUERIES + group * LANES), _mm512_castsi512_si256(both));
            _mm256_store_si256((__m256i*)(by_key + (j + 1) * QUERIES + group * LANES), _mm512_extracti64x4_epi64(both, 1));
          }
          if (ByQuery) _mm512_store_si512(words + p * 16, interleaved(both));
        }
        uint32_t* to = reinterpret_cast<uint32_t*>(by_query_) + (begin + group * LANES) * PAIRS;
        if (ByQuery && group < groups) turn_words(words, 16, to, PAIRS);
      }
  }

  void from_turned(const uint16_t* left, const uint32_t* turned, int64_t block, int groups, float* out) const {
    const TileRight right{turned + block * deep_ / 2 * QUERIES, QUERIES};
    tile_product({left, deep_, 32}, right, out, QUERIES, keys_, groups * LANES, deep_ / 32, false);
  }

  const float* over_keys(int groups, const uint32_t* pairs) const {
    tile_product({by_query_, 32, QUERIES * 32}, {pairs, deep_}, mixed_, deep_, groups * LANES, size_, blocks_, false);
    return mixed_;
  }

  void add_over_queries(const uint16_t* left, const uint32_t* pairs, int64_t block, float* out) const {
    tile_product({left, QUERIES, 0}, {pairs + block * PAIRS * deep_, deep_}, out, deep_, keys_, size_, 1, block > 0);
  }

  int64_t keys_, size_, deep_, blocks_;
  uint16_t *q_, *k_, *v_, *g_, *by_key_, *by_query_;
  uint32_t *q_turned_, *g_turned_, *q_pairs_, *k_pairs_, *v_pairs_, *g_pairs_;
  float *dk_, *dv_, *mixed_;
};

}  // namespace attention
#endif
