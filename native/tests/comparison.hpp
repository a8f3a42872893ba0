// Whether a kernel's result is the definition's, by the rule of firstlight/verify/conformance.py.

#pragma once

#include <string>

#include "case_file.hpp"

namespace firstlight::tests {

// What came of one comparison.
struct Comparison {
    bool passed;
    // Largest absolute difference, and the largest that the tolerance permits.
    double error, allowed;
    // Why the two cannot be compared, else empty.
    std::string note;
};

// Where the definition is finite the largest difference may be absolute + relative times its
// largest magnitude; elsewhere both must be alike.
Comparison compare(const Array& found, const Array& expected, double relative, double absolute);

// Whether rows begin to end (of the first axis) hold the same bits, any NaN being like any other.
bool same_bits(const Array& left, const Array& right, int64_t begin, int64_t end);

// Of all rows.
bool same_bits(const Array& left, const Array& right);

// Whether the arguments of both cases are the same to the byte.
bool same_arguments(const Case& left, const Case& right);

}  // namespace firstlight::tests
