// How fast the processor could go, as Python asks for it.

#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "kernel_table.hpp"
#include "thread_pool.hpp"

namespace firstlight {

// (bytes per second, how): what all threads together read from a buffer of `bytes`, the best of
// several passes in each of several ways.
nb::tuple measure_bandwidth(const KernelTable& table, ThreadPool& pool, int64_t bytes);

// Data types whose multiply-adds measure_multiply_add can measure at this level.
std::vector<std::string> multiply_add_types(const KernelTable& table);

// Operations per second of all threads together in multiply-adds between registers.
double measure_multiply_add(const KernelTable& table, ThreadPool& pool, const std::string& type,
                            double seconds);

}  // namespace firstlight
