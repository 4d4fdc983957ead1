// The entry point of the compiled layers.
#include "layer_args.h"

// Whether all outputs of a pivoted layer lie in y. Checked on every call, even if the caller has checked: it costs 4 /
// r of the work on one row, and a write outside y would go unnoticed.
static bool permutation_is_valid(const sieve::Layer& layer) {
  bool outside = false;
  for (int64_t j = 0; layer.permutation && j < layer.m; ++j)
    outside |= static_cast<uint64_t>(layer.permutation[j]) >= static_cast<uint64_t>(layer.m);
  return !outside;
}

// `call`: type of x, biases and outputs; type of the weights (0 bf16, 1 float32, 2 int8, for weights only); address and
// stride of x [T, n], T, n; number of layers; activation or -1, 16 more where gate and up are stacked; then the layers,
// as in layer_args.h. One block of 64-bit integers, because Python fills that fastest. Returns 1 where it computed y:
// up to eight rows always, more rows with bf16 on AMX (which is also faster from two rows on); 0 where it could not; -1
// where a permutation leads outside y.
extern "C" int sieve_layers(const int64_t* call) {
  sieve::Problem problem;
  problem.type = static_cast<sieve::Type>(call[0]);
  problem.weights = static_cast<sieve::Type>(call[1]);
  problem.x = reinterpret_cast<const void*>(call[2]);
  problem.x_stride = call[3];
  problem.T = call[4];
  problem.n = call[5];
  problem.count = call[6];
  problem.stacked = call[7] >= 16;
  problem.activation = static_cast<int>(problem.stacked ? call[7] - 16 : call[7]);
  problem.layers = reinterpret_cast<const sieve::Layer*>(call + 8);
  for (int64_t i = 0; i < problem.count; ++i)
    if (!permutation_is_valid(problem.layers[i])) return -1;
  if (problem.T > 1 && sieve::gemm_amx(problem)) return 1;
  if (problem.T > 8) return 0;
  sieve::gemv(problem);
  return 1;
}
