// Gram matrices on AMX: out += xᵀ y over selected tokens, accumulators in float32.
//
// bf16 elements are multiplied directly. A float32 element is split into three bf16 terms, exactly: 8 + 8 + 8 bits of
// mantissa. Of the nine products of terms only the six that reach the last bit of a float32 product are formed;
// together they take less time than one product in float32 arithmetic. A thread takes a block of `out` and all tokens.
// For a few tokens at a time it packs the block's channels into tiles, left (transposed) and right (pairs of tokens),
// multiplies and adds, all inside its L2 cache. Channels are packed again for every block, which costs less than
// fetching packed ones from outside L2.
#include "gram.h"

#include "cpu_features.h"
#include "threading.h"

#include "amx.h"

#ifdef SIEVE_AMX

namespace sieve {
namespace {

constexpr int64_t PANEL = 2 * TILE;      // channels of a panel: two tiles
constexpr int64_t PANELS_PER_SIDE = 12;  // at most, along a block
constexpr int64_t ACCUMULATORS = PANEL * PANEL;
constexpr int64_t MAX_TOKENS_PER_SUM = 4096;  // longer sums would lose digits, so `out` adds up sums of these

// Sixteen channels of tokens t and t + 1 as pairs, one register per term; tokens from `end` on are zero. Returns
// whether all elements can be split into terms: infinities and NaN cannot.
template <TokenType type>
inline bool load_pairs(const Tokens& x, int64_t t, int64_t end, int64_t channel, __mmask16 mask, __m512i* terms) {
  // bf16: one term, the elements themselves.
  const bool first = t < end, second = t + 1 < end;
  if (type == TOKENS_BF16) {
    const auto load = [&](int64_t row) {
      return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x.row(row) + 2 * channel));
    };
    const __m512i low = first ? load(t) : _mm512_setzero_si512();
    const __m512i high = second ? load(t + 1) : _mm512_setzero_si512();
    terms[0] = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
    return true;
  }

  // float32: each term is the upper half of what the terms before it leave, cut off and not rounded, so it is exact.
  const auto load = [&](int64_t row) { return _mm512_maskz_loadu_ps(mask, x.row(row) + 4 * channel); };
  __m512 low = first ? load(t) : _mm512_setzero_ps(), high = second ? load(t + 1) : _mm512_setzero_ps();
  constexpr int NAN_OR_INFINITY = 0x01 | 0x08 | 0x10 | 0x80;
  const __mmask16 not_finite =
      _mm512_fpclass_ps_mask(low, NAN_OR_INFINITY) | _mm512_fpclass_ps_mask(high, NAN_OR_INFINITY);
  const __m512i top = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  for (int term = 0; term < 3; ++term) {
    const __m512i a = _mm512_and_si512(_mm512_castps_si512(low), top);
    const __m512i b = _mm512_and_si512(_mm512_castps_si512(high), top);
    terms[term] = _mm512_or_si512(_mm512_srli_epi32(a, 16), b);
    low = _mm512_sub_ps(low, _mm512_castsi512_ps(a));
    high = _mm512_sub_ps(high, _mm512_castsi512_ps(b));
  }
  return not_finite == 0;
}

// Packs one panel of tokens first … end - 1 as [step of 32 tokens][term][tile]. Either destination may be nullptr.
template <TokenType type>
bool pack_panel(const Tokens& x, int64_t first, int64_t end, int64_t panel, char* left, char* right) {
  constexpr int terms = type == TOKENS_BF16 ? 1 : 3;
  bool finite = true;
  for (int64_t step = first; step < end; step += DEPTH)
    for (int tile = 0; tile < 2; ++tile) {
      const int64_t channel = panel * PANEL + tile * TILE;
      const __mmask16 mask = first_lanes(x.n - channel);
      // Load and split 32 tokens of 16 channels.
      __m512i pairs[terms][16];
      for (int p = 0; p < 16; ++p) {
        __m512i v[terms];
        finite &= load_pairs<type>(x, step + 2 * p, end, channel, mask, v);
        for (int term = 0; term < terms; ++term) pairs[term][p] = v[term];
      }

      // The pairs are the right operand; their transpose is the left one.
      for (int term = 0; term < terms; ++term) {
        const int64_t at = (((step - first) / DEPTH * terms + term) * 2 + tile) * TILE_BYTES;
        if (right)
          for (int p = 0; p < 16; ++p) _mm512_store_si512(right + at + 64 * p, pairs[term][p]);
        if (left) {
          transpose(pairs[term]);
          for (int p = 0; p < 16; ++p) _mm512_store_si512(left + at + 64 * p, pairs[term][p]);
        }
      }
    }
  return finite;
}

inline void load_left(const char* at) {
  _tile_loadd(4, at, 64);
  _tile_loadd(5, at + TILE_BYTES, 64);
}

