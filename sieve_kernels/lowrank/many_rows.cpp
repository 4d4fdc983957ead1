// Low-rank and dense layers on AMX tiles, bf16, for more than a few rows.
//
// Everything is computed transposed, zᵀ = A xᵀ and yᵀ = B zᵀ: then weights are left operands, whose tiles are loaded
// straight from where they lie, and only activations are rearranged. A block of tokens is packed as pairs, multiplied
// into zᵀ, which is packed again, still in cache, and multiplied into yᵀ; z never reaches memory. Threads take blocks
// of tokens, or, where there are fewer blocks than threads, share each block's output rows.
#include "../native/activations.h"
#include "../native/layers.h"
#include "../native/parallel.h"

#include <vector>

#include "../native/amx.h"

#ifdef SIEVE_AMX

namespace sieve {
namespace {

constexpr int64_t STRIP = 2 * TILE;   // weight rows, and tokens, of one product: 2 × 2 tiles of sums
constexpr int64_t BLOCK = 4 * STRIP;  // most tokens of a block: packed, they and z stay in L2

using bf16 = uint16_t;

// The threads that share a block, and which part of its rows this one takes.
struct Team {
  int64_t part, parts;

  void wait() const {
    if (parts > 1) {
#pragma omp barrier
    }
  }
  int64_t first(int64_t count) const { return part * count / parts; }
  int64_t end(int64_t count) const { return (part + 1) * count / parts; }
};

// Activations as right operands: [strip of 32 tokens][step of 32 numbers][2 tiles].
struct Packed {
  char* data;
  int64_t steps;

  char* at(int64_t strip, int64_t step) const { return data + (strip * steps + step) * 2 * TILE_BYTES; }
};

int64_t packed_bytes(int64_t tokens, int64_t n) { return up(tokens, STRIP) * up(n, DEPTH) * 2; }

void pack_tokens(const Problem& problem, int64_t first, int64_t tokens, const Packed& packed, const Team& team) {
  const bf16* x = static_cast<const bf16*>(problem.x);
  for (int64_t step = team.first(packed.steps); step < team.end(packed.steps); ++step)
    for (int64_t tile = 0; tile < up(tokens, STRIP) / TILE; ++tile) {
      const int64_t k = step * DEPTH;
      const __mmask32 mask = problem.n - k >= DEPTH ? ~__mmask32{0} : (__mmask32{1} << (problem.n - k)) - 1;
      __m512i v[16];
      for (int i = 0; i < TILE; ++i) {
        const int64_t token = tile * TILE + i;
        v[i] = token < tokens ? _mm512_maskz_loadu_epi16(mask, x + (first + token) * problem.x_stride + k)
                              : _mm512_setzero_si512();
      }
      transpose(v);
      char* to = packed.at(tile / 2, step) + tile % 2 * TILE_BYTES;
      for (int p = 0; p < 16; ++p) _mm512_store_si512(to + 64 * p, v[p]);
    }
}

// Weight rows row … row + 31 as left tiles. They are read where they lie; only the last numbers of rows whose length is
// no multiple of a tile's are copied, beside zeros. All of it is copied where rows are missing, or where the layer is
// pivoted: `sources` tells which row of [identity; weights] makes each output.
struct Strip {
  const bf16* data;
  int64_t stride;
  int64_t whole;     // steps that `data` holds
  const bf16* rest;  // the last step, if one is left
};

Strip take_strip(const void* weights, int64_t stride, int64_t rows, int64_t n, const int64_t* sources, int64_t row,
                 char* scratch) {
  const bf16* from = static_cast<const bf16*>(weights);
  bf16* copy = reinterpret_cast<bf16*>(scratch);
  const int64_t whole = n / DEPTH, left = n % DEPTH;
  if (!sources && row + STRIP <= rows) {
    from += row * stride;
    for (int64_t i = 0; left > 0 && i < STRIP; ++i) {
      const __m512i last = _mm512_maskz_loadu_epi16((__mmask32{1} << left) - 1, from + i * stride + whole * DEPTH);
      _mm512_store_si512(copy + i * DEPTH, last);
    }
    return {from, stride, whole, copy};
  }
  const int64_t width = up(n, DEPTH);
  std::memset(copy, 0, STRIP * width * sizeof(bf16));
  for (int64_t i = 0; i < std::min(STRIP, rows - row); ++i) {
    const int64_t source = sources ? sources[row + i] - n : row + i;
    constexpr bf16 ONE = 0x3f80;
    if (source < 0)
      copy[i * width + source + n] = ONE;
    else
      std::memcpy(copy + i * width, from + source * stride, n * sizeof(bf16));
  }
  return {copy, width, width / DEPTH, nullptr};
}

inline void multiply_step(const bf16* left, int64_t stride, const char* right) {
  _tile_loadd(4, left, stride * sizeof(bf16));
  _tile_loadd(6, right, 64);
  _tile_loadd(7, right + TILE_BYTES, 64);
  _tile_loadd(5, left + TILE * stride, stride * sizeof(bf16));
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// sums [2 × 2 tiles of 16 rows × 16 tokens] = strip × 32 tokens.
void multiply(const Strip& strip, const Packed& packed, int64_t token_strip, float* sums) {
  const char* right = packed.at(token_strip, 0);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < strip.whole; ++step, right += 2 * TILE_BYTES)
    multiply_step(strip.data + step * DEPTH, strip.stride, right);
  if (strip.whole < packed.steps) multiply_step(strip.rest, DEPTH, right);
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  _tile_stored(2, sums + 512, 64);
  _tile_stored(3, sums + 768, 64);
}

// Rows 2p and 2p + 1 of 32 rows of sums, rounded, as pairs: one register for the tokens of a tile.
inline __m512i round_pair(const float* sums, int p, int tile) {
  alignas(64) static constexpr uint16_t ALTERNATE[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                         8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const float* pair = sums + (p / 8 * 2 + tile) * 256 + p % 8 * 2 * TILE;
  const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_load_ps(pair + TILE), _mm512_load_ps(pair));
  return _mm512_permutexvar_epi16(_mm512_load_si512(ALTERNATE), reinterpret_cast<__m512i>(both));
}

// 32 rows of zᵀ as one step of the next product.
void pack_sums(const float* sums, char* to) {
  for (int tile = 0; tile < 2; ++tile)
    for (int p = 0; p < 16; ++p) _mm512_store_si512(to + tile * TILE_BYTES + 64 * p, round_pair(sums, p, tile));
}

// sums += bias of rows row … row + 31.
void add_bias(float* sums, const void* bias, int64_t row, int64_t rows) {
  for (int64_t i = 0; i < std::min(STRIP, rows - row); ++i) {
    const uint32_t bits = static_cast<uint32_t>(static_cast<const bf16*>(bias)[row + i]) << 16;
    const __m512 value = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(bits)));
    for (int tile = 0; tile < 2; ++tile) {
      float* at = sums + (i / TILE * 2 + tile) * 256 + i % TILE * TILE;
      _mm512_store_ps(at, _mm512_add_ps(_mm512_load_ps(at), value));
    }
  }
}

