// What the compiled layers compute: the arguments of `gemv` and `gemm_amx`.
#pragma once

#include <cstdint>

namespace sieve {

enum Type : int { BF16 = 0, FLOAT32 = 1, INT8 = 2 };

inline int64_t bytes_of(int type) { return type == BF16 ? 2 : type == FLOAT32 ? 4 : 1; }

// y [T, m] = z Bᵀ + bias, z = x Aᵀ, with A [r, n] and B [m, r], or z = x and B [m, n] where A is nullptr. With a
// permutation [m], B is [m - r, r] and y[permutation] = [z, z Bᵀ] + bias[permutation]. Strides are in elements;
// elements of a row are adjacent. int8 factors have one float32 scale a row.
struct Layer {
  const void* A;
  int64_t A_stride;
  const float* A_scale;
  int64_t r;
  const void* B;
  int64_t B_stride;
  const float* B_scale;
  int64_t m;
  const void* bias;
  const int64_t* permutation;
  void* y;
  int64_t y_stride;
};
static_assert(sizeof(Layer) == 12 * 8, "the caller passes twelve 64-bit integers");

// Several layers of one input x [T, n]. With an activation the first two layers are gate and up; if `stacked`, the
// first layer is both, gates before ups. Then h = activation(gate) · up is the first layer's y, or the input of one
// more layer, down, if there is one.
struct Problem {
  Type type;     // of x, biases and y
  Type weights;  // of the factors
  const void* x;
  int64_t x_stride, T, n;
  int64_t count;
  const Layer* layers;
  int activation;  // -1: none; see activations.h
  bool stacked;

  int64_t before_hidden() const { return activation < 0 ? count : stacked ? 1 : 2; }  // layers that read x
  int64_t hidden() const { return stacked ? layers[0].m / 2 : layers[0].m; }          // elements of a row of h
};

// How many elements a row of layer i's input has, and how many its factors have.
inline int64_t width_in(const Problem& problem, int64_t i) {
  return i < problem.before_hidden() ? problem.n : problem.hidden();
}
inline int64_t weights_of(const Problem& problem, int64_t i) {
  const Layer& layer = problem.layers[i];
  const int64_t n = width_in(problem, i), same = layer.permutation ? layer.r : 0;
  return layer.A ? layer.r * (n + layer.m - same) : layer.m * n;
}

// One to eight rows, on any processor, for weights of any type.
void gemv(const Problem& problem);

// Any number of rows, bf16 only. Returns whether it computed y: false without AMX.
bool gemm_amx(const Problem& problem);

}  // namespace sieve
