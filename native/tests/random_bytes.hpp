// Weights of random bytes: nothing that a file can hold may make a kernel read or write outside
// its arguments, and every level decodes it to the same values.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runners.hpp"

namespace firstlight::tests {

// Decodes `rounds` random matrices of each format, and multiplies with them; what was found wrong.
// With `reference` every level must agree to the bit in packing, decoding, and products with packed
// weights.
std::vector<std::string> try_random_bytes(const Machine& machine, const KernelTable& reference,
                                          uint64_t seed, int rounds);

}  // namespace firstlight::tests
