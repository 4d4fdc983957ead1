// GEMM on AMX tiles: low-rank and dense layers, bf16, from two rows on.
//
// All products are transposed, zᵀ = A xᵀ and yᵀ = B zᵀ. Weights are then left operands, whose tiles are loaded directly
// from the weight matrix, and only activations are rearranged. A block of tokens is packed as pairs and multiplied into
// zᵀ, which is packed in turn while it is in cache and multiplied into yᵀ; z never reaches memory. Each thread takes
// blocks of tokens. Where there are fewer blocks than threads, all threads split the output rows of each block.
#include "layer_args.h"
#include "threading.h"

#include <vector>

#include "amx.h"

#ifdef SIEVE_AMX
#include "amx_epilogue.h"

namespace sieve {
namespace {

constexpr int64_t BLOCK = 4 * PANEL;  // largest block of tokens: packed, the block and its z stay in L2

// The threads that split the rows of a block, and this thread's index among them.
struct ThreadGroup {
  int64_t thread, threads;

  void barrier() const {
    if (threads > 1) {
#pragma omp barrier
    }
  }
  // This thread takes the items begin(count) … end(count) - 1.
  int64_t begin(int64_t count) const { return thread * count / threads; }
  int64_t end(int64_t count) const { return (thread + 1) * count / threads; }
};

// Activations as right operands: [panel of 32 tokens][step of 32 elements][2 tiles].
struct Packed {
  char* data;
  int64_t steps;

