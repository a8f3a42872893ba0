#include "comparison.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace firstlight::tests {
namespace {

// Element i as a float, or as an integer that any float32 of another value differs from.
double value_at(const Array& array, int64_t i) {
    if (array.type == ElementType::float32) return array.elements<float>()[i];
    if (array.type == ElementType::bfloat16) {
        const uint32_t bits = uint32_t{array.elements<uint16_t>()[i]} << 16;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
    if (array.type == ElementType::int32) return array.elements<int32_t>()[i];
    return array.elements<uint8_t>()[i];
}

bool alike(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

}  // namespace

Comparison compare(const Array& found, const Array& expected, double relative, double absolute) {
    constexpr double kInfinite = std::numeric_limits<double>::infinity();
    if (found.type != expected.type) return {false, kInfinite, 0, "has another dtype"};
    if (found.shape != expected.shape) return {false, kInfinite, 0, "has another shape"};
    double error = 0, largest = 0;
    for (int64_t i = 0; i < expected.size(); ++i) {
        const double got = value_at(found, i), wanted = value_at(expected, i);
        if (!std::isfinite(wanted) || !std::isfinite(got)) {
            if (!alike(got, wanted)) error = kInfinite;
            continue;
        }
        error = std::max(error, std::fabs(got - wanted));
        largest = std::max(largest, std::fabs(wanted));
    }
    const double allowed = absolute + relative * largest;
    return {error <= allowed, error, allowed, ""};
}

bool same_bits(const Array& left, const Array& right, int64_t begin, int64_t end) {
    if (left.type != right.type || left.shape != right.shape) return false;
    if (begin == end || left.size() == 0) return true;
    const int64_t row = left.size() / left.extent(0);
    const size_t bytes = bytes_of(left.type);
    for (int64_t i = begin * row; i < end * row; ++i) {
        const size_t at = static_cast<size_t>(i) * bytes;
        if (std::memcmp(left.memory.data() + at, right.memory.data() + at, bytes) == 0) continue;
        if (!std::isnan(value_at(left, i)) || !std::isnan(value_at(right, i))) return false;
    }
    return true;
}

bool same_bits(const Array& left, const Array& right) {
    return same_bits(left, right, 0, left.shape.empty() ? 1 : left.extent(0));
}

bool same_arguments(const Case& left, const Case& right) {
    const auto same = [](const auto& a, const auto& b) {
        return a.first == b.first && a.second.memory.size() == b.second.memory.size() &&
               std::memcmp(a.second.memory.data(), b.second.memory.data(),
                           a.second.memory.size()) == 0;
    };
    return std::equal(left.arrays.begin(), left.arrays.end(), right.arrays.begin(),
                      right.arrays.end(), same);
}

}  // namespace firstlight::tests
