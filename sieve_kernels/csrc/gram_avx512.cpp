// Gram matrices on processors with AVX-512 and without AMX: out += xᵀ x over selected tokens, in float32.
//
// For a chunk of tokens at a time, the threads pack x into panels of 48 channels, token by token, bf16 as float32. A
// thread then takes a square block of `out` and goes through the chunk in steps: the block's accumulators and the
// panels of a step fit its L2, and the panel of columns fits L1. A tile of 8 × 48 accumulators is 24 registers: for
// every token three vectors of one panel are multiplied with 8 channels of another, 24 products for 11 loads. Tiles
// below the diagonal are left out, and the result is mirrored once, at the end. The order of summation does not depend
// on the number of threads.
#include "gram.h"

#include "target.h"
#include "threading.h"

#ifdef SIEVE_X86
#include <immintrin.h>
TARGET("avx512f,avx512bw,avx512vl,avx512dq,fma")
#include "avx512.h"

namespace sieve {
namespace {

constexpr int64_t LANES = 16;
constexpr int VECTORS = 3;                  // per panel
constexpr int ROWS = 8;                     // per tile
constexpr int64_t PANEL = VECTORS * LANES;  // channels
constexpr int64_t TILES = PANEL / ROWS;     // per pair of panels
constexpr int64_t TILE_SIZE = ROWS * PANEL;
constexpr int64_t STEP = 128;        // tokens that one pass of a tile takes: 24 KiB a panel
constexpr int64_t CHUNK = 8 * STEP;  // tokens that are packed at once
constexpr int64_t MAX_SIDE = 8;      // panels along a block: its accumulators take 576 KiB

// Packs one panel of tokens first … end - 1 as [token][channel]; channels from n on are zero.
void pack_panel(const Tokens& x, int64_t first, int64_t end, int64_t panel, float* packed) {
  for (int64_t t = first; t < end; ++t, packed += PANEL)
    for (int v = 0; v < VECTORS; ++v) {
      const int64_t channel = panel * PANEL + v * LANES;
      const __mmask16 mask = first_lanes(x.n - channel);
      __m512 values;
      if (x.type == TOKENS_FLOAT32) {
        values = _mm512_maskz_loadu_ps(mask, x.row(t) + 4 * channel);
      } else {
        const __m256i halves = _mm256_maskz_loadu_epi16(mask, x.row(t) + 2 * channel);
        values = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
      }
      _mm512_store_ps(packed + v * LANES, values);
    }
}

// Where a tile's accumulators go: between steps to the thread's own memory, after the last step to `out`.
struct Destination {
  float* accumulators;  // [ROWS, PANEL]
  float* out;           // [height, width] inside of the result; nullptr before the last step
  int64_t stride, height, width;
  bool is_first_step;  // `accumulators` are still undefined
};

// destination [ROWS, the last V vectors of a panel] += products over tokens; rows and columns are packed.
template <int V>
void multiply_tile(const float* rows, const float* columns, int64_t tokens, const Destination& to) {
  // `out` is wanted at the end of the last step: fetch it meanwhile.
  constexpr int FIRST = (VECTORS - V) * LANES;
  if (to.out)
    for (int64_t i = 0; i < to.height; ++i)
      for (int j = 0; j < V; ++j) _mm_prefetch(to.out + i * to.stride + FIRST + j * LANES, _MM_HINT_T0);

  // The products, in registers: all loops over `v` must be unrolled.
  __m512 v[ROWS][V];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < V; ++j) v[i][j] = _mm512_setzero_ps();
  for (int64_t t = 0; t < tokens; ++t, rows += PANEL, columns += PANEL) {
    __m512 right[V];
#pragma GCC unroll 3
    for (int j = 0; j < V; ++j) right[j] = _mm512_load_ps(columns + FIRST + j * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
      const __m512 left = _mm512_set1_ps(rows[i]);
#pragma GCC unroll 3
      for (int j = 0; j < V; ++j) v[i][j] = _mm512_fmadd_ps(left, right[j], v[i][j]);
    }
  }

  // The sums of steps are added up: shorter sums lose fewer digits. What is written below the diagonal, the mirror
  // overwrites.
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < V; ++j) {
      float* accumulators = to.accumulators + i * PANEL + FIRST + j * LANES;
      const __m512 sum = to.is_first_step ? v[i][j] : _mm512_add_ps(_mm512_load_ps(accumulators), v[i][j]);
      if (!to.out) {
        _mm512_store_ps(accumulators, sum);
      } else if (i < to.height) {
        float* at = to.out + i * to.stride + FIRST + j * LANES;
        const __mmask16 mask = first_lanes(to.width - FIRST - j * LANES);
        _mm512_mask_storeu_ps(at, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, at), sum));
      }
    }
}

// The block of `out` [n, n] of row panels top … bottom - 1 and column panels start … end - 1, without the tiles below
// the diagonal. `accumulators` hold up to MAX_SIDE² pairs of panels.
struct Block {
  int64_t top, bottom, start, end;
  float *accumulators, *out;
  int64_t stride, n;