// y [tokens, rows row … row + 31] = transposed sums.
void store_sums(const float* sums, const Layer& layer, int64_t row, int64_t token, int64_t end) {
  const int64_t rows = std::min<int64_t>(STRIP, layer.m - row);
  const __mmask32 mask = static_cast<__mmask32>((uint64_t{1} << rows) - 1);
  for (int tile = 0; tile < 2; ++tile) {
    __m512i v[16];
    for (int p = 0; p < 16; ++p) v[p] = round_pair(sums, p, tile);
    transpose(v);
    bf16* y = static_cast<bf16*>(layer.y) + (token + tile * TILE) * layer.y_stride + row;
    const int64_t tokens = std::clamp<int64_t>(end - token - tile * TILE, 0, TILE);
    if (tokens == TILE && rows == STRIP) {
      for (int t = 0; t < TILE; ++t) _mm512_storeu_si512(y + t * layer.y_stride, v[t]);
      continue;
    }
    for (int64_t t = 0; t < tokens; ++t) _mm512_mask_storeu_epi16(y + t * layer.y_stride, mask, v[t]);
  }
}

void activate_sums(int activation, float* gate, const float* up_) {
  const auto apply = [&](auto function) {
#pragma omp simd
    for (int64_t i = 0; i < STRIP * STRIP; ++i) gate[i] = function(gate[i]) * up_[i];
  };
  switch (activation) {
    case SILU:
      return apply([](float v) { return silu(v); });
    case GELU:
      return apply([](float v) { return gelu(v); });
    case GELU_TANH:
      return apply([](float v) { return gelu_tanh(v); });
    default:
      return apply([](float v) { return v < 0.0f ? 0.0f : v; });
  }
}

using Sources = std::vector<std::vector<int64_t>>;  // of each layer, empty where it is not pivoted

