// Jobs of all sizes on pools of all sizes, with pauses so that threads are found spinning, going
// to sleep and asleep. A wake-up that is lost hangs it; built with -fsanitize=thread it also
// reports what the pool fails to order: tasks and their caller share plain memory.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "pool.h"

namespace {

int failed = 0;
int passed = 0;

void check(bool holds, const char* what, int threads, std::int64_t count) {
  (holds ? passed : failed) += 1;
  if (!holds) std::printf("%s: %d threads, %d tasks\n", what, threads, static_cast<int>(count));
}

void run_jobs(int threads, int jobs) {
  std::mt19937 draw(static_cast<unsigned>(threads));
  qwell::Pool pool(threads);
  std::vector<std::int64_t> runs;
  for (int job = 0; job < jobs; ++job) {
    const std::int64_t count = draw() % 40;
    const std::int64_t added = draw() % 1000;
    runs.assign(static_cast<std::size_t>(count), added);
    pool.run(count, [&](std::int64_t i) { runs[static_cast<std::size_t>(i)] += i + 1; });
    bool once = true;
    for (std::int64_t i = 0; i < count; ++i) {
      once = once && runs[static_cast<std::size_t>(i)] == added + i + 1;
    }
    check(once, "a task did not run exactly once", threads, count);
    // Around the time that threads spin, and sometimes well beyond it.
    if (job % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(draw() % 100));
    if (job % 64 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// Each task waits for all others to begin, so that every thread must be awake to take one; then
// the caller is done first, and must itself be woken.
void meet(int threads) {
  qwell::Pool pool(threads);
  const auto caller = std::this_thread::get_id();
  for (int job = 0; job < 200; ++job) {
    std::atomic<int> begun{0};
    std::vector<int> ended(static_cast<std::size_t>(threads), 0);
    pool.run(threads, [&](std::int64_t i) {
      ++begun;
      while (begun < threads) std::this_thread::yield();
      if (std::this_thread::get_id() != caller) {
        std::this_thread::sleep_for(std::chrono::microseconds(500));
      }
      ended[static_cast<std::size_t>(i)] = 1;
    });
    check(std::accumulate(ended.begin(), ended.end(), 0) == threads, "a task was not waited for",
          threads, threads);
    if (job % 2 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace

int main() {
  for (const int threads : {1, 2, 3, 8}) {
    run_jobs(threads, 4000);
    meet(threads);
    for (int i = 0; i < 20; ++i) qwell::Pool{threads};  // started, and stopped at once
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
