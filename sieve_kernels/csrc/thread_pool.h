// A thread pool for calls so short that waking a thread would take longer than the work. A call uses the workers that
// are awake, and wakes the others for the next call. Results must not depend on the number of threads.
//
// OpenMP's threads answer quickly only while they spin, which OMP_WAIT_POLICY=PASSIVE forbids. A worker of this pool
// spins for `SPIN_TIME` after a call and then sleeps, so only dense sequences of calls, such as decoding token by
// token, keep it awake.
#pragma once

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace sieve {

class ThreadPool {
 public:
  using Work = void (*)(void* context, int thread, int threads);

  // Calls work(context, thread, threads) on up to `max_threads` threads; the caller is thread 0. With `all`, it runs
  // the work only if all `max_threads` are awake. Returns whether the work was done.
  static bool run(int max_threads, bool all, Work work, void* context) {
    static const bool prepared = [] {
      pthread_atfork(nullptr, nullptr, [] { instance() = new ThreadPool; });  // threads do not survive a fork
      instance() = new ThreadPool;
      return true;
    }();
    return prepared && instance()->run_shared(max_threads, all, work, context);
  }

 private:
  static constexpr auto SPIN_TIME = std::chrono::microseconds(500);
  enum State : int { SPINNING, ASLEEP, CLAIMED, CALLED };

  struct alignas(64) Worker {
    std::atomic<int> state{SPINNING};
    int thread = 0;
    std::mutex mutex;
    std::condition_variable woken;
  };

  // Never deleted, because workers read it until the process ends.
  static ThreadPool*& instance() {
    static ThreadPool* pool = nullptr;
    return pool;
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  bool run_shared(int max_threads, bool all, Work work, void* context) {
    std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
    if (max_threads > 1 && lock.owns_lock()) {
      // Claim the workers that are awake: a claimed worker neither sleeps nor takes another call.
      while (static_cast<int>(workers_.size()) < max_threads - 1) add_worker();
      claimed_.clear();
      for (int i = 0; i < max_threads - 1; ++i) {
        int expected = SPINNING;
        if (workers_[i]->state.compare_exchange_strong(expected, CLAIMED)) claimed_.push_back(workers_[i].get());
      }

      // Too few of them: release them, and the caller runs the work elsewhere.
      const int threads = static_cast<int>(claimed_.size()) + 1;
      if (all && threads < max_threads) {
        for (Worker* worker : claimed_) worker->state.store(SPINNING, std::memory_order_relaxed);
        return false;
      }

      // Start them. The release store of CALLED publishes the work.
      work_ = work;
      context_ = context;
      threads_ = threads;
      running_.store(threads - 1, std::memory_order_relaxed);
      for (int thread = 1; thread < threads; ++thread) {
        claimed_[thread - 1]->thread = thread;
        claimed_[thread - 1]->state.store(CALLED, std::memory_order_release);
      }

      // Take part, wait for them, and wake the workers that slept: the next call will have them.
      work(context, 0, threads);
      for (int spins = 0; running_.load(std::memory_order_acquire) > 0; ++spins)
        spins < 4000 ? pause() : std::this_thread::yield();  // more threads than free cores
      for (int i = 0; i < max_threads - 1; ++i) wake(*workers_[i]);
      return true;
    }

    // Another call has the pool, or one thread is enough.
    if (all) return false;
    work(context, 0, 1);
    return true;
  }

  static void wake(Worker& worker) {
    if (worker.state.load(std::memory_order_relaxed) != ASLEEP) return;
    std::lock_guard<std::mutex> guard(worker.mutex);
    worker.state.store(SPINNING);
    worker.woken.notify_one();
  }

  void add_worker() {
    workers_.push_back(std::make_unique<Worker>());
    std::thread([this, worker = workers_.back().get()] { worker_loop(*worker); }).detach();
  }

  void worker_loop(Worker& me) {
    using clock = std::chrono::steady_clock;
    auto until = clock::now() + SPIN_TIME;
    for (int spins = 1;; ++spins) {
      if (me.state.load(std::memory_order_acquire) == CALLED) {
        work_(context_, me.thread, threads_);
        me.state.store(SPINNING, std::memory_order_relaxed);
        running_.fetch_sub(1, std::memory_order_acq_rel);
        until = clock::now() + SPIN_TIME;
      } else if (spins % 64 == 0 && clock::now() > until) {
        int expected = SPINNING;
        if (!me.state.compare_exchange_strong(expected, ASLEEP)) continue;
        std::unique_lock<std::mutex> lock(me.mutex);
        me.woken.wait(lock, [&] { return me.state.load() != ASLEEP; });
        until = clock::now() + SPIN_TIME;
      } else {
        pause();
      }
    }
  }

  std::mutex busy_;  // the pool serves one call at a time; others run on one thread
  std::vector<std::unique_ptr<Worker>> workers_;
  std::vector<Worker*> claimed_;
  Work work_ = nullptr;
  void* context_ = nullptr;
  int threads_ = 0;
  std::atomic<int> running_{0};
};

}  // namespace sieve