// Tokens first … first + tokens - 1 through all layers. memory: shared by the team; scratch: this thread's own.
void block(const Problem& problem, const Sources& sources, int64_t first, int64_t tokens, char* memory, char* scratch,
           const Team& team) {
  const int64_t strips = up(tokens, STRIP) / STRIP;
  alignas(64) float sums[2][STRIP * STRIP];
  const Packed x{memory, up(problem.n, DEPTH) / DEPTH};
  Packed inputs[2] = {x, x};
  pack_tokens(problem, first, tokens, x, team);
  team.wait();

  const int64_t together = problem.activation < 0 ? 1 : 2;  // layers whose outputs meet
  for (int64_t at = 0; at < problem.count; at += together) {
    memory = x.data + packed_bytes(tokens, problem.n);
    for (int64_t i = 0; i < together; ++i) {
      const Layer& layer = problem.layers[at + i];
      inputs[i] = x;
      if (layer.A == nullptr) continue;
      inputs[i] = {memory, up(layer.r, DEPTH) / DEPTH};
      memory += packed_bytes(tokens, layer.r);
      for (int64_t step = team.first(inputs[i].steps); step < team.end(inputs[i].steps); ++step) {
        const Strip strip = take_strip(layer.A, layer.A_stride, layer.r, problem.n, nullptr, step * STRIP, scratch);
        for (int64_t s = 0; s < strips; ++s) {
          multiply(strip, x, s, sums[0]);
          pack_sums(sums[0], inputs[i].at(s, step));
        }
      }
    }
    team.wait();
    const int64_t row_strips = up(problem.layers[at].m, STRIP) / STRIP;
    for (int64_t row = team.first(row_strips) * STRIP; row < team.end(row_strips) * STRIP; row += STRIP) {
      Strip weights[2];
      char* room = scratch;
      for (int64_t i = 0; i < together; ++i) {
        const Layer& layer = problem.layers[at + i];
        weights[i] = take_strip(layer.B, layer.B_stride, layer.m, layer.A ? layer.r : problem.n,
                                sources[at + i].empty() ? nullptr : sources[at + i].data(), row, room);
        room += STRIP * inputs[i].steps * DEPTH * sizeof(bf16);
      }
      for (int64_t s = 0; s < strips; ++s) {
        for (int64_t i = 0; i < together; ++i) multiply(weights[i], inputs[i], s, sums[i]);
        if (together == 2) activate_sums(problem.activation, sums[0], sums[1]);
        if (problem.layers[at].bias) add_bias(sums[0], problem.layers[at].bias, row, problem.layers[at].m);
        store_sums(sums[0], problem.layers[at], row, first + s * STRIP, first + tokens);
      }
    }
    team.wait();  // before z is overwritten
  }
}

}  // namespace

bool many_rows(const Problem& problem) {
  if (problem.type != BF16 || problem.weights != BF16 || !amx_usable()) return false;
  if (problem.count > 1 && problem.activation < 0 && problem.T > BLOCK * omp_get_max_threads()) {
    for (int64_t i = 0; i < problem.count; ++i) {  // so many tokens that one layer's weights should stay in cache
      Problem one = problem;
      one.count = 1;
      one.layers = problem.layers + i;
      many_rows(one);
    }
    return true;
  }
  int64_t widest = problem.n, ranks = 0, weights = 0;
  Sources sources(problem.count);
  for (int64_t i = 0; i < problem.count; ++i) {
    if (problem.layers[i].permutation) {
      sources[i].resize(problem.layers[i].m);
      for (int64_t j = 0; j < problem.layers[i].m; ++j) sources[i][problem.layers[i].permutation[j]] = j;
    }
    widest = std::max(widest, problem.layers[i].r);
    ranks += problem.layers[i].r + DEPTH;
    weights +=
        problem.layers[i].A ? problem.layers[i].r * (problem.n + problem.layers[i].m) : problem.layers[i].m * problem.n;
  }
  const int threads = useful_threads(weights * sizeof(bf16), 2.0 * weights * up(problem.T, STRIP));
  const int64_t tokens = std::clamp<int64_t>(up(up(problem.T, threads) / threads, STRIP), STRIP, BLOCK);
  const int64_t blocks = up(problem.T, tokens) / tokens;
  const bool shared = blocks < threads;
  const int64_t packed = packed_bytes(tokens, problem.n + DEPTH + ranks);
  const int64_t scratch = 2 * STRIP * up(widest, DEPTH) * sizeof(bf16);
  static thread_local Workspace together;
  char* memory = shared ? together.get(packed) : nullptr;

#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    static thread_local Workspace own;
    const Team team = shared ? Team{omp_get_thread_num(), omp_get_num_threads()} : Team{0, 1};
    char* mine = own.get(scratch + (shared ? 0 : packed));
    configure_tiles();
    const int64_t start = shared ? 0 : omp_get_thread_num(), stride = shared ? 1 : omp_get_num_threads();
    for (int64_t b = start; b < blocks; b += stride)
      block(problem, sources, b * tokens, std::min(tokens, problem.T - b * tokens), shared ? memory : mine + scratch,
            mine, team);
    _tile_release();
  }
  return true;
}

}  // namespace sieve

#else

namespace sieve {
bool many_rows(const Problem&) { return false; }
}  // namespace sieve

#endif
