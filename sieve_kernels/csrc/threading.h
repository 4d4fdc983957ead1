// Threads are torch's. This library is compiled with OpenMP but not linked to a runtime, so its symbols resolve to the
// runtime that torch has loaded; a second one would compete with torch's threads for the same cores.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace sieve {

// Memory that a thread keeps between calls: new pages would cost more time than the work on them.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  ~Workspace() { std::free(data_); }

  // At least `bytes` bytes on a cache line; contents are undefined. nullptr when there is no memory.
  char* get(int64_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = (bytes + 4095) / 4096 * 4096;
      data_ = static_cast<char*>(std::aligned_alloc(4096, size_));
      if (data_ == nullptr) size_ = 0;
    }
    return data_;
  }

 private:
  char* data_ = nullptr;
  int64_t size_ = 0;
};

// Whether OpenMP's threads sleep between parallel regions. The environment is read once.
inline bool threads_sleep() {
  static const bool asleep = [] {
    const char* policy = std::getenv("OMP_WAIT_POLICY");
    return policy != nullptr && (policy[0] == 'P' || policy[0] == 'p');
  }();
  return asleep;
}

// How many threads pay for waking them. A thread that sleeps between regions (OMP_WAIT_POLICY=PASSIVE) takes 0.1 ms or
// more to wake. In that time an awake thread reads 2 MB of weights; on tiles, 6·10^8 operations were measured to break
// even. A thread that spins, the default for a few milliseconds, answers in a tenth of the time.
inline int useful_threads(int64_t bytes, double operations) {
  const double wake_cost = threads_sleep() ? 1 : 0.1;
  const double useful = 1 + std::max(bytes / (2e6 * wake_cost), operations / (6e8 * wake_cost));
  return static_cast<int>(std::min<double>(omp_get_max_threads(), useful));
}

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace sieve
