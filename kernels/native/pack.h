#pragma once

#include <cstdint>
#include <vector>

#include "dtype.h"
#include "isa.h"
#include "packed.h"
#include "pool.h"

namespace qwell {

// Consecutive rows of a weight as a file stores them: contiguous.
struct StoredRows {
  const void* data;
  std::int64_t rows;
  DType dtype;
};

struct StoredRow {
  const void* data;  // null is a row of zeros
  DType dtype;
};

// Writes the rows of `parts`, one after the other, to `packed` in the layout that
// kernels/native/packed.py states: panels(rows) * panel_bytes(format, columns) bytes, each with
// the bits that its `pack` makes. False if a weight is not finite or too large for the format;
// what is at `packed` then means nothing. `isa` must be one of runnable_isas().
bool pack(Isa isa, Pool& pool, WeightFormat format, const std::vector<StoredRows>& parts,
          std::int64_t columns, void* packed);

// Packs the kPanelRows rows of a panel; from pack_kernel.cpp.
QWELL_PER_ISA(bool pack_panel(WeightFormat format, const StoredRow* rows, std::int64_t columns,
                              void* packed);)

}  // namespace qwell
