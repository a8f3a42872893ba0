// A row's result has the same bits whatever is computed beside it, and however many threads share
// the work.

#pragma once

#include <string>

#include "runners.hpp"

namespace firstlight::tests {

// What changes the bits of `whole`, the result of a case; empty if nothing does. Tried are one
// thread, other products beside it, other tunings, and rows alone and in parts of a few sizes.
std::string what_changes_bits(const Runner& runner, const Machine& machine, const Case& one,
                              const Array& whole);

}  // namespace firstlight::tests
