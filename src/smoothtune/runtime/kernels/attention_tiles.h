// The matrix products of attention in bf16 on AMX tiles, sums in float32. Knows nothing of softmax.
//
// One head of one row: `keys` tokens and head size d, padded with zeros to multiples of 32 (`deep_` columns). Biased
// queries, keys and values, dropped probabilities and gradients of scores are rounded to bf16.
#pragma once

#include "attention_room.h"
#include "attention_softmax.h"
#include "attention_tile_product.h"

#ifdef ATTENTION_TILES
namespace attention {

class TileProducts {
 public:
  using Number = bf16;
  using Setup = Tiles;

  TileProducts(int64_t keys, int64_t size, Room& room)
      : keys_(keys), size_(size), deep_((size + 31) / 32 * 32), blocks_((keys + 31) / 32) {
    const int64_t area = blocks_ * QUERIES * deep_;
    for (uint16_t** rows : {&q_, &k_, &v_, &g_}) *rows = room.take<uint16_t>(area);
    for (uint32_t** words : {&q_turned_, &g_turned_, &q_pairs_, &k_pairs_, &v_pairs_, &g_pairs_})
      *words = room.take<uint32_t>(area / 2);
    for (float** sums : {&dk_, &dv_}) *sums = room.take<float>(area);
    mixed_ = room.take<float>(QUERIES * deep_);
    by_key_ = room.take<uint16_t>(2 * blocks_ * QUERIES * QUERIES);
    by_query_ = room.take<uint16_t>(blocks_ * QUERIES * QUERIES);
  }

  // Keeps the tile unit from sleeping, after some 700 cycles without a product, and from some 600 to wake it up again.
  static void attend() { _tile_dpbf16ps(5, 6, 7); }

  void read(const bf16* q, const bf16* k, const bf16* v, int64_t stride, const float* bias, int64_t bias_stride) {
    attend();
    read_rows(q, stride, bias, q_);
    read_rows(k, stride, bias + bias_stride, k_);
    attend();
    read_rows(v, stride, bias + 2 * bias_stride, v_);
    turn(q_, q_turned_);
  }

  void pair_values() { pair(v_, v_pairs_); }

  void read_gradient(const bf16* g, int64_t stride) {
    attend();
    read_rows(g, stride, nullptr, g_);
    turn(g_, g_turned_);
    attend();
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
    attend();
    for (int64_t c = 0; c < size_; c += 32) {
      const __mmask32 present = columns(c);
      __m512 front_sum = _mm512_setzero_ps(), back_sum = front_sum;
      for (int64_t t = 0; t < count; ++t) {
        if (sums && t > 0 && t % QUERIES == 0) {
          add_to(sums + c, present, front_sum, back_sum);
          front_sum = back_sum = _mm512_setzero_ps();
        }
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
  // Which of 32 columns there are.
  __mmask32 columns(int64_t from) const {
    return size_ - from >= 32 ? ~__mmask32(0) : (__mmask32(1) << (size_ - from)) - 1;
  }

  static void add_to(float* sums, __mmask32 present, __m512 front, __m512 back) {
    const __mmask16 low = __mmask16(present), high = __mmask16(present >> 16);
    _mm512_mask_storeu_ps(sums, low, _mm512_add_ps(front, _mm512_maskz_loadu_ps(low, sums)));
    _mm512_mask_storeu_ps(sums + 16, high, _mm512_add_ps(back, _mm512_maskz_loadu_ps(high, sums + 16)));
  }

  void read_rows(const bf16* from, int64_t stride, const float* bias, uint16_t* to) const {
    for (int64_t c = 0; c < deep_; c += 32) {
      const __mmask32 present = columns(c);
      const auto [even, odd] = by_parity(bias ? bias + c : nullptr, present);
      for (int64_t t = 0; t < keys_; ++t) {
        const bf16* at = from + t * stride + c;
        _mm_prefetch((const char*)(at + size_), _MM_HINT_T0);  // the next head's
        const __m512i row = _mm512_maskz_loadu_epi16(present, at);
        _mm512_store_si512(to + t * deep_ + c, bias ? plus(row, even, odd) : row);
      }
      const __m512i none = _mm512_setzero_si512();
      for (int64_t t = keys_; t < blocks_ * QUERIES; ++t) _mm512_store_si512(to + t * deep_ + c, none);
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
    for (int64_t t = 0; t < blocks_ * PAIRS; ++t)
      for (int64_t c = 0; c < deep_; c += 32) {
        const uint16_t* even = rows + 2 * t * deep_ + c;
        pair_rows(_mm512_load_si512(even), _mm512_load_si512(even + deep_), to + t * deep_ + c);
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
            auto* to = (__m256i*)(by_key + j * QUERIES + group * LANES);
            _mm256_store_si256(to, _mm512_castsi512_si256(both));
            _mm256_store_si256(to + QUERIES / LANES, _mm512_extracti64x4_epi64(both, 1));
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
