// RMS normalisation, rotary positions, sums of channels: one pass over what torch's eager operators pass over ten
// times. Rounding follows the modules of transformers step by step, so that results are theirs.
#include "../native/parallel.h"

#include <cmath>

namespace sieve {
namespace {

enum Type : int64_t { BF16 = 0, FLOAT32 = 1 };

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define EVERY_ISA __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_ISA
#endif
#define INLINE inline __attribute__((always_inline))

using bf16 = uint16_t;

INLINE float widen(float v) { return v; }
INLINE float widen(bf16 v) {
  const uint32_t bits = static_cast<uint32_t>(v) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}

template <class T>
T narrow(float v);
template <>
INLINE float narrow<float>(float v) {
  return v;
}
template <>
INLINE bf16 narrow<bf16>(float v) {  // to nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return static_cast<bf16>(v != v ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class T>
INLINE float rounded(float v) {
  return widen(narrow<T>(v));
}

template <class T>
INLINE void normalise(const T* x, const T* weight, T* y, int64_t n, float epsilon) {
  float squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < n; ++i) squares += widen(x[i]) * widen(x[i]);
  const float scale = 1 / std::sqrt(squares / n + epsilon);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = narrow<T>(widen(weight[i]) * rounded<T>(widen(x[i]) * scale));
}

// One head of one token, of 2 · half numbers.
template <class T>
INLINE void rotate(const T* x, const T* cos, const T* sin, T* y, int64_t half) {
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const float a = widen(x[i]), b = widen(x[i + half]);
    y[i] = narrow<T>(rounded<T>(a * widen(cos[i])) - rounded<T>(b * widen(sin[i])));
    y[i + half] = narrow<T>(rounded<T>(b * widen(cos[i + half])) + rounded<T>(a * widen(sin[i + half])));
  }
}

// Channels first … end - 1 of rows whose mask is not 0, four rows at a time so that sums are fetched a quarter as
// often.
template <class T>
INLINE void add_rows(const T* x, int64_t stride, const uint8_t* mask, int64_t rows, int64_t first, int64_t end,
                     float* sums, int64_t n) {
  float *plain = sums, *absolute = sums + n, *square = sums + 2 * n;
  for (int64_t row = 0; row < rows;) {
    const T* four[4];
    int count = 0;
    for (; row < rows && count < 4; ++row)
      if (mask == nullptr || mask[row]) four[count++] = x + row * stride;
    if (count == 4) {
#pragma omp simd
      for (int64_t i = first; i < end; ++i) {
        const float a = widen(four[0][i]), b = widen(four[1][i]), c = widen(four[2][i]), d = widen(four[3][i]);
        plain[i] += (a + b) + (c + d);
        absolute[i] += (std::fabs(a) + std::fabs(b)) + (std::fabs(c) + std::fabs(d));
        square[i] += (a * a + b * b) + (c * c + d * d);
      }
      continue;
    }
    for (int k = 0; k < count; ++k)
      for (int64_t i = first; i < end; ++i) {
        const float a = widen(four[k][i]);
        plain[i] += a;
        absolute[i] += std::fabs(a);
        square[i] += a * a;
      }
  }
}

struct Sums {
  int64_t type;
  const void* x;
  int64_t stride, rows, n;
  const uint8_t* mask;
  float* sums;  // [3, n]
};

struct Norm {
  int64_t type;
  const char* x;
  int64_t x_stride, rows, n;
  const char* weight;
  char* y;
  double epsilon;
};

struct Heads {
  const char* x;
  int64_t batch, head, token;  // strides of x
  char* y;
  int64_t y_batch, y_head, y_token;
  int64_t count;
};

struct Rotary {
  int64_t type, batches, tokens, size;  // size of a head
  const char *cos, *sin;
  int64_t batch, token;  // strides of cos and sin; batch is 0 where there is one for all
  Heads heads[2];
};

template <class T>
INLINE void norm_rows(const Norm& norm, int64_t first, int64_t end) {
  const auto at = [](auto* base, int64_t i) { return reinterpret_cast<const T*>(base) + i; };
  for (int64_t row = first; row < end; ++row)
    normalise<T>(at(norm.x, row * norm.x_stride), at(norm.weight, 0), reinterpret_cast<T*>(norm.y) + row * norm.n,
                 norm.n, static_cast<float>(norm.epsilon));
}

template <class T>
INLINE void rotate_tokens(const Rotary& call, int64_t first, int64_t end) {
  const auto at = [](const char* base, int64_t i) { return reinterpret_cast<const T*>(base) + i; };
  for (int64_t i = first; i < end; ++i) {
    const int64_t batch = i / call.tokens, token = i % call.tokens;
    const int64_t angle = batch * call.batch + token * call.token;
    for (const Heads& heads : call.heads)
      for (int64_t head = 0; head < heads.count; ++head)
        rotate<T>(at(heads.x, batch * heads.batch + head * heads.head + token * heads.token), at(call.cos, angle),
                  at(call.sin, angle),
                  reinterpret_cast<T*>(heads.y) + batch * heads.y_batch + head * heads.y_head + token * heads.y_token,
                  call.size / 2);
  }
}

EVERY_ISA void norm_share(const Norm& norm, int64_t first, int64_t end) {
  norm.type == BF16 ? norm_rows<bf16>(norm, first, end) : norm_rows<float>(norm, first, end);
}

EVERY_ISA void sums_share(const Sums& call, int64_t first, int64_t end) {
  call.type == BF16
      ? add_rows(static_cast<const bf16*>(call.x), call.stride, call.mask, call.rows, first, end, call.sums, call.n)
      : add_rows(static_cast<const float*>(call.x), call.stride, call.mask, call.rows, first, end, call.sums, call.n);
}

EVERY_ISA void rotary_share(const Rotary& call, int64_t first, int64_t end) {
  call.type == BF16 ? rotate_tokens<bf16>(call, first, end) : rotate_tokens<float>(call, first, end);
}

template <class Share>
void in_shares(int64_t count, int64_t bytes, Share share) {
  const int threads = useful_threads(bytes, 0);
#pragma omp parallel num_threads(threads) if (threads > 1)
  share(omp_get_thread_num() * count / omp_get_num_threads(),
        (omp_get_thread_num() + 1) * count / omp_get_num_threads());
}

}  // namespace
}  // namespace sieve

// The arguments are `Norm`, `Sums` and `Rotary` above, as a block of 64-bit numbers: what a caller from Python fills
// soonest.
extern "C" void sieve_rms_norm(const void* call) {
  using namespace sieve;
  const Norm& norm = *static_cast<const Norm*>(call);
  const int64_t bytes = norm.rows * norm.n * (norm.type == BF16 ? 2 : 4);
  in_shares(norm.rows, 2 * bytes, [&](int64_t first, int64_t end) { norm_share(norm, first, end); });
}

extern "C" void sieve_channel_sums(const void* call_) {
  using namespace sieve;
  const Sums& call = *static_cast<const Sums*>(call_);
  const int64_t bytes = call.rows * call.n * (call.type == BF16 ? 2 : 4);
  in_shares(call.n, bytes, [&](int64_t first, int64_t end) { sums_share(call, first, end); });
}

extern "C" void sieve_rotary(const void* call_) {
  using namespace sieve;
  const Rotary& call = *static_cast<const Rotary*>(call_);
  const int64_t tokens = call.batches * call.tokens, heads = call.heads[0].count + call.heads[1].count;
  const int64_t bytes = tokens * heads * call.size * (call.type == BF16 ? 2 : 4);
  in_shares(tokens, 2 * bytes, [&](int64_t first, int64_t end) { rotary_share(call, first, end); });
}
