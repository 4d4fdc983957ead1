// RMS normalisation, rotary positions and sums of channels, each in one pass over memory where torch's eager operators
// take about ten. Rounding follows the modules of transformers step by step, so that results are the same.
#include "cpu_features.h"
#include "target.h"
#include "threading.h"

#include <cmath>

namespace sieve {
namespace {

enum Type : int64_t { BF16 = 0, FLOAT32 = 1 };

#define INLINE inline __attribute__((always_inline))

using bf16 = uint16_t;

struct Sums {
  int64_t type;
  const void* x;
  int64_t stride, rows, n;
  const uint8_t* mask;
  float* sums;  // [3, n]
};

struct Norm {
  int64_t type;
  const char* x;
  int64_t x_stride, rows, n;
  const char* weight;
  char* y;
  double epsilon;
};

struct Heads {
  const char* x;
  int64_t batch, head, token;  // strides of x
  char* y;
  int64_t y_batch, y_head, y_token;
  int64_t count;
};

struct Rotary {
  int64_t type, batches, tokens, size;  // size of a head
  const char *cos, *sin;
  int64_t batch, token;  // strides of cos and sin; batch is 0 where all batches use the same
  Heads heads[2];
};

// Each computes items first … end - 1 of a call.
struct Functions {
  void (*norm)(const Norm& call, int64_t first, int64_t end);
  void (*sums)(const Sums& call, int64_t first, int64_t end);
  void (*rotary)(const Rotary& call, int64_t first, int64_t end);
};

}  // namespace
}  // namespace sieve

#ifdef SIEVE_X86
TARGET("avx512f,avx512bw,avx512vl,avx512dq,fma")
#define ISA avx512
#include "pointwise_isa.inc"
#undef ISA
TARGET_END
TARGET("avx2,fma")
#define ISA avx2
#include "pointwise_isa.inc"
#undef ISA
TARGET_END
#endif
#define ISA portable
#include "pointwise_isa.inc"

namespace sieve {
namespace {

const Functions& select_functions() {
#ifdef SIEVE_X86
  if (isa_in_use >= AVX512) return avx512::FUNCTIONS;
  if (isa_in_use >= AVX2) return avx2::FUNCTIONS;
#endif
  return portable::FUNCTIONS;
}

// Calls work(first, end) on as many threads as `bytes` of memory traffic pay for.
template <class Work>
void in_parallel(int64_t count, int64_t bytes, Work work) {
  const int threads = useful_threads(bytes, 0);
#pragma omp parallel num_threads(threads) if (threads > 1)
  work(omp_get_thread_num() * count / omp_get_num_threads(),
       (omp_get_thread_num() + 1) * count / omp_get_num_threads());
}

}  // namespace
}  // namespace sieve

// The arguments are `Norm`, `Sums` and `Rotary` above, each one block of 64-bit values, because Python fills that
// fastest.
extern "C" void sieve_rms_norm(const void* call) {
  using namespace sieve;
  const Norm& norm = *static_cast<const Norm*>(call);
  const int64_t bytes = norm.rows * norm.n * (norm.type == BF16 ? 2 : 4);
  in_parallel(norm.rows, 2 * bytes, [&](int64_t first, int64_t end) { select_functions().norm(norm, first, end); });
}

extern "C" void sieve_channel_sums(const void* call_) {
  using namespace sieve;
  const Sums& call = *static_cast<const Sums*>(call_);
  const int64_t bytes = call.rows * call.n * (call.type == BF16 ? 2 : 4);
  in_parallel(call.n, bytes, [&](int64_t first, int64_t end) { select_functions().sums(call, first, end); });
}

extern "C" void sieve_rotary(const void* call_) {
  using namespace sieve;
  const Rotary& call = *static_cast<const Rotary*>(call_);
  const int64_t tokens = call.batches * call.tokens, heads = call.heads[0].count + call.heads[1].count;
  const int64_t bytes = tokens * heads * call.size * (call.type == BF16 ? 2 : 4);
  in_parallel(tokens, 2 * bytes, [&](int64_t first, int64_t end) { select_functions().rotary(call, first, end); });
}
