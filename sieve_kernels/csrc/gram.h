// Arguments of the Gram kernels, the same for every instruction set.
#pragma once

#include <cstdint>

namespace sieve {

enum TokenType { TOKENS_BF16 = 0, TOKENS_FLOAT32 = 1 };

struct Tokens {
  const char* data;  // [T, n]
  int64_t stride;    // elements from one token to the next
  int64_t n;
  const int64_t* index;  // the selected tokens; nullptr: the first ones
  TokenType type;

  const char* row(int64_t t) const {
    return data + (index ? index[t] : t) * stride * (type == TOKENS_BF16 ? 2 : 4);
  }
};

// out [n, n] += Σ_t x_t x_tᵀ over `count` tokens, with AVX-512: the upper triangle of out is read and both are written.
void gram_avx512(float* out, int64_t out_stride, const Tokens& x, int64_t count);

}  // namespace sieve
