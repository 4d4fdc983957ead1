// Helpers for calls so short that waking a thread would take longer than the work: those that are awake take part,
// those that sleep are woken for the next call. Results must not depend on how many took part.
//
// OpenMP's threads are at hand only while they look for work, which OMP_WAIT_POLICY=PASSIVE forbids them. A helper
// looks for `LOOKS` after its last call, then it sleeps: decoding token by token keeps it awake, nothing else does.
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

class Crew {
 public:
  using Work = void (*)(void* context, int part, int parts);

  // work(context, part, parts) for all parts, no more than `most`, this thread's being 0. With `all`, only if there can
  // be as many as that at once: returns whether the work was done.
  static bool run(int most, bool all, Work work, void* context) {
    static const bool prepared = [] {
      pthread_atfork(nullptr, nullptr, [] { instance() = new Crew; });  // threads do not survive a fork
      instance() = new Crew;
      return true;
    }();
    return prepared && instance()->share(most, all, work, context);
  }

 private:
  static constexpr auto LOOKS = std::chrono::microseconds(500);
  enum State : int { LOOKING, ASLEEP, TAKEN, CALLED };

  struct alignas(64) Helper {
    std::atomic<int> state{LOOKING};
    int part = 0;
    std::mutex mutex;
    std::condition_variable woken;
  };

  // Never deleted: helpers may look at it until the process ends.
  static Crew*& instance() {
    static Crew* crew = nullptr;
    return crew;
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  bool share(int most, bool all, Work work, void* context) {
    std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
    if (most > 1 && lock.owns_lock()) {
      while (static_cast<int>(helpers_.size()) < most - 1) add();
      taken_.clear();
      for (int i = 0; i < most - 1; ++i) {
        int expected = LOOKING;
        if (helpers_[i]->state.compare_exchange_strong(expected, TAKEN)) taken_.push_back(helpers_[i].get());
      }
      const int parts = static_cast<int>(taken_.size()) + 1;
      if (all && parts < most) {
        for (Helper* helper : taken_) helper->state.store(LOOKING, std::memory_order_relaxed);
        return false;
      }
      work_ = work;
      context_ = context;
      parts_ = parts;
      left_.store(parts - 1, std::memory_order_relaxed);
      for (int part = 1; part < parts; ++part) {
        taken_[part - 1]->part = part;
        taken_[part - 1]->state.store(CALLED, std::memory_order_release);
      }
      work(context, 0, parts);
      for (int looks = 0; left_.load(std::memory_order_acquire) > 0; ++looks)
        looks < 4000 ? pause() : std::this_thread::yield();  // more threads than free cores
      for (int i = 0; i < most - 1; ++i) wake(*helpers_[i]);
      return true;
    }
    if (all) return false;
    work(context, 0, 1);
    return true;
  }

  static void wake(Helper& helper) {
    if (helper.state.load(std::memory_order_relaxed) != ASLEEP) return;
    std::lock_guard<std::mutex> guard(helper.mutex);
    helper.state.store(LOOKING);
    helper.woken.notify_one();
  }

  void add() {
    helpers_.push_back(std::make_unique<Helper>());
    std::thread([this, helper = helpers_.back().get()] { help(*helper); }).detach();
  }

  void help(Helper& me) {
    using clock = std::chrono::steady_clock;
    auto until = clock::now() + LOOKS;
    for (int looks = 1;; ++looks) {
      if (me.state.load(std::memory_order_acquire) == CALLED) {
        work_(context_, me.part, parts_);
        me.state.store(LOOKING, std::memory_order_relaxed);
        left_.fetch_sub(1, std::memory_order_acq_rel);
        until = clock::now() + LOOKS;
      } else if (looks % 64 == 0 && clock::now() > until) {
        int expected = LOOKING;
        if (!me.state.compare_exchange_strong(expected, ASLEEP)) continue;
        std::unique_lock<std::mutex> lock(me.mutex);
        me.woken.wait(lock, [&] { return me.state.load() != ASLEEP; });
        until = clock::now() + LOOKS;
      } else {
        pause();
      }
    }
  }

  std::mutex busy_;  // one call at a time; others run alone
  std::vector<std::unique_ptr<Helper>> helpers_;
  std::vector<Helper*> taken_;
  Work work_ = nullptr;
  void* context_ = nullptr;
  int parts_ = 0;
  std::atomic<int> left_{0};
};

}  // namespace sieve
