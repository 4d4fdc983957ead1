// GEMV: low-rank and dense layers for one to eight rows. Reading the weights takes the time, so each thread reads a
// contiguous range of weight rows, several rows at once. Accumulators are float32, and so is the r-wide intermediate z
// unless the bf16 dot product needs it in bf16. One parallel region per call, with one barrier between z and y.
#include "activations.h"
#include "cpu_features.h"
#include "layer_args.h"
#include "target.h"
#include "thread_pool.h"
#include "threading.h"

#include <atomic>
#include <cmath>
#include <thread>
#include <type_traits>

namespace sieve {
namespace {

struct bf16 {
  uint16_t bits;
};

inline float to_float(float v) { return v; }
inline float to_float(int8_t v) { return v; }
inline float to_float(bf16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}

inline void store(float* to, float v) { *to = v; }
inline void store(bf16* to, float v) {  // to nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  to->bits = v != v ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

struct Matrix {
  const void* weights;
  int64_t stride;
  const float* scale;
  int64_t n;
};

int64_t width_of(const Layer& layer, int64_t n) { return layer.A ? layer.r : n; }
Matrix matrix_of(const Layer& layer, int64_t n) { return {layer.B, layer.B_stride, layer.B_scale, width_of(layer, n)}; }

// The threads of a parallel region and this thread's index among them. Barriers spin, because the work between two of
// them takes microseconds.
struct ThreadGroup {
  int64_t thread, threads;
  std::atomic<int64_t>* arrived;
  int64_t barriers = 0;

  // This thread takes the items begin(count) … end(count) - 1.
  int64_t begin(int64_t count) const { return thread * count / threads; }
  int64_t end(int64_t count) const { return (thread + 1) * count / threads; }
  void barrier() {
    if (threads == 1) return;
    const int64_t expected = ++barriers * threads;
    arrived->fetch_add(1, std::memory_order_acq_rel);
    for (int spins = 0; arrived->load(std::memory_order_acquire) < expected; ++spins)
      if (spins > 4000) std::this_thread::yield();  // more threads than free cores
  }
};

void activate_all(int activation, float* v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) v[i] = activate(activation, v[i]);
}

}  // namespace
}  // namespace sieve

#ifdef SIEVE_X86
#include <immintrin.h>
TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,fma")
#define ISA avx512bf16
#define LANES 16
#define DOT_BF16
#define DOT_INT8
#include "gemv_isa.inc"
#undef ISA
#undef LANES
#undef DOT_BF16
#undef DOT_INT8
TARGET_END
TARGET("avx512f,avx512bw,avx512vl,avx512dq,fma")
#define ISA avx512
#define LANES 16
#include "gemv_isa.inc"
#undef ISA
#undef LANES
TARGET_END
TARGET("avx2,fma")
#define ISA avx2
#define LANES 8
#include "gemv_isa.inc"
#undef ISA
#undef LANES
TARGET_END
#endif
#define ISA portable
#define LANES 4
#include "gemv_isa.inc"

namespace sieve {

using Run = void (*)(const Problem&, void*, void*, ThreadGroup&);

static Run select_function() {
#ifdef SIEVE_X86
  if (isa_in_use >= AVX512BF16) return avx512bf16::run;
  if (isa_in_use >= AVX512) return avx512::run;
  if (isa_in_use >= AVX2) return avx2::run;
#endif
  return portable::run;
}

// Memory that all threads of a call share: z of every layer; for gated layers also the gates, the ups and h.
static int64_t workspace_bytes(const Problem& problem) {
  int64_t elements = 0;
  for (int64_t i = 0; i < problem.count; ++i) elements += problem.layers[i].A ? problem.layers[i].r : 0;
  if (problem.activation >= 0) elements += 3 * problem.hidden();
  return problem.T * elements * sizeof(float) + 64;
}

void gemv(const Problem& problem) {
  static const Run run = select_function();

  // Bytes of weights: reading them takes the time, so they decide how many threads pay.
  int64_t weights = 0;
  for (int64_t i = 0; i < problem.count; ++i) weights += weights_of(problem, i);
  const int64_t bytes = weights * bytes_of(problem.weights);

  // The region: z is shared, and every thread keeps a copy of x in its own cache.
  static thread_local Workspace shared;
  struct ParallelRegion {
    const Problem& problem;
    char* z;
    std::atomic<int64_t> arrived{0};

    void run_thread(int thread, int threads) {
      static thread_local Workspace thread_memory;
      char* x = thread_memory.get(problem.T * problem.n * sizeof(float));
      ThreadGroup group{thread, threads, &arrived};
      run(problem, x, z, group);
    }
  } region{problem, shared.get(workspace_bytes(problem))};

  // Where OpenMP's threads sleep between calls, the thread pool runs the region: waking a thread of OpenMP would take
  // longer than the call.
  constexpr int64_t BYTES_PER_THREAD = 1 << 16, BYTES_WORTH_WAKING = 4 << 20;
  if (threads_sleep()) {
    const int max_threads = static_cast<int>(std::min<int64_t>(omp_get_max_threads(), 1 + bytes / BYTES_PER_THREAD));
    const auto run_thread = [](void* region, int thread, int threads) {
      static_cast<ParallelRegion*>(region)->run_thread(thread, threads);
    };
    if (ThreadPool::run(max_threads, bytes >= BYTES_WORTH_WAKING, run_thread, &region)) return;
  }

  // Otherwise OpenMP runs it.
  const int threads = useful_threads(bytes, 0);
#pragma omp parallel num_threads(threads) if (threads > 1)
  region.run_thread(omp_get_thread_num(), omp_get_num_threads());
}

}  // namespace sieve
