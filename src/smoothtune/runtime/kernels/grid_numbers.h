// The numbers of packed grids, 32 channels at a time, and their sums over cells. Knows nothing of where cells lie.
#pragma once

#include "grid.h"

#if defined(__AVX512F__) && defined(__AVX512BW__)

// GCC 12 warns of variables of its own headers that it leaves undefined on purpose.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

// 32 channels of one cell in two registers.
struct Pair {
  __m512 low, high;

  Pair(__m512 low, __m512 high) : low(low), high(high) {}
  explicit Pair(float all) : low(_mm512_set1_ps(all)), high(low) {}
  explicit Pair(const float* from) : low(_mm512_loadu_ps(from)), high(_mm512_loadu_ps(from + 16)) {}
  explicit Pair(const bf16* from) {
    const __m512i both = _mm512_loadu_si512(from);
    low = wide(_mm512_castsi512_si256(both));
    high = wide(_mm512_extracti64x4_epi64(both, 1));
  }
  static inline __m512 wide(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

  inline void store(float* to) const {
    _mm512_storeu_ps(to, low);
    _mm512_storeu_ps(to + 16, high);
  }
  inline void store(bf16* to) const {
#ifdef __AVX512BF16__
    const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
    std::memcpy(to, &both, 64);
#else
    float all[32];
    store(all);
    for (int c = 0; c < 32; ++c) to[c] = narrow<bf16>(all[c]);
#endif
  }
  inline Pair operator+(const Pair& x) const { return {_mm512_add_ps(low, x.low), _mm512_add_ps(high, x.high)}; }
  inline Pair operator-(const Pair& x) const { return {_mm512_sub_ps(low, x.low), _mm512_sub_ps(high, x.high)}; }
  inline Pair operator*(const Pair& x) const { return {_mm512_mul_ps(low, x.low), _mm512_mul_ps(high, x.high)}; }
  // Not-a-number stays: the second operand is taken when one is.
  inline Pair rectified() const {
    const __m512 zero = _mm512_setzero_ps();
    return {_mm512_max_ps(zero, low), _mm512_max_ps(zero, high)};
  }
  inline Pair where_positive(const Pair& x) const {
    const __m512 zero = _mm512_setzero_ps();
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.low, zero, _CMP_GT_OQ), low),
            _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.high, zero, _CMP_GT_OQ), high)};
  }
};

// A sum of 32 channels: of 32 cells in float, then of these in double, or a grid of many cells would lose digits.
class Tally {
 public:
  explicit Tally(double* sums) : sums_(sums), some_(0.0f) {}
  ~Tally() { flush(); }

  inline void add(const Pair& x) {
    some_ = some_ + x;
    if (++count_ == 32) flush();
  }

 private:
  inline void flush() {
    const __m512 halves[2] = {some_.low, some_.high};
    for (int half = 0; half < 2; ++half) {
      const __m256 low = _mm512_castps512_ps256(halves[half]);
      const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(halves[half]), 1));
      double* to = sums_ + 16 * half;
      _mm512_storeu_pd(to, _mm512_add_pd(_mm512_loadu_pd(to), _mm512_cvtps_pd(low)));
      _mm512_storeu_pd(to + 8, _mm512_add_pd(_mm512_loadu_pd(to + 8), _mm512_cvtps_pd(high)));
    }
    some_ = Pair(0.0f);
    count_ = 0;
  }

  double* sums_;
  Pair some_;
  int count_ = 0;
};

#endif
