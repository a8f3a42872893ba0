// The instruction levels that were compiled, and which of them this processor has.

#pragma once

#include <string>

#include "kernel_table.hpp"

namespace firstlight {

struct Level {
    const char* name;
    const KernelTable* kernels;
};

// The level at `index` in [0, level_count()); they rise, and the first runs everywhere.
int level_count();
Level level(int index);

// Whether this processor and its operating system have the level.
bool runs_here(int index);

// The processor's own name for itself, or an empty text where it has none.
std::string processor_name();

}  // namespace firstlight
