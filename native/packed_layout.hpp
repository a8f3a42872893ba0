// How large a matrix is in panels.

#pragma once

#include <cstdint>

#include "kernel_table.hpp"

namespace firstlight {

// Bytes of a [rows, columns] matrix in panels, or -1 where the format is used in place.
inline int64_t packed_bytes(BlockFormat, int64_t, int64_t) { return -1; }

}  // namespace firstlight
