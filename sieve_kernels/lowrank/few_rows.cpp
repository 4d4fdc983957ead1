// Low-rank and dense layers for one to eight rows: bound by reading the weights, which each thread does in long runs,
// several rows side by side. Sums and the r-wide intermediate are float32. One parallel region per call; its threads
// meet once, between z and y.
#include "../native/activations.h"
#include "../native/crew.h"
#include "../native/features.h"
#include "../native/layers.h"
#include "../native/parallel.h"
#include "../native/target.h"

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

// Threads that wait for each other by looking, not sleeping: there are microseconds of work between two meetings.
struct Team {
  int64_t part, parts;
  std::atomic<int64_t>* arrived;
  int64_t meetings = 0;

  int64_t first(int64_t count) const { return part * count / parts; }
  int64_t end(int64_t count) const { return (part + 1) * count / parts; }
  void wait() {
    if (parts == 1) return;
    const int64_t all = ++meetings * parts;
    arrived->fetch_add(1, std::memory_order_acq_rel);
    for (int looks = 0; arrived->load(std::memory_order_acquire) < all; ++looks)
      if (looks > 4000) std::this_thread::yield();  // more threads than free cores
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
#include "few_rows.inc"
#undef ISA
#undef LANES
#undef DOT_BF16
#undef DOT_INT8
TARGET_END
TARGET("avx512f,avx512bw,avx512vl,avx512dq,fma")
#define ISA avx512
#define LANES 16
#include "few_rows.inc"
#undef ISA
#undef LANES
TARGET_END
TARGET("avx2,fma")
#define ISA avx2
#define LANES 8
#include "few_rows.inc"
#undef ISA
#undef LANES
TARGET_END
#endif
#define ISA portable
#define LANES 4
#include "few_rows.inc"

namespace sieve {

using Run = void (*)(const Problem&, void*, void*, Team&);

static Run function_in_use() {
#ifdef SIEVE_X86
  if (isa_in_use >= AVX512BF16) return avx512bf16::run;
  if (isa_in_use >= AVX512) return avx512::run;
  if (isa_in_use >= AVX2) return avx2::run;
#endif
  return portable::run;
}

// What the team shares: every z; of gated layers the gates, ups and what comes of them.
static int64_t shared_bytes(const Problem& problem) {
  int64_t numbers = 0;
  for (int64_t i = 0; i < problem.count; ++i) numbers += problem.layers[i].A ? problem.layers[i].r : 0;
  if (problem.activation >= 0) numbers += 3 * problem.hidden();
  return problem.T * numbers * sizeof(float) + 64;
}

void few_rows(const Problem& problem) {
  static const Run run = function_in_use();
  int64_t weights = 0;
  for (int64_t i = 0; i < problem.count; ++i) weights += weights_of(problem, i);
  const int64_t bytes = weights * bytes_of(problem.weights);
  static thread_local Workspace shared;
  struct Meeting {
    const Problem& problem;
    char* z;
    std::atomic<int64_t> arrived{0};

    void attend(int part, int parts) {
      static thread_local Workspace inputs;
      char* x = inputs.get(problem.T * problem.n * sizeof(float));
      Team team{part, parts, &arrived};
      run(problem, x, z, team);
    }
  } meeting{problem, shared.get(shared_bytes(problem))};
  constexpr int64_t WORTH_SHARING = 1 << 16, WORTH_WAKING = 4 << 20;  // bytes: a thread's share; an OpenMP thread's
  if (threads_sleep()) {
    const int most = static_cast<int>(std::min<int64_t>(omp_get_max_threads(), 1 + bytes / WORTH_SHARING));
    const auto attend = [](void* meeting, int part, int parts) { static_cast<Meeting*>(meeting)->attend(part, parts); };
    if (Crew::run(most, bytes >= WORTH_WAKING, attend, &meeting)) return;
  }
  const int threads = useful_threads(bytes, 0);
#pragma omp parallel num_threads(threads) if (threads > 1)
  meeting.attend(omp_get_thread_num(), omp_get_num_threads());
}

}  // namespace sieve
