#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace qwell {
namespace {

// Longer than what separates two ops of a step, so that a step wakes its threads once; short
// enough that an engine with nothing to do, or a neighbour with much, hardly notices.
constexpr std::chrono::microseconds kSpin{50};
// Between looks at the clock, which costs as much as a few of them.
constexpr int kPauses = 16;

std::atomic<int> forks{0};

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `changed`, for kSpin at most. By the clock: a pause lasts 10 to 140 cycles on x86
// and next to nothing on Arm.
template <class Changed>
void spin(const Changed& changed) {
  if (changed()) return;
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < kPauses; ++i) {
      pause();
      if (changed()) return;
    }
  } while (std::chrono::steady_clock::now() < end);
}

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
  try {
    for (int i = 1; i < threads_; ++i) workers_.emplace_back([this] { work(); });
  } catch (...) {
    stop();  // threads that are not joined would end the process
    throw;
  }
}

void Pool::stop() {
  stopping_.store(true);
  bell_.fetch_add(1);
  bell_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Pool::run_job(const Job& job) {
  if (fork_generation_ != forks.load(std::memory_order_relaxed)) {
    new (&workers_) std::vector<std::thread>;
    start();
  }
  job_ = job;
  done_.store(0, std::memory_order_relaxed);
  left_.store(job.count, std::memory_order_release);
  bell_.fetch_add(1);
  bell_.notify_all();  // a system call only where a thread sleeps

  take_tasks();
  std::int64_t done = 0;
  const auto finished = [&] {
    done = done_.load(std::memory_order_acquire);
    return done == job.count;
  };
  spin(finished);
  // A thread that the system holds up may well be waiting for this core: leave it, do not yield,
  // which would keep it busy.
  while (!finished()) done_.wait(done);
}

void Pool::take_tasks() {
  std::int64_t mine = 0;
  std::int64_t count = 0;
  std::int64_t left = 0;
  while ((left = left_.fetch_sub(1, std::memory_order_acquire)) > 0) {
    count = job_.count;
    job_.function(job_.context, count - left);
    ++mine;
  }
  if (mine == 0) return;
  if (done_.fetch_add(mine) + mine == count) done_.notify_one();
}

void Pool::work() {
  std::uint32_t heard = 0;
  while (!stopping_.load(std::memory_order_acquire)) {
    take_tasks();
    spin([&] { return bell_.load(std::memory_order_acquire) != heard; });
    bell_.wait(heard);
    heard = bell_.load(std::memory_order_acquire);
  }
}

}  // namespace qwell
