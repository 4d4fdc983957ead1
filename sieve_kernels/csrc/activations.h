// Activations in float32, without branches and calls so that loops over them become vector code on every processor.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__GNUC__)
#define SIEVE_INLINE inline __attribute__((always_inline))  // else loops that call them stay scalar
#else
#define SIEVE_INLINE inline
#endif

namespace sieve {

enum Activation : int { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3 };

// e^x to 2 ulp: 2^k · p(f) with k + f = x / ln 2 and |f| ≤ 1/2. NaN stays NaN; ends at 0 and near 2^127.
SIEVE_INLINE float exponential(float x) {
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // adding 1.5 · 2^23 rounds to a whole number
  const float k = shifted - 12582912.0f;
  const float f = (x - k * 0.693359375f) + k * 2.12194440e-4f;  // ln 2 in two parts
  float p = 1.9875691500e-4f;
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = (bits + 127) << 23;  // the low bits of `shifted` are k
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}

SIEVE_INLINE float silu(float x) { return x / (1.0f + exponential(-x)); }

SIEVE_INLINE float gelu_tanh(float x) {
  const float u = 1.5957691216f * (x + 0.044715f * x * x * x);  // 2 √(2/π) (x + …): ½(1 + tanh(u/2)) = 1/(1 + e^-u)
  return x / (1.0f + exponential(-u));
}

// ½ x (1 + erf(x/√2)), erf by Abramowitz and Stegun 7.1.26: within 1.5e-7.
SIEVE_INLINE float gelu(float x) {
  const float a = std::fabs(x) * 0.70710678f;
  const float t = 1.0f / (1.0f + 0.3275911f * a);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const float tail = 0.5f * p * t * exponential(-a * a);  // ½ (1 - erf(a))
  return x * (x >= 0.0f ? 1.0f - tail : tail);
}

SIEVE_INLINE float activate(int activation, float x) {
  switch (activation) {
    case SILU:
      return silu(x);
    case GELU:
      return gelu(x);
    case GELU_TANH:
      return gelu_tanh(x);
    default:
      return x < 0.0f ? 0.0f : x;
  }
}

}  // namespace sieve
