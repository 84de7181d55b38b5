// Sixteen numbers at a time: exponential and dropout draws for attention, on any processor.
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
