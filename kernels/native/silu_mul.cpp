#include "silu_mul.h"

#include <algorithm>

namespace qwell {

void silu_mul(Isa isa, Pool& pool, const SiluMulCall& call) {
  // Below this a thread takes longer to wake than to compute.
  constexpr std::int64_t kTaskElements = 8192;
  const auto kernel = QWELL_KERNEL(isa, silu_mul);
  const auto tasks_of = [](std::int64_t size, std::int64_t task) {
    return (size + task - 1) / task;
  };
  // Several rows make a task, or a part of one row.
  const std::int64_t task_rows = std::max<std::int64_t>(kTaskElements / call.width, 1);
  const std::int64_t parts = tasks_of(call.width, kTaskElements);
  const std::int64_t task_width = tasks_of(call.width, parts);
  pool.run(tasks_of(call.rows, task_rows) * parts, [&](std::int64_t i) {
    const std::int64_t column = i % parts * task_width;
    const std::int64_t width = std::min(task_width, call.width - column);
    const std::int64_t first = i / parts * task_rows;
    const std::int64_t end = std::min(first + task_rows, call.rows);
    for (std::int64_t row = first; row < end; ++row) {
      const float* gate = call.gate_up + row * 2 * call.width + column;
      kernel(gate, gate + call.width, call.y + row * call.width + column, width);
    }
  });
}

}  // namespace qwell
