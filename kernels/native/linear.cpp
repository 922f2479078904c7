#include "linear.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

namespace qwell {
namespace {

// Arranged activations of the thread that runs ops: megabytes in long prefills, kept for the next.
class Scratch {
 public:
  std::uint8_t* at_least(std::size_t bytes) {
    if (bytes > size_) {
      memory_.reset(new (std::align_val_t{64}) std::uint8_t[bytes]);
      size_ = bytes;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(std::uint8_t* memory) const {
      ::operator delete[](memory, std::align_val_t{64});
    }
  };
  std::unique_ptr<std::uint8_t, Free> memory_;
  std::size_t size_ = 0;
};

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Panels of a task: a multiple of what kernels keep in flight, and enough work to be worth a
// thread's waking, but several tasks a thread, so that one that is held up holds up little.
std::int64_t task_panels(const LinearCall& call, int threads) {
  constexpr std::int64_t kInFlight = 4;
  constexpr std::int64_t kTasks = 8;
  constexpr std::int64_t kLeastBytes = 1 << 15;
  const std::int64_t shared = panels(call.outputs) / (kTasks * threads);
  const std::int64_t worth =
      kLeastBytes / std::max<std::int64_t>(panel_bytes(call.format, call.columns), 1);
  return divide_up(std::max<std::int64_t>({shared, worth, 1}), kInFlight) * kInFlight;
}

}  // namespace

void linear(Isa isa, Pool& pool, const LinearCall& call) {
  if (call.rows == 0 || call.outputs == 0) return;
  const LinearInput input = QWELL_KERNEL(isa, linear_input)(call);
  const auto arrange = QWELL_KERNEL(isa, arrange_rows);
  const auto multiply = QWELL_KERNEL(isa, multiply_panels);

  thread_local Scratch scratch;
  std::uint8_t* arranged = scratch.at_least(static_cast<std::size_t>(call.rows * input.row_bytes));
  pool.run(divide_up(call.rows, input.tokens), [&](std::int64_t i) {
    const std::int64_t first = i * input.tokens;
    const std::int64_t rows = std::min<std::int64_t>(input.tokens, call.rows - first);
    arrange(call, first, rows, arranged + first * input.row_bytes);
  });

  const std::int64_t all = panels(call.outputs);
  const std::int64_t step = task_panels(call, pool.threads());
  pool.run(divide_up(all, step), [&](std::int64_t i) {
    multiply(call, i * step, std::min(step, all - i * step), arranged);
  });
}

}  // namespace qwell
