#include "independence.hpp"

#include <algorithm>
#include <memory>

#include "comparison.hpp"

namespace firstlight::tests {
namespace {

struct DeletePool {
    void operator()(ThreadPool* pool) const { delete_thread_pool(pool); }
};

// Whether rows computed `step` at a time are as in `whole`.
bool same_in_parts(const Runner& runner, const Machine& machine, const Case& one,
                   const Array& whole, int64_t step) {
    const int64_t rows = runner.rows(one);
    for (int64_t begin = 0; begin < rows; begin += step) {
        const int64_t end = std::min(begin + step, rows);
        const Array part = runner.run(machine, one, {begin, end});
        if (!same_bits(part, whole, begin, end)) return false;
    }
    return true;
}

}  // namespace

std::string what_changes_bits(const Runner& runner, const Machine& machine, const Case& one,
                              const Array& whole) {
    const std::unique_ptr<ThreadPool, DeletePool> single(new_thread_pool(1));
    const Machine alone{machine.kernels, *single};
    if (!same_bits(run_whole(runner, alone, one), whole)) return "the number of threads";
    if (!runner.rows) return "";
    Machine group = machine;
    group.products = 3;
    if (!same_bits(run_whole(runner, group, one), whole)) return "products beside it";
    for (const LinearTuning& tuning : {LinearTuning{1, 1, 0}, LinearTuning{7, 2, 256}}) {
        Machine tuned = machine;
        tuned.tuning = tuning;
        if (!same_bits(run_whole(runner, tuned, one), whole)) return "the tuning";
    }
    for (const int64_t step : {1, 3, 16}) {
        if (step > 1 && step >= runner.rows(one)) break;
        // Other groups of rows for `attention`, too.
        Machine other = machine;
        other.tile_queries = step == 3 ? 7 : 1 << 20;
        if (!same_in_parts(runner, other, one, whole, step)) {
            return "computing " + std::to_string(step) + " rows at a time";
        }
    }
    return "";
}

}  // namespace firstlight::tests
