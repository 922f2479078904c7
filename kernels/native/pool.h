#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace qwell {

// Threads that share the tasks of one job at a time: those it starts, and whoever runs the job.
//
// Tasks are taken one by one, so that a thread which the system holds up delays one task and not
// its share of the job. Whoever waits, for a job or for its end, spins briefly and then sleeps. A
// forked child starts threads of its own. One thread may run jobs at a time, and tasks must not
// run jobs.
class Pool {
 public:
  // `threads` counts the caller of run; at least 1. Throws where the system gives no more of them.
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
    run_job({count, [](const void* context, std::int64_t i) {
      (*static_cast<const Task*>(context))(i);
    }, &task});
  }

 private:
  struct Job {
    std::int64_t count = 0;
    void (*function)(const void* context, std::int64_t i) = nullptr;
    const void* context = nullptr;
  };

  void run_job(const Job& job);
  void start();
  void stop();
  void work();
  void take_tasks();

  const int threads_;
  int fork_generation_ = 0;
  std::vector<std::thread> workers_;

  // Read only by threads that have taken a task of it and not yet counted that as done: until
  // then the job is not, and the next one cannot be written here.
  Job job_;

  // Tasks that nobody has taken. Threads that came in vain make it negative.
  alignas(64) std::atomic<std::int64_t> left_{0};
  // A thread adds what it has done once it finds no task left, not task by task.
  alignas(64) std::atomic<std::int64_t> done_{0};
  // Changes with every job; sleeping threads wait for that.
  alignas(64) std::atomic<std::uint32_t> bell_{0};
  std::atomic<bool> stopping_{false};
};

}  // namespace qwell
