// The compiled layers' one entry.
#include "../native/layers.h"

// type of x, biases and outputs, and of the weights: 0 bf16, 1 float32, 2 int8 (weights only); x [T, n]; `layers` as in
// layers.h. Returns whether it could: up to eight rows always, more need bf16 and AMX, which are also faster from three
// on.
extern "C" int sieve_layers(int type, int weights, const void* x, int64_t x_stride, int64_t T, int64_t n, int64_t count,
                            const void* layers, int activation) {
  const sieve::Problem problem{static_cast<sieve::Type>(type),
                               static_cast<sieve::Type>(weights),
                               x,
                               x_stride,
                               T,
                               n,
                               count,
                               static_cast<const sieve::Layer*>(layers),
                               activation};
  if (T > 2 && sieve::many_rows(problem)) return 1;
  if (T > 8) return 0;
  sieve::few_rows(problem);
  return 1;
}
