// Every kernel of a table, called with the arguments of a case.

#pragma once

#include <string>
#include <vector>

#include "case_file.hpp"
#include "kernel_table.hpp"
#include "thread_pool.hpp"

namespace firstlight::tests {

// How a kernel is run.
struct Machine {
    const KernelTable& kernels;
    ThreadPool& pool;
    // Query heads of a key-value head in one group of rows that `attention` is given.
    int64_t tile_queries = 32;
    // Products of one call of `linear`; the last one's result counts.
    int products = 1;
    LinearTuning tuning = {};
};

// Of the rows of a batch only these are computed; the result's others stay 0xFF.
struct RowRange {
    int64_t begin, end;
};

// One kernel of the table.
struct Runner {
    const char* op;
    const char* name;
    // How it rounds its activations, as ops/rounding.py calls it.
    const char* rounding;
    // Whether the table has it; null: every table has.
    bool (*has)(const KernelTable&);
    // Whether it takes the arguments; null: all.
    bool (*accepts)(const Case&);
    Array (*run)(const Machine&, const Case&, RowRange);
    // How many rows the batch has that can be computed apart; null where rows are tasks anyway.
    int64_t (*rows)(const Case&);
    // The argument that it wants packed as well (see `with_packed`); null: none.
    const char* packed;
};

const std::vector<Runner>& all_runners();

// The case with what the runner wants packed, by these kernels.
Case prepare(const Runner& runner, const Machine& machine, const Case& one);

// Every row of a prepared case.
Array run_whole(const Runner& runner, const Machine& machine, const Case& one);

// Throws std::runtime_error for a format that the kernels do not know.
StoredMatrix stored_matrix(const std::string& format, const Array& data, int64_t columns);

}  // namespace firstlight::tests