  char* at(int64_t panel, int64_t step) const { return data + (panel * steps + step) * 2 * TILE_BYTES; }
};

int64_t packed_bytes(int64_t tokens, int64_t n) { return round_up(tokens, PANEL) * round_up(n, DEPTH) * 2; }

// Packs this thread's steps of tokens first … first + tokens - 1 of x, zeros beyond them.
void pack_tokens(const Problem& problem, int64_t first, int64_t tokens, const Packed& packed,
                 const ThreadGroup& group) {
  const bf16* x = static_cast<const bf16*>(problem.x);
  for (int64_t step = group.begin(packed.steps); step < group.end(packed.steps); ++step)
    for (int64_t tile = 0; tile < round_up(tokens, PANEL) / TILE; ++tile) {
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

// Weight rows row … row + 31 as left tiles. Tiles are loaded from the weight matrix itself; where the row length is no
// multiple of a tile's, the last elements are copied and padded with zeros. The whole panel is copied where it has
// fewer rows than a tile, or where the layer is pivoted: `sources` holds, per output, its row of [identity; weights].
struct Panel {
  const bf16* data;
  int64_t stride;
  int64_t full_steps;  // steps that `data` holds
  const bf16* tail;    // the last step where it is not full
  bool half;           // at most 16 rows: products of the other 16 are skipped, and their accumulators are undefined
};

Panel take_panel(const void* weights, int64_t stride, int64_t rows, int64_t n, const int64_t* sources, int64_t row,
                 char* scratch) {
  const bf16* from = static_cast<const bf16*>(weights);
  bf16* copy = reinterpret_cast<bf16*>(scratch);
  const int64_t full_steps = n / DEPTH, left = n % DEPTH;
  const int64_t height = std::min(PANEL, rows - row);
  const bool half = height <= TILE;

  // Full tiles: no copy beyond the last step.
  if (!sources && height % TILE == 0) {
    from += row * stride;
    for (int64_t i = 0; left > 0 && i < height; ++i) {
      const __m512i tail = _mm512_maskz_loadu_epi16((__mmask32{1} << left) - 1, from + i * stride + full_steps * DEPTH);
      _mm512_store_si512(copy + i * DEPTH, tail);
    }
    return {from, stride, full_steps, copy, half};
  }

  // Incomplete or pivoted: a copy padded with zeros. Outputs of pivoted layers that are z itself get a row of the
  // identity, so one product makes all outputs in their order.
  const int64_t width = round_up(n, DEPTH);
  std::memset(copy, 0, PANEL * width * sizeof(bf16));
  for (int64_t i = 0; i < height; ++i) {
    const int64_t source = sources ? sources[row + i] - n : row + i;
    constexpr bf16 ONE = 0x3f80;
    if (source < 0)
      copy[i * width + source + n] = ONE;
    else
      std::memcpy(copy + i * width, from + source * stride, n * sizeof(bf16));
  }
  return {copy, width, width / DEPTH, nullptr, half};
}

// Tiles 0 … 3 += one step of the panel (tiles 4, 5) × 32 tokens (tiles 6, 7).
template <bool half>
inline void multiply_step(const bf16* left, int64_t stride, const char* right) {
  _tile_loadd(4, left, stride * sizeof(bf16));
  _tile_loadd(6, right, 64);
  _tile_loadd(7, right + TILE_BYTES, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if (half) return;
  _tile_loadd(5, left + TILE * stride, stride * sizeof(bf16));
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// accumulators [2 × 2 tiles of 16 rows × 16 tokens] = panel × 32 tokens. `between` is called after every step: the
// processor runs its vector code while the tile unit multiplies.
template <bool half, class Between>
inline void multiply_panel(const Panel& panel, const Packed& packed, int64_t token_panel, float* accumulators,
                           Between between) {
  const char* right = packed.at(token_panel, 0);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < panel.full_steps; ++step, right += 2 * TILE_BYTES) {
    multiply_step<half>(panel.data + step * DEPTH, panel.stride, right);
    between();
  }
  if (panel.full_steps < packed.steps) multiply_step<half>(panel.tail, DEPTH, right);
  _tile_stored(0, accumulators, 64);
  _tile_stored(1, accumulators + 256, 64);
  _tile_stored(2, accumulators + 512, 64);
  _tile_stored(3, accumulators + 768, 64);
}

template <class Between>
inline void multiply(const Panel& panel, const Packed& packed, int64_t token_panel, float* accumulators,
                     Between between) {
  panel.half ? multiply_panel<true>(panel, packed, token_panel, accumulators, between)
             : multiply_panel<false>(panel, packed, token_panel, accumulators, between);
}

using Sources = std::vector<int64_t>;  // per output its row of [identity; weights]; empty where not pivoted

// A block of tokens: what the layers do with it.
struct Block {
  const Problem& problem;
  int64_t first, tokens;
  char* scratch;  // this thread's own
  ThreadGroup group;

  int64_t panels() const { return round_up(tokens, PANEL) / PANEL; }

  // zᵀ = A inputᵀ.
  void reduce(const Layer& layer, int64_t n, const Packed& input, const Packed& z) const {
    const auto panel = [&](int64_t step) {
      return take_panel(layer.A, layer.A_stride, layer.r, n, nullptr, step * PANEL, scratch);
    };
    products<1, 2>(
        group.begin(z.steps), group.end(z.steps), &input,
        [&](int64_t step, Panel* weights) { weights[0] = panel(step); },
        [&](int tile, int64_t step, int64_t s, float (*accumulators)[ACCUMULATORS]) {
          pack_accumulators(accumulators[0], z.at(s, step), tile);
        });
  }

  // Calls finish(tile, panel of rows, panel of tokens, accumulators) for the outputs B zᵀ of one layer, or for
  // activation(gate) · up of two fused layers.
  template <int fused, class Finish>
  void expand(const Layer* layers, const Sources* sources, int64_t n, const Packed* inputs, Finish finish) const {
    // The weight panels of both fused layers, each with scratch of its own.
    const int64_t panels = round_up(layers->m, PANEL) / PANEL;
    const auto take = [&](int64_t row, Panel* weights) {
      char* copy = scratch;
      for (int i = 0; i < fused; ++i) {
        const Layer& layer = layers[i];
        weights[i] = take_panel(layer.B, layer.B_stride, layer.m, layer.A ? layer.r : n,
                                sources[i].empty() ? nullptr : sources[i].data(), row * PANEL, copy);
        copy += PANEL * inputs[i].steps * DEPTH * sizeof(bf16);
      }
    };

    // The epilogue of 16 tokens in pieces short enough to run between two steps: the activation, then `finish`.
    constexpr int PIECES = fused == 1 ? 1 : 1 + PANEL / ROWS;
    products<fused, 2 * PIECES>(group.begin(panels), group.end(panels), inputs, take,
                                [&](int piece, int64_t row, int64_t s, float (*accumulators)[ACCUMULATORS]) {
                                  const int tile = piece / PIECES, part = piece % PIECES;
                                  if (part < PIECES - 1)
                                    activate_accumulators(problem.activation, accumulators[0], accumulators[fused - 1],
                                                          part * ROWS, tile);
                                  else
                                    finish(tile, row, s, accumulators[0]);
                                });
  }

  // y = B zᵀ + bias.
  void write(const Layer& layer, const Sources* sources, int64_t n, const Packed& input) const {
    expand<1>(&layer, sources, n, &input, [&](int tile, int64_t row, int64_t s, float* accumulators) {
      if (layer.bias) add_bias(accumulators, layer.bias, row * PANEL, layer.m, tile);
      store_accumulators(accumulators, layer, row * PANEL, first + s * PANEL, first + tokens, tile);
    });
  }

 private:
  // Weight panels row … end - 1 times all panels of tokens. The epilogue of a product comes in `pieces` and runs while
  // the next product is formed.
  template <int fused, int pieces, class Take, class Finish>
  void products(int64_t row, int64_t end, const Packed* inputs, Take take, Finish finish) const {
    // Two sets of accumulators: one is filled while the epilogue reads the other.
    alignas(64) float accumulators[2][fused][ACCUMULATORS];
    int now = 0, next = pieces;

    // Pieces per step, so that the epilogue ends with the product that hides it.
    int64_t done_row = 0, done_s = 0, steps = 0;
    for (int i = 0; i < fused; ++i) steps += inputs[i].steps;
    const int pieces_per_step = static_cast<int>(round_up(pieces, steps) / steps);
    const auto advance = [&](int count) {
      for (; count > 0 && next < pieces; --count) finish(next++, done_row, done_s, accumulators[1 - now]);
    };

    // Each weight panel is taken once, for all tokens of the block.
    for (; row < end; ++row) {
      Panel weights[fused];
      take(row, weights);
      for (int64_t s = 0; s < panels(); ++s) {
        for (int i = 0; i < fused; ++i)
          multiply(weights[i], inputs[i], s, accumulators[now][i], [&] { advance(pieces_per_step); });
        advance(pieces);
        done_row = row;
        done_s = s;
        next = 0;
        now = 1 - now;
      }
    }

    // The last product has no next one to hide its epilogue.
    advance(pieces);
  }
};

// Runs all layers on one block. memory: shared by the group.
void run(const Block& block, const std::vector<Sources>& sources, char* memory) {
  const Problem& problem = block.problem;
  const Layer* layers = problem.layers;
  const auto allocate = [&](int64_t n) {
    char* at = memory;
    memory += packed_bytes(block.tokens, n);
    return Packed{at, round_up(n, DEPTH) / DEPTH};
  };
  const auto reduced = [&](const Layer& layer, int64_t n, const Packed& input) {
    if (layer.A == nullptr) return input;
    const Packed z = allocate(layer.r);
    block.reduce(layer, n, input, z);
    return z;
  };

  // The tokens are packed as right operands.
  const Packed x = allocate(problem.n);
  pack_tokens(problem, block.first, block.tokens, x, block.group);
  block.group.barrier();

  // Without an activation: each layer's z, then its y. All layers use the same memory for z, to stay in cache.
  char* const free = memory;
  if (problem.activation < 0) {
    for (int64_t i = 0; i < problem.count; ++i) {
      memory = free;
      const Packed input = reduced(layers[i], problem.n, x);
      block.group.barrier();
      block.write(layers[i], &sources[i], problem.n, input);
      block.group.barrier();  // before the next layer overwrites z
    }
    return;
  }

  // z of gate and up; the halves of a stacked layer have one z.
  const Packed z_gate = reduced(layers[0], problem.n, x);
  const bool shared = layers[0].A != nullptr && layers[0].A == layers[1].A;
  const Packed z[2] = {z_gate, shared ? z_gate : reduced(layers[1], problem.n, x)};
  block.group.barrier();

  // Without a down layer, activation(gate) · up is y.
  if (problem.count == 2) {
    block.expand<2>(layers, &sources[0], problem.n, z, [&](int tile, int64_t row, int64_t s, float* accumulators) {
      store_accumulators(accumulators, layers[0], row * PANEL, block.first + s * PANEL, block.first + block.tokens,
                         tile);
    });
    return block.group.barrier();
  }

  // With one, it is packed as the down layer's input h; gates and ups never leave the accumulators.
  const int64_t m = layers[0].m;
  const Packed h = allocate(m);
  block.expand<2>(layers, &sources[0], problem.n, z, [&](int tile, int64_t row, int64_t s, float* accumulators) {
    pack_accumulators(accumulators, h.at(s, row), tile);
  });
  block.group.barrier();

  // The down layer.
  const Packed z_down = reduced(layers[2], m, h);
  block.group.barrier();
  block.write(layers[2], &sources[2], m, z_down);
  block.group.barrier();
}

// The inverse of a pivoted layer's permutation.
Sources sources_of(const Layer& layer) {
  Sources sources(layer.permutation ? layer.m : 0);
  for (size_t j = 0; j < sources.size(); ++j) sources[layer.permutation[j]] = j;
  return sources;
}

}  // namespace

bool gemm_amx(const Problem& given) {
  if (given.type != BF16 || given.weights != BF16 || isa_in_use < AMX) return false;

  // The sources of pivoted layers' outputs. A stacked layer is split into gate and up, which have A in common.
  Problem problem = given;
  std::vector<Layer> layers(given.layers, given.layers + given.count);
  std::vector<Sources> sources;
  for (const Layer& layer : layers) sources.push_back(sources_of(layer));
  if (given.stacked) {
    const int64_t m = layers[0].m = given.hidden();
    layers.insert(layers.begin() + 1, layers[0]);
    sources.insert(sources.begin() + 1, Sources());
    if (layers[0].permutation) {
      sources[1].assign(sources[0].begin() + m, sources[0].end());
      sources[0].resize(m);
    } else {
      layers[1].B = static_cast<const bf16*>(layers[0].B) + m * layers[0].B_stride;
    }
    problem.stacked = false;
    ++problem.count;
  }
  problem.layers = layers.data();

  // With several blocks per thread, one layer at a time: its weights stay in cache from block to block.
  if (problem.count > 1 && problem.activation < 0 && problem.T > BLOCK * omp_get_max_threads()) {
    for (int64_t i = 0; i < problem.count; ++i) {
      Problem one = problem;
      one.count = 1;
      one.layers = problem.layers + i;
      gemm_amx(one);
    }
    return true;
  }

  // What one block needs in scratch and packed memory, and how many weights there are.
  int64_t widest = problem.n, elements = problem.n + DEPTH, weights = 0;
  for (int64_t i = 0; i < problem.count; ++i) {
    const int64_t n = width_in(problem, i), r = layers[i].r;
    widest = std::max({widest, r, n});
    elements += r + DEPTH + (i < problem.before_hidden() ? 0 : n + DEPTH);
    weights += weights_of(problem, i);
  }

  // Threads. Those that split a block meet at several barriers per call, which is too slow where they sleep at each.
  int threads = useful_threads(weights * sizeof(bf16), 2.0 * weights * round_up(problem.T, PANEL));
  if (threads_sleep() && problem.T <= PANEL && weights < (8 << 20)) threads = 1;

  // Blocks of tokens: one or more a thread where there are enough tokens; else all threads split each block's rows.
  const int64_t tokens = std::clamp<int64_t>(round_up(round_up(problem.T, threads) / threads, PANEL), PANEL, BLOCK);
  const int64_t blocks = round_up(problem.T, tokens) / tokens;
  const bool shared = blocks < threads;
  const int64_t packed = packed_bytes(tokens, elements);
  const int64_t scratch = 2 * PANEL * round_up(widest, DEPTH) * sizeof(bf16);
  static thread_local Workspace group_memory;
  char* memory = shared ? group_memory.get(packed) : nullptr;

  // Every thread runs all layers on its blocks.
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    static thread_local Workspace thread_memory;
    const ThreadGroup group = shared ? ThreadGroup{omp_get_thread_num(), omp_get_num_threads()} : ThreadGroup{0, 1};
    char* own = thread_memory.get(scratch + (shared ? 0 : packed));
    const Tiles tiles;
    const int64_t start = shared ? 0 : omp_get_thread_num(), stride = shared ? 1 : omp_get_num_threads();
    for (int64_t b = start; b < blocks; b += stride)
      run({problem, b * tokens, std::min(tokens, problem.T - b * tokens), own, group}, sources,
          shared ? memory : own + scratch);
  }
  return true;
}

}  // namespace sieve

TARGET_END
#else

namespace sieve {
bool gemm_amx(const Problem&) { return false; }
}  // namespace sieve

#endif
