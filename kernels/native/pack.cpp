#include "pack.h"

#include <algorithm>
#include <atomic>

namespace qwell {

bool pack(Isa isa, Pool& pool, WeightFormat format, const std::vector<StoredRows>& parts,
          std::int64_t columns, void* packed) {
  std::vector<StoredRow> rows;
  for (const StoredRows& part : parts) {
    const auto* data = static_cast<const char*>(part.data);
    const std::int64_t bytes = columns * element_bytes(part.dtype);
    for (std::int64_t i = 0; i < part.rows; ++i) rows.push_back({data + i * bytes, part.dtype});
  }
  const std::int64_t count = panels(static_cast<std::int64_t>(rows.size()));
  rows.resize(static_cast<std::size_t>(count * kPanelRows), {nullptr, DType::float32});

  const auto kernel = QWELL_KERNEL(isa, pack_panel);
  const std::int64_t bytes = panel_bytes(format, columns);
  std::atomic<bool> fits{true};
  pool.run(count, [&](std::int64_t i) {
    if (!kernel(format, &rows[static_cast<std::size_t>(i * kPanelRows)], columns,
                static_cast<char*>(packed) + i * bytes)) {
      fits = false;
    }
  });
  return fits;
}

}  // namespace qwell
