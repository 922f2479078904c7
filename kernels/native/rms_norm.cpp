#include "rms_norm.h"

#include <algorithm>

namespace qwell {
namespace {

const void* row(const void* base, std::int64_t bytes) {
  return base != nullptr ? static_cast<const char*>(base) + bytes : nullptr;
}

void* row(void* base, std::int64_t bytes) {
  return base != nullptr ? static_cast<char*>(base) + bytes : nullptr;
}

}  // namespace

void rms_norm(Isa isa, Pool& pool, const RmsNormCall& call) {
  // Below this a thread takes longer to wake than to compute.
  constexpr std::int64_t kTaskElements = 8192;
  const auto kernel = QWELL_KERNEL(isa, rms_norm);
  const std::int64_t task_rows = std::max<std::int64_t>(kTaskElements / call.width, 1);
  pool.run((call.rows + task_rows - 1) / task_rows, [&](std::int64_t i) {
    const std::int64_t start = i * task_rows;
    const std::int64_t bytes = start * call.width * element_bytes(call.dtype);
    RmsNormCall part = call;
    part.x = row(call.x, bytes);
    part.residual = row(call.residual, bytes);
    part.y = row(call.y, bytes);
    part.s = row(call.s, bytes);
    part.rows = std::min(task_rows, call.rows - start);
    kernel(part);
  });
}

}  // namespace qwell
