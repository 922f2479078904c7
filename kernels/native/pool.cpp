#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <mutex>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace qwell {
namespace {

constexpr std::uint32_t kClosed = 0xFFFFFFFFU;

// Some tens of microseconds: longer than what separates two ops of a step, shorter than what an
// idle server would be blamed for.
constexpr int kSpins = 2000;

std::atomic<int> forks{0};

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

std::uint64_t first_task(std::uint32_t job) { return std::uint64_t{job} << 32; }

}  // namespace

Pool::Pool(int threads) : threads_(std::max(threads, 1)) {
  static std::once_flag watching;
  std::call_once(watching, [] {
    pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });
  });
  start();
}

Pool::~Pool() {
  // The threads of a parent process are not there to be joined.
  if (fork_generation_ == forks.load(std::memory_order_relaxed)) {
    stop();
  } else {
    new (&workers_) std::vector<std::thread>;
  }
}

void Pool::start() {
  fork_generation_ = forks.load(std::memory_order_relaxed);
  sleepers_.store(0, std::memory_order_relaxed);
  for (int i = 1; i < threads_; ++i) workers_.emplace_back([this] { work(); });
}

void Pool::stop() {
  stopping_.store(true);
  bell_.fetch_add(1);
  bell_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Pool::run_job(std::int64_t count, Function function, const void* context) {
  if (fork_generation_ != forks.load(std::memory_order_relaxed)) {
    new (&workers_) std::vector<std::thread>;
    start();
  }
  // Jobs count tasks in 32 bits; none of ours comes near, and the rest would run one by one.
  const auto tasks = static_cast<std::uint32_t>(std::min<std::int64_t>(count, kClosed - 1));
  const auto job = static_cast<std::uint32_t>(next_.load(std::memory_order_relaxed) >> 32) + 1;
  next_.store(first_task(job) | kClosed, std::memory_order_seq_cst);
  function_.store(function, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  count_.store(tasks, std::memory_order_release);
  done_.store(0, std::memory_order_relaxed);
  next_.store(first_task(job), std::memory_order_seq_cst);
  bell_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) bell_.notify_all();

  take_tasks();
  for (int spins = 0; done_.load(std::memory_order_acquire) != tasks; ++spins) {
    if (spins < kSpins) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
  for (std::int64_t i = tasks; i < count; ++i) function(context, i);
}

void Pool::take_tasks() {
  std::uint64_t next = next_.load(std::memory_order_acquire);
  while (true) {
    const auto i = static_cast<std::uint32_t>(next);
    if (i == kClosed || i >= count_.load(std::memory_order_acquire)) return;
    if (next_.compare_exchange_weak(next, next + 1, std::memory_order_acq_rel,
                                    std::memory_order_acquire)) {
      const Function function = function_.load(std::memory_order_relaxed);
      function(context_.load(std::memory_order_relaxed), i);
      done_.fetch_add(1, std::memory_order_release);
      next = next_.load(std::memory_order_acquire);
    }
  }
}

void Pool::work() {
  std::uint32_t heard = 0;
  while (!stopping_.load(std::memory_order_acquire)) {
    take_tasks();
    for (int spins = 0; spins < kSpins && bell_.load(std::memory_order_acquire) == heard; ++spins) {
      pause();
    }
    if (bell_.load(std::memory_order_acquire) == heard) {
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      bell_.wait(heard, std::memory_order_seq_cst);
      sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }
    heard = bell_.load(std::memory_order_acquire);
  }
}

}  // namespace qwell
