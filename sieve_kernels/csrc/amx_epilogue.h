// The epilogue of a product: accumulators, 2 × 2 tiles of 16 weight rows × 16 tokens, are rounded and packed for the
// next product, or activated, or transposed and stored. Each function handles the 16 tokens of one `tile`, which is
// little enough to run between two steps of the next product. Include amx.h before this file.
#pragma once

#include "activations.h"
#include "layer_args.h"

namespace sieve {
namespace {

constexpr int64_t PANEL = 2 * TILE;  // weight rows of one product, and its tokens
constexpr int64_t ACCUMULATORS = PANEL * PANEL;

using bf16 = uint16_t;

// Rows 2p and 2p + 1 of the accumulators, rounded to bf16, as pairs: one register holds the 16 tokens of a tile.
inline __m512i round_pair(const float* accumulators, int p, int tile) {
  alignas(64) static constexpr uint16_t ALTERNATE[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                         8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const float* pair = accumulators + (p / 8 * 2 + tile) * 256 + p % 8 * 2 * TILE;
  const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_load_ps(pair + TILE), _mm512_load_ps(pair));
  return _mm512_permutexvar_epi16(_mm512_load_si512(ALTERNATE), reinterpret_cast<__m512i>(both));
}

// 32 rows of zᵀ for 16 tokens, packed: half of one step of the next product's right operand.
inline void pack_accumulators(const float* accumulators, char* to, int tile) {
  for (int p = 0; p < 16; ++p) _mm512_store_si512(to + tile * TILE_BYTES + 64 * p, round_pair(accumulators, p, tile));
}

// accumulators += bias of rows row … row + 31, for 16 tokens.
inline void add_bias(float* accumulators, const void* bias, int64_t row, int64_t rows, int tile) {
  for (int64_t i = 0; i < std::min(PANEL, rows - row); ++i) {
    const uint32_t bits = static_cast<uint32_t>(static_cast<const bf16*>(bias)[row + i]) << 16;
    const __m512 value = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(bits)));
    float* at = accumulators + (i / TILE * 2 + tile) * 256 + i % TILE * TILE;
    _mm512_store_ps(at, _mm512_add_ps(_mm512_load_ps(at), value));
  }
}

// y [16 tokens, rows row … row + 31] = transposed accumulators.
inline void store_accumulators(const float* accumulators, const Layer& layer, int64_t row, int64_t token, int64_t end,
                               int tile) {
  const int64_t rows = std::min<int64_t>(PANEL, layer.m - row);
  __m512i v[16];
  for (int p = 0; p < 16; ++p) v[p] = round_pair(accumulators, p, tile);
  transpose(v);
  token += tile * TILE;
  bf16* y = static_cast<bf16*>(layer.y) + token * layer.y_stride + row;
  const int64_t tokens = std::clamp<int64_t>(end - token, 0, TILE);
  if (tokens == TILE && rows == PANEL) {
    for (int t = 0; t < TILE; ++t) _mm512_storeu_si512(y + t * layer.y_stride, v[t]);
    return;
  }
  const __mmask32 mask = static_cast<__mmask32>((uint64_t{1} << rows) - 1);
  for (int64_t t = 0; t < tokens; ++t) _mm512_mask_storeu_epi16(y + t * layer.y_stride, mask, v[t]);
}

// v · sigmoid(u), with an error far below the rounding to bf16 that follows: 1 / (1 + 2^-u·log2(e)).
inline __m512 times_sigmoid(__m512 v, __m512 u) {
  const __m512 exponent = _mm512_mul_ps(u, _mm512_set1_ps(-1.44269504f));
  const __m512 whole = _mm512_roundscale_ps(exponent, 0), f = _mm512_sub_ps(exponent, whole);
  __m512 power = _mm512_set1_ps(9.61813e-3f);  // 2^f for |f| ≤ 1/2, to 4e-5
  for (float c : {5.55041e-2f, 2.402265e-1f, 6.931472e-1f, 1.0f}) power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(c));
  const __m512 sum = _mm512_add_ps(_mm512_set1_ps(1.0f), _mm512_scalef_ps(power, whole));
  return _mm512_mul_ps(v, _mm512_rcp14_ps(sum));
}

constexpr int ROWS = 4;  // rows that are activated between two steps

// gate = activation(gate) · up, for rows row … row + ROWS - 1 of 16 tokens.
inline void activate_accumulators(int activation, float* gate, const float* up, int row, int tile) {
  const int64_t at = (row / TILE * 2 + tile) * 256 + row % TILE * TILE;
  gate += at;
  up += at;
  const auto apply = [&](auto function) {
#pragma omp simd
    for (int i = 0; i < ROWS * TILE; ++i) gate[i] = function(gate[i]) * up[i];
  };
  switch (activation) {
    case SILU:
      for (int i = 0; i < ROWS * TILE; i += TILE) {
        const __m512 v = _mm512_load_ps(gate + i);
        _mm512_store_ps(gate + i, _mm512_mul_ps(times_sigmoid(v, v), _mm512_load_ps(up + i)));
      }
      return;
    case GELU:
      return apply([](float v) { return gelu(v); });
    case GELU_TANH:
      return apply([](float v) { return gelu_tanh(v); });
    default:
      return apply([](float v) { return v < 0.0f ? 0.0f : v; });
  }
}

}  // namespace
}  // namespace sieve
