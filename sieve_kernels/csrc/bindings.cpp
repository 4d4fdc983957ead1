// The compiled layers' one entry.
#include "layer_args.h"

// Whether all outputs of a pivoted layer lie in y. Looked at on every call, however often the caller did: of one row's
// work it is four parts in r, and what is written elsewhere is found by nobody.
static bool inside(const sieve::Layer& layer) {
  bool outside = false;
  for (int64_t j = 0; layer.permutation && j < layer.m; ++j)
    outside |= static_cast<uint64_t>(layer.permutation[j]) >= static_cast<uint64_t>(layer.m);
  return !outside;
}

// `call`: type of x, biases and outputs; type of the weights (0 bf16, 1 float32, 2 int8, for weights only); address and
// stride of x [T, n], T, n; number of layers; activation or -1, 16 more where gate and up are stacked; then the layers,
// as in layer_args.h. One block of numbers, because that is what a caller from Python fills soonest. Returns whether it
// could: up to eight rows always, more need bf16 and AMX, which are also faster from two on; -1 where a permutation
// leads outside of y.
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
    if (!inside(problem.layers[i])) return -1;
  if (problem.T > 1 && sieve::gemm_amx(problem)) return 1;
  if (problem.T > 8) return 0;
  sieve::gemv(problem);
  return 1;
}
