// What every kernel shares: number formats, dropout draws, splitting work among threads.
//
// Shape legend: N packed tokens (the real tokens of all rows, one after another), D width, H heads, d = D / H.
// A type parameter T is float or bf16; sums and statistics are float in both.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define API extern "C" __attribute__((visibility("default")))

struct bf16 {
  uint16_t bits;
};

static inline float widen(float value) { return value; }

static inline float widen(bf16 value) {
  const uint32_t word = uint32_t(value.bits) << 16;
  float out;
  std::memcpy(&out, &word, 4);
  return out;
}

template <typename T>
static inline T narrow(float value);

template <>
inline float narrow<float>(float value) {
  return value;
}

// Round to nearest, ties to even; not-a-number stays one.
template <>
inline bf16 narrow<bf16>(float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  const uint32_t rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
  return bf16{uint16_t((word & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
}

// Dropout draws. Element (row, column) of a tensor whose rows are `width` wide is kept if its 16-bit draw reaches
// `threshold` = round(rate * 65536). Draws come in blocks of 32 columns made of 16 words: the low halves are columns
// 0..15, the high halves columns 16..31. The same function, in NumPy, is `runtime.random.words`.
struct Draws {
  uint32_t low, high, threshold;
  float scale;  // 1 / (1 - rate)

  Draws(uint64_t stream, float rate)
      : low(uint32_t(stream)),
        high(uint32_t(stream >> 32)),
        threshold(uint32_t(std::lround(double(rate) * 65536.0))),
        scale(1.0f / (1.0f - rate)) {}

  static inline uint32_t mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    x *= 0xc2b2ae35u;
    x ^= x >> 16;
    return x;
  }

  static inline uint32_t words_per_row(int64_t width) { return uint32_t((width + 31) / 32 * 16); }

  inline uint32_t word(uint32_t number) const { return mix(mix(number * 0x9e3779b9u + low) ^ high); }

  // Factors (0 or `scale`) of the 32 columns that begin at column 32 * block of `row`.
  inline void factors(uint64_t row, int64_t width, int64_t block, float* out) const {
    const uint32_t first = uint32_t(row) * words_per_row(width) + uint32_t(block) * 16;
#ifdef __AVX512F__
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i x = _mm512_add_epi32(lanes, _mm512_set1_epi32(int32_t(first)));
    x = _mm512_add_epi32(_mm512_mullo_epi32(x, _mm512_set1_epi32(int32_t(0x9e3779b9u))), _mm512_set1_epi32(int32_t(low)));
    x = mix(_mm512_xor_si512(mix(x), _mm512_set1_epi32(int32_t(high))));
    const __m512i limit = _mm512_set1_epi32(int32_t(threshold));
    const __m512 full = _mm512_set1_ps(scale);
    const __mmask16 front = _mm512_cmpge_epu32_mask(_mm512_and_si512(x, _mm512_set1_epi32(0xffff)), limit);
    const __mmask16 back = _mm512_cmpge_epu32_mask(_mm512_srli_epi32(x, 16), limit);
    _mm512_storeu_ps(out, _mm512_maskz_mov_ps(front, full));
    _mm512_storeu_ps(out + 16, _mm512_maskz_mov_ps(back, full));
#else
#pragma omp simd
    for (int lane = 0; lane < 16; ++lane) {
      const uint32_t drawn = word(first + uint32_t(lane));
      out[lane] = (drawn & 0xffffu) >= threshold ? scale : 0.0f;
      out[lane + 16] = (drawn >> 16) >= threshold ? scale : 0.0f;
    }
#endif
  }

#ifdef __AVX512F__
  static inline __m512i mix(__m512i x) {
    x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 16)), _mm512_set1_epi32(int32_t(0x85ebca6bu)));
    x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 13)), _mm512_set1_epi32(int32_t(0xc2b2ae35u)));
    return _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
  }
#endif
};

// e^x for x <= about 88, in a form that compilers vectorise; relative error below 3e-7, 0 below -87.
static inline float fast_exp(float x) {
  const float clamped = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  const float k = std::nearbyint(clamped * 1.44269504088896341f);
  const float r = (clamped - k * 0.693359375f) - k * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const uint32_t bits = uint32_t(int32_t(k) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  const float y = p * power;
  return x != x ? x : (x < -87.0f ? 0.0f : y);
}

// CALL with T as bf16 or float, as `narrow_type` says.
#define FOR_BOTH(CALL) \
  if (narrow_type) {   \
    using T = bf16;    \
    CALL;              \
  } else {             \
    using T = float;   \
    CALL;              \
  }