inline void multiply_right(const char* at) {
  _tile_loadd(6, at, 64);
  _tile_loadd(7, at + TILE_BYTES, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// accumulators [2 × 2 tiles] += left panel × right panel.
template <TokenType type>
inline void multiply_panels(const char* left, const char* right, int64_t steps, float* accumulators) {
  // The accumulators stay in tiles 0 … 3 during all steps.
  constexpr int64_t TERM = 2 * TILE_BYTES;
  _tile_loadd(0, accumulators, 64);
  _tile_loadd(1, accumulators + 256, 64);
  _tile_loadd(2, accumulators + 512, 64);
  _tile_loadd(3, accumulators + 768, 64);

  // Products of terms, grouped by the left term so that it is loaded once: float32 needs (0, 0), (0, 1), (0, 2), (1,
  // 0), (1, 1) and (2, 0).
  for (int64_t step = 0; step < steps; ++step) {
    load_left(left);
    multiply_right(right);
    if (type == TOKENS_FLOAT32) {
      multiply_right(right + TERM);
      multiply_right(right + 2 * TERM);
      load_left(left + TERM);
      multiply_right(right);
      multiply_right(right + TERM);
      load_left(left + 2 * TERM);
      multiply_right(right);
    }
    left += type == TOKENS_BF16 ? TERM : 3 * TERM;
    right += type == TOKENS_BF16 ? TERM : 3 * TERM;
  }
  _tile_stored(0, accumulators, 64);
  _tile_stored(1, accumulators + 256, 64);
  _tile_stored(2, accumulators + 512, 64);
  _tile_stored(3, accumulators + 768, 64);
}

// The same in scalar arithmetic, for tokens with infinities or NaN, which have no terms.
void multiply_scalar(const Tokens& x, const Tokens& y, int64_t first, int64_t end, int64_t row, int64_t column,
                     float* accumulators) {
  for (int64_t t = first; t < end; ++t) {
    const float* a = reinterpret_cast<const float*>(x.row(t));
    const float* b = reinterpret_cast<const float*>(y.row(t));
    for (int64_t i = row; i < std::min(row + PANEL, x.n); ++i)
      for (int64_t j = column; j < std::min(column + PANEL, y.n); ++j) {
        const int64_t tile = (i - row) / TILE * 2 + (j - column) / TILE;
        accumulators[tile * 256 + (i - row) % TILE * TILE + (j - column) % TILE] += a[i] * b[j];
      }
  }
}

// out [row.., column..] += accumulators of a pair of panels, inside rows × columns. Symmetric: only on and above the
// diagonal, and the results are mirrored below it.
void add_accumulators(const float* accumulators, float* out, int64_t stride, int64_t rows, int64_t columns, int64_t row,
                      int64_t column, bool symmetric) {
  for (int a = 0; a < 2; ++a)
    for (int b = 0; b < 2; ++b) {
      const int64_t i0 = row + a * TILE, j0 = column + b * TILE;
      if (i0 >= rows || j0 >= columns || (symmetric && i0 > j0)) continue;

      // Add the tile to `out`, on the diagonal only its upper half, and keep the results for the mirror.
      const bool diagonal = symmetric && i0 == j0;
      const int64_t height = std::min<int64_t>(TILE, rows - i0), width = std::min<int64_t>(TILE, columns - j0);
      __m512i v[16];
      for (int64_t i = 0; i < TILE; ++i) {
        v[i] = _mm512_setzero_si512();
        if (i >= height) continue;
        const __mmask16 mask = first_lanes(width) & static_cast<__mmask16>(diagonal ? 0xffffu << i : 0xffffu);
        float* at = out + (i0 + i) * stride + j0;
        const __m512 sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, at),
                                         _mm512_loadu_ps(accumulators + (a * 2 + b) * 256 + i * TILE));
        _mm512_mask_storeu_ps(at, mask, sum);
        v[i] = _mm512_castps_si512(sum);
      }

      // Mirror them below the diagonal.
      if (!symmetric) continue;
      transpose(v);
      for (int64_t j = 0; j < width; ++j)
        _mm512_mask_storeu_ps(out + (j0 + j) * stride + i0, first_lanes(diagonal ? std::min(j, height) : height),
                              _mm512_castsi512_ps(v[j]));
    }
}

