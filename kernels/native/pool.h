#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace qwell {

// Threads that share the tasks of one job at a time: those it starts, and whoever runs the job.
//
// Tasks are taken one by one, so that a thread which the system holds up delays one task and not
// its share of the job. Between jobs the threads spin briefly, then sleep. A forked child starts
// threads of its own. One thread may run jobs at a time, and tasks must not run jobs.
class Pool {
 public:
  // `threads` counts the caller of run; at least 1.
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }

  // Calls task(i) for every i in 0 .. count - 1, in no order, and returns when all are done. The
  // tasks see what the caller wrote before, and the caller what they wrote. They do not throw.
  template <class Task>
  void run(std::int64_t count, const Task& task) {
    if (threads_ == 1 || count <= 1) {
      for (std::int64_t i = 0; i < count; ++i) task(i);
      return;
    }
    run_job(count, [](const void* context, std::int64_t i) {
      (*static_cast<const Task*>(context))(i);
    }, &task);
  }

 private:
  using Function = void (*)(const void* context, std::int64_t i);

  void run_job(std::int64_t count, Function function, const void* context);
  void start();
  void stop();
  void work();
  void take_tasks();

  const int threads_;
  int fork_generation_ = 0;
  std::vector<std::thread> workers_;

  // The job. A thread may read function_ and context_ only while it holds a task of it: until
  // that task is done, the job is not, and the next one cannot begin.
  std::atomic<Function> function_{nullptr};
  std::atomic<const void*> context_{nullptr};
  std::atomic<std::uint32_t> count_{0};

  // Number of the job (upper half) and of its next task, or kClosed while a job is being set up.
  // Tasks are taken by compare-and-swap: one that came late cannot take a task of another job.
  alignas(64) std::atomic<std::uint64_t> next_{0};
  alignas(64) std::atomic<std::uint32_t> done_{0};
  // Changes with every job; sleeping threads wait for that.
  alignas(64) std::atomic<std::uint32_t> bell_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stopping_{false};
};

}  // namespace qwell