  // One step of `tokens` tokens; packed panels are `panel_stride` elements apart.
  void multiply(const float* packed, int64_t panel_stride, int64_t tokens, bool is_first, bool is_last) const {
    float* at = accumulators;
    for (int64_t column = start; column < end; ++column)
      for (int64_t row = top; row < std::min(bottom, column + 1); ++row)
        for (int64_t tile = 0; tile < TILES; ++tile, at += TILE_SIZE) {
          const int64_t first = row * PANEL + tile * ROWS;
          float* target = is_last && first < n ? out + first * stride + column * PANEL : nullptr;
          const Destination to{at, target, stride, std::min<int64_t>(ROWS, n - first), n - column * PANEL, is_first};
          // On the diagonal, vectors that lie wholly below it are skipped.
          const int64_t skipped = row == column ? tile * ROWS / LANES : 0;
          const auto add = skipped == 0 ? multiply_tile<3> : skipped == 1 ? multiply_tile<2> : multiply_tile<1>;
          add(packed + row * panel_stride + tile * ROWS, packed + column * panel_stride, tokens, to);
        }
  }
};

// out [j, i] = out [i, j] for i < j, for one panel of columns j, 16 × 16 elements at a time so that reads and writes
// are contiguous.
void mirror_panel(float* out, int64_t stride, int64_t n, int64_t panel) {
  const int64_t begin = panel * PANEL, end = std::min(begin + PANEL, n);
  for (int64_t i = 0; i < end; i += LANES)
    for (int64_t j = std::max(i, begin); j < end; j += LANES) {
      const int64_t height = std::min(LANES, n - i), width = std::min(LANES, n - j);
      __m512i v[16];
      for (int64_t k = 0; k < LANES; ++k)
        v[k] = _mm512_maskz_loadu_epi32(k < height ? first_lanes(width) : 0, out + (i + k) * stride + j);
      transpose(v);
      for (int64_t k = 0; k < width; ++k)
        _mm512_mask_storeu_epi32(out + (j + k) * stride + i, first_lanes(i == j ? k : height), v[k]);
    }
}

}  // namespace

void gram_avx512(float* out, int64_t out_stride, const Tokens& x, int64_t count) {
  // Memory of a packed chunk, [panel][token][channel]. Where all panels of a step fit L2 together with the
  // accumulators, a chunk is one step.
  const int64_t panels = round_up(x.n, PANEL) / PANEL, chunk = panels <= 2 * MAX_SIDE ? STEP : CHUNK;
  const int64_t panel_stride = std::min(chunk, round_up(count, LANES)) * PANEL;
  static thread_local Workspace workspace;
  float* packed = reinterpret_cast<float*>(workspace.get(panels * panel_stride * sizeof(float)));

  // Blocks along a side: at most MAX_SIDE panels each, and enough blocks to keep every thread busy.
  int64_t blocks = round_up(panels, MAX_SIDE) / MAX_SIDE;
  while (blocks < panels && blocks * (blocks + 1) / 2 < 3 * omp_get_max_threads()) ++blocks;
#pragma omp parallel
  {
    static thread_local Workspace thread_memory;
    float* accumulators =
        reinterpret_cast<float*>(thread_memory.get(MAX_SIDE * MAX_SIDE * TILES * TILE_SIZE * sizeof(float)));
    for (int64_t first = 0; first < count; first += chunk) {
      // All threads pack the chunk; the loop ends with a barrier.
      const int64_t end = std::min(first + chunk, count);
#pragma omp for schedule(static)
      for (int64_t panel = 0; panel < panels; ++panel) pack_panel(x, first, end, panel, packed + panel * panel_stride);

      // Blocks far from the diagonal first: those on it are half the work, and short blocks at the end keep threads
      // busy.
#pragma omp for schedule(dynamic) collapse(2)
      for (int64_t distance = blocks - 1; distance >= 0; --distance)
        for (int64_t i = 0; i < blocks; ++i) {
          const int64_t j = i + distance;
          if (j >= blocks) continue;
          const Block block{i * panels / blocks,
                            (i + 1) * panels / blocks,
                            j * panels / blocks,
                            (j + 1) * panels / blocks,
                            accumulators,
                            out,
                            out_stride,
                            x.n};
          for (int64_t step = first; step < end; step += STEP)
            block.multiply(packed + (step - first) * PANEL, panel_stride, std::min(STEP, end - step), step == first,
                           step + STEP >= end);
        }
    }

    // The mirror, once, the longest panels first.
#pragma omp for schedule(dynamic)
    for (int64_t panel = panels - 1; panel >= 0; --panel) mirror_panel(out, out_stride, x.n, panel);
  }
}

}  // namespace sieve

TARGET_END
#else
namespace sieve {
void gram_avx512(float*, int64_t, const Tokens&, int64_t) {}
}  // namespace sieve
#endif
