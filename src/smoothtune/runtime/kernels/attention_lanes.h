// Sixteen numbers at a time: exponential, logarithm and dropout draws for attention, on any processor.
#pragma once

#include "common.h"

namespace attention {

constexpr int LANES = 16;

typedef float Floats __attribute__((vector_size(64), may_alias));
typedef uint32_t Words __attribute__((vector_size(64), may_alias));
typedef int32_t Signed __attribute__((vector_size(64), may_alias));
typedef float LooseFloats __attribute__((vector_size(64), aligned(4), may_alias));  // aligned as a float is

static inline Floats& floats(float* at) { return *reinterpret_cast<Floats*>(at); }
static inline const Floats& floats(const float* at) { return *reinterpret_cast<const Floats*>(at); }

static inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// 2^x for x below 128; relative error below 3e-7, not-a-number stays one.
static inline Floats power_of_two(Floats x) {
#ifdef __AVX512F__
  const Floats whole = (Floats)_mm512_maskz_roundscale_ps(0xffff, (__m512)x, 8);
#else
  Floats whole;
  x = x < -200.0f ? -200.0f + 0.0f * x : x;
  for (int i = 0; i < LANES; ++i) whole[i] = std::nearbyint(x[i]);
#endif
  const Floats r = x - whole;
  Floats p = r * 1.33335581e-3f + 9.61812911e-3f;
  p = p * r + 5.55041087e-2f;
  p = p * r + 2.40226507e-1f;
  p = p * r + 6.93147181e-1f;
  p = p * r + 1.0f;
#ifdef __AVX512F__
  return (Floats)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)whole);
#else
  for (int i = 0; i < LANES; ++i) p[i] = std::scalbn(p[i], int(whole[i]));
  return p;
#endif
}

// Natural logarithm of a normal x > 0 (Cephes logf); relative error below 2e-7.
static inline Floats logarithm(Floats x) {
  const Words shifted = (Words)x - 0x3f3504f3u;  // the mantissa comes to lie in sqrt(1/2) .. sqrt(2)
  const Floats exponent = __builtin_convertvector((Signed)shifted >> 23, Floats);
  const Floats m = (Floats)((shifted & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
  const Floats z = m * m;
  Floats p = m * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const Floats y = p * m * z + exponent * -2.12194440e-4f - 0.5f * z + m + exponent * 0.693359375f;
  return x <= 3.4e38f ? y : x;
}

// `Draws::word` of sixteen numbers.
static inline Words mixed(Words x) {
  x ^= x >> 16;
  x *= 0x85ebca6bu;
  x ^= x >> 13;
  x *= 0xc2b2ae35u;
  return x ^ (x >> 16);
}

static inline Words drawn(const Draws& draws, Words number) {
  return mixed(mixed(number * 0x9e3779b9u + draws.low) ^ draws.high);
}

// Zero where a 16-bit draw stays below the threshold.
static inline Floats kept(const Draws& draws, Words draw, Floats value) {
  return draw >= draws.threshold ? value : Floats{};
}

}  // namespace attention
