#include "module_ceilings.hpp"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <chrono>

#include "buffer.hpp"

namespace firstlight {
namespace {

// Seconds that `work` takes.
template <class Work>
double time(Work work) {
    const auto start = std::chrono::steady_clock::now();
    work();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    return std::max(took.count(), 1e-9);
}

}  // namespace

nb::tuple measure_bandwidth(const KernelTable& table, ThreadPool& pool, int64_t bytes) {
    require(bytes >= 1 << 20, "the buffer must have at least 1 MiB");
    double best = 0.0;
    std::string how;
    uint64_t mixed = 0;
    bool large_pages = false;
    {
        nb::gil_scoped_release release;
        const Buffer buffer(static_cast<size_t>(bytes));
        large_pages = buffer.large_pages();
        for (int pass = 0; pass < 4; ++pass) {
            int way = 0;
            for (const char* name : kReadWays) {
                const double seconds =
                    time([&] { mixed += table.read_memory(pool, buffer.data(), bytes, way); });
                const double found = static_cast<double>(bytes) / seconds;
                if (found > best) how = name;
                best = std::max(best, found);
                ++way;
            }
        }
    }
    if (large_pages) how += " in large pages";
    require(mixed != 0, "memory did not hold what was written to it");
    return nb::make_tuple(best, how);
}

std::vector<std::string> multiply_add_types(const KernelTable& table) {
    std::vector<std::string> names{"f32"};
    if (table.multiply_add_bf16) names.push_back("bf16");
    if (table.multiply_add_int8) names.push_back("int8");
    return names;
}

double measure_multiply_add(const KernelTable& table, ThreadPool& pool, const std::string& type,
                            double seconds) {
    require(seconds > 0, "the time must be positive");
    const auto kernel = type == "f32"    ? table.multiply_add_f32
                        : type == "bf16" ? table.multiply_add_bf16
                        : type == "int8" ? table.multiply_add_int8
                                         : nullptr;
    require(kernel, "the level has no multiply-add of that type");
    nb::gil_scoped_release release;
    int64_t rounds = 1 << 14;
    double best = 0.0;
    for (double spent = 0.0; spent < seconds;) {
        double operations = 0.0;
        const double took = time([&] { operations = kernel(pool, rounds); });
        best = std::max(best, operations / took);
        spent += took;
        // Short enough that one of them is not interrupted.
        if (took < seconds / 64) rounds *= 2;
    }
    return best;
}

}  // namespace firstlight