// The block of `out` of row panels top … bottom - 1 and column panels start … end - 1, over tokens from … to - 1.
template <TokenType type>
void block(float* out, int64_t stride, const Tokens& x, const Tokens& y, int64_t from, int64_t to, int64_t top,
           int64_t bottom, int64_t start, int64_t end, bool symmetric, Workspace& workspace) {
  constexpr int64_t STEPS = type == TOKENS_BF16 ? 8 : 4;  // packed at once: a right panel fits L1, all panels fit L2
  constexpr int64_t PANEL_BYTES = STEPS * (type == TOKENS_BF16 ? 1 : 3) * 2 * TILE_BYTES;

  // The thread's memory: left panels, right panels, and the accumulators of the whole block.
  char* left = workspace.get(2 * PANELS_PER_SIDE * PANEL_BYTES +
                             PANELS_PER_SIDE * PANELS_PER_SIDE * ACCUMULATORS * sizeof(float));
  char* right = left + PANELS_PER_SIDE * PANEL_BYTES;
  float* accumulators = reinterpret_cast<float*>(right + PANELS_PER_SIDE * PANEL_BYTES);
  const bool diagonal = symmetric && top == start;
  const auto last_row = [&](int64_t c) { return symmetric ? std::min(bottom, c + 1) : bottom; };
  std::memset(accumulators, 0, PANELS_PER_SIDE * PANELS_PER_SIDE * ACCUMULATORS * sizeof(float));

  // A few tokens at a time: pack, then multiply all pairs of panels.
  for (int64_t first = from; first < to; first += STEPS * DEPTH) {
    const int64_t next = std::min(first + STEPS * DEPTH, to), steps = round_up(next - first, DEPTH) / DEPTH;

    // On the diagonal left and right panels have the same channels, so one pass packs both.
    bool finite = true;
    for (int64_t r = top; r < bottom; ++r)
      finite &= pack_panel<type>(x, first, next, r, left + (r - top) * PANEL_BYTES,
                                  diagonal ? right + (r - top) * PANEL_BYTES : nullptr);
    for (int64_t c = start; c < end && !diagonal; ++c)
      finite &= pack_panel<type>(y, first, next, c, nullptr, right + (c - start) * PANEL_BYTES);

    // Column by column, so that a right panel stays in L1 while the left ones pass by.
    for (int64_t c = start; c < end; ++c)
      for (int64_t r = top; r < last_row(c); ++r) {
        float* at = accumulators + ((r - top) * PANELS_PER_SIDE + c - start) * ACCUMULATORS;
        if (finite)
          multiply_panels<type>(left + (r - top) * PANEL_BYTES, right + (c - start) * PANEL_BYTES, steps, at);
        else
          multiply_scalar(x, y, first, next, r * PANEL, c * PANEL, at);
      }
  }

  // `out` is read and written once per block.
  for (int64_t c = start; c < end; ++c)
    for (int64_t r = top; r < last_row(c); ++r)
      add_accumulators(accumulators + ((r - top) * PANELS_PER_SIDE + c - start) * ACCUMULATORS, out, stride, x.n, y.n,
                       r * PANEL, c * PANEL, symmetric);
}

// Blocks along a side: at most PANELS_PER_SIDE panels each, and enough blocks to keep every thread busy.
int64_t blocks_along(int64_t panels) {
  int64_t blocks = round_up(panels, PANELS_PER_SIDE) / PANELS_PER_SIDE;
  while (blocks < panels && blocks * (blocks + 1) / 2 < 3 * omp_get_max_threads()) ++blocks;
  return blocks;
}

// out += xᵀ y over `count` tokens, block by block on all threads.
template <TokenType type>
void accumulate(float* out, int64_t stride, const Tokens& x, const Tokens& y, int64_t count, bool symmetric) {
  const int64_t rows = round_up(x.n, PANEL) / PANEL, columns = round_up(y.n, PANEL) / PANEL;
  const int64_t blocks_m = blocks_along(rows), blocks_n = blocks_along(columns);
#pragma omp parallel
  {
    static thread_local Workspace workspace;
    const Tiles tiles;
    // Blocks far from the diagonal first: those on it are half the work, and short blocks at the end keep threads busy.
#pragma omp for schedule(dynamic) collapse(2)
    for (int64_t distance = blocks_n - 1; distance > -blocks_m; --distance)
      for (int64_t i = 0; i < blocks_m; ++i) {
        const int64_t j = i + distance;
        if (j < 0 || j >= blocks_n || (symmetric && j < i)) continue;
        for (int64_t from = 0; from < count; from += MAX_TOKENS_PER_SUM)
          block<type>(out, stride, x, y, from, std::min(from + MAX_TOKENS_PER_SUM, count), i * rows / blocks_m,
                      (i + 1) * rows / blocks_m, j * columns / blocks_n, (j + 1) * columns / blocks_n, symmetric,
                      workspace);
      }
  }
}

}  // namespace
}  // namespace sieve

TARGET_END
#endif

// out [n, m] += Σ_t x_t y_tᵀ over `count` tokens, those of `index` (or the first ones). y = nullptr: y = x, the upper
// triangle of out is read and both are written. type: 0 bf16, 1 float32. Returns 1 where it computed out: with AMX, or
// for y = x with AVX-512; else 0.
extern "C" int sieve_gram(int type, float* out, int64_t out_stride, const void* x, int64_t x_stride, int64_t n,
                          const void* y, int64_t y_stride, int64_t m, const int64_t* index, int64_t count) {
  using namespace sieve;
  const Tokens left{static_cast<const char*>(x), x_stride, n, index, static_cast<TokenType>(type)};
#ifdef SIEVE_AMX
  if (isa_in_use >= AMX) {
    const Tokens right{static_cast<const char*>(y), y_stride, m, index, static_cast<TokenType>(type)};
    const auto add = type == TOKENS_BF16 ? accumulate<TOKENS_BF16> : accumulate<TOKENS_FLOAT32>;
    add(out, out_stride, left, y ? right : left, count, y == nullptr);
    return 1;
  }
#endif
  if (isa_in_use < AVX512 || y != nullptr) return 0;
  gram_avx512(out, out_stride, left, count);
  return 1;
}
