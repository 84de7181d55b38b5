// Activations of a transformer's MLP, one value at a time and 16 at a time.
#pragma once

#include "common.h"

// Values and slopes of the activation; `kind` 0: GELU with erf, 1: GELU with tanh, 2: ReLU.
template <int kind>
static inline void activate(float x, float& value, float& slope) {
  if (kind == 2) {
    value = x > 0.0f ? x : (x == x ? 0.0f : x);
    slope = x > 0.0f ? 1.0f : 0.0f;
  } else if (kind == 1) {
    const float inner = 0.79788456080286536f * (x + 0.044715f * x * x * x);
    const float e = fast_exp(2.0f * inner > 80.0f ? 80.0f : 2.0f * inner);
    const float rest = 1.0f / (e + 1.0f), share = e * rest;  // (1 + tanh) / 2 without a difference, which has no tail
    value = x * share;
    slope = share + 2.0f * x * share * rest * 0.79788456080286536f * (1.0f + 0.134145f * x * x);
  } else {
    // Abramowitz and Stegun 7.1.26 for erf, absolute error below 1.5e-7; its e^(-x^2/2) serves the slope too.
    const float z = std::fabs(x) * 0.70710678118654752f;
    const float e = fast_exp(-0.5f * x * x);
    const float t = 1.0f / (1.0f + 0.3275911f * z);
    const float p = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    const float tail = 0.5f * p * e;  // P(X > |x|)
    const float share = x >= 0.0f ? 1.0f - tail : tail;
    value = x * share;
    slope = share + x * e * 0.39894228040143268f;
  }
}

#ifdef __AVX512F__
static inline __m512 load16(const float* from) { return _mm512_loadu_ps(from); }
static inline __m512 load16(const bf16* from) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
static inline void store16(float* to, __m512 value) { _mm512_storeu_ps(to, value); }
static inline void store16(bf16* to, __m512 value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(rounded));
}

// `activate<0>` for 16 values: the same formulas, the quotient by one Newton step (relative error below 2^-23).
static inline void gelu16(__m512 x, __m512& value, __m512& slope) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 half = _mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.5f));
  // The second operand wins where x is not a number. Numbers too small to be normal are slow: e^-80 makes none.
  const __m512 floor = _mm512_max_ps(_mm512_set1_ps(-80.0f), half);
  const __m512 k = _mm512_roundscale_ps(_mm512_mul_ps(floor, _mm512_set1_ps(1.44269504088896341f)), 8);
  __m512 r = _mm512_fnmadd_ps(k, _mm512_set1_ps(0.693359375f), floor);
  r = _mm512_fmadd_ps(k, _mm512_set1_ps(2.12194440e-4f), r);
  __m512 e = _mm512_set1_ps(1.3981999507e-3f);
  e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(8.3334519073e-3f));
  e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(4.1665795894e-2f));
  e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(1.6666665459e-1f));
  e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(5.0000001201e-1f));
  e = _mm512_scalef_ps(_mm512_fmadd_ps(_mm512_mul_ps(r, r), e, _mm512_add_ps(r, one)), k);
  const __m512 d = _mm512_fmadd_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.3275911f * 0.70710678118654752f), one);
  __m512 t = _mm512_rcp14_ps(d);
  t = _mm512_mul_ps(t, _mm512_fnmadd_ps(d, t, _mm512_set1_ps(2.0f)));
  __m512 p = _mm512_set1_ps(0.5f * 1.061405429f);
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.5f * -1.453152027f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.5f * 1.421413741f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.5f * -0.284496736f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.5f * 0.254829592f));
  const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(p, t), e);
  const __mmask16 above = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ);
  const __m512 share = _mm512_mask_sub_ps(tail, above, one, tail);
  value = _mm512_mul_ps(x, share);
  const __m512 near = _mm512_min_ps(_mm512_set1_ps(1e4f), _mm512_max_ps(_mm512_set1_ps(-1e4f), x));  // the same e beyond
  slope = _mm512_fmadd_ps(_mm512_mul_ps(near, e), _mm512_set1_ps(0.39894228040143268f), share);
}

// GELU for results that are rounded to bf16 or less: absolute error below 5e-5. x (1/2 + x p(x^2)), p fitted to erf.
static inline __m512 brief_gelu16(__m512 x) {
  constexpr float fit[] = {-1.656507479e-12f, 1.934401465e-10f, -1.012043106e-8f, 3.158114256e-7f, -6.621946014e-6f,
                           9.989644643e-5f,   -1.132258321e-3f, 9.858602328e-3f,  -6.636977752e-2f, 3.988981147e-1f};
  const __m512 edge = _mm512_set1_ps(4.4f), low = _mm512_sub_ps(_mm512_setzero_ps(), edge);
  const __m512 z = _mm512_min_ps(edge, _mm512_max_ps(low, x));  // the second operand wins where x is not a number
  const __m512 t = _mm512_mul_ps(z, z);
  __m512 p = _mm512_set1_ps(fit[0]);
  for (int k = 1; k < 10; ++k) p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(fit[k]));
  const __mmask16 above = _mm512_cmp_ps_mask(x, low, _CMP_NLT_UQ);
  return _mm512_mul_ps(x, _mm512_maskz_fmadd_ps(above, z, p, _mm512_set1_ps(0.5f)));
}
#endif
