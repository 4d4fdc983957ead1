// Threads: those of torch. This library is compiled with OpenMP but not linked to a runtime of its own, so the symbols
// resolve to the one that torch has loaded; a second pool of threads would fight with torch's for the same cores.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace sieve {

// Memory that a calling thread keeps between calls: fresh pages cost more than what is computed in them.
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

inline int64_t up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace sieve
