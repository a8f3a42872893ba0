// Checks the kernels of this processor's instruction levels against cases that Python wrote, in a
// program of its own: it runs where there is no Python, on an emulated processor too.
//
//     conformance --levels             names the levels that run here, the highest last
//     conformance FILE [options]       runs every kernel of every level on the cases of the file
//         --level NAME                 of this level only
//         --op NAME                    only kernels of this op
//         --threads N                  that share the work of a kernel (3)
//         --random-bytes N             rounds of random weights for each format (4)
//         --seed N                     of these (1)
//
// Ends with 0 if all agree, 1 if not, 2 if it could not be told.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "comparison.hpp"
#include "independence.hpp"
#include "levels.hpp"
#include "random_bytes.hpp"
#include "runners.hpp"

namespace firstlight::tests {
namespace {

struct Options {
    std::string file, level, op;
    int threads = 3, rounds = 4;
    uint64_t seed = 1;
};

// What came of all cases of one kernel.
struct Summary {
    int cases = 0, failed = 0;
    double worst = 0;  // largest error as a share of what was allowed, where anything was
    uint64_t bits = 0;  // of all results, mixed
};

struct DeletePool {
    void operator()(ThreadPool* pool) const { delete_thread_pool(pool); }
};

// Fowler, Noll and Vo's hash FNV-1a, of one more array.
uint64_t mix(uint64_t bits, const Array& array) {
    for (size_t i = 0; i < array.memory.size(); ++i) {
        bits = (bits ^ array.memory.data()[i]) * 0x100000001B3;
    }
    return bits;
}

// What is wrong with a kernel's result of a case, or empty.
std::string check(const Runner& runner, const Machine& machine, const Case& given,
                  Summary& summary) {
    const std::string rounding = runner.rounding;
    const Case one = prepare(runner, machine, given), before = one;
    const auto expected =
        std::find_if(one.expected.begin(), one.expected.end(),
                     [&](const Expectation& each) { return each.rounding == rounding; });
    if (expected == one.expected.end()) return "no result is known for the rounding " + rounding;
    const Array found = run_whole(runner, machine, one);
    summary.bits = mix(summary.bits, found);
    const Comparison result = compare(found, expected->result, expected->relative, one.absolute);
    if (!result.note.empty()) return "the result " + result.note;
    if (result.allowed > 0) summary.worst = std::max(summary.worst, result.error / result.allowed);
    if (!result.passed) {
        char text[100];
        std::snprintf(text, sizeof text, "off by %.3g, allowed %.3g", result.error, result.allowed);
        return text;
    }
    if (!same_arguments(before, one)) return "it changed its arguments";
    const std::string changing = what_changes_bits(runner, machine, one, found);
    return changing.empty() ? "" : "bits change with " + changing;
}

// The measurements of the processor's ceilings at least do what they say.
std::string check_ceilings(const Machine& machine) {
    const Array memory(ElementType::byte, {1 << 16});
    for (size_t way = 0; way < std::size(kReadWays); ++way) {
        if (machine.kernels.read_memory(machine.pool, memory.memory.data(), memory.size(),
                                        static_cast<int>(way)) == 0) {
            return "read_memory found zeros in memory that holds none";
        }
    }
    for (const auto count : {machine.kernels.multiply_add_f32, machine.kernels.multiply_add_bf16,
                             machine.kernels.multiply_add_int8}) {
        if (!count) continue;
        const double once = count(machine.pool, 100), twice = count(machine.pool, 200);
        if (once <= 0 || twice != 2 * once) return "a loop of products miscounts its operations";
    }
    return "";
}

// Prints what was found at one level; whether all of it was right.
bool check_level(const Level& level, const std::vector<Case>& cases, const Options& options) {
    const std::unique_ptr<ThreadPool, DeletePool> pool(new_thread_pool(options.threads));
    const Machine machine{*level.kernels, *pool};
    bool right = true;
    const auto report = [&](const std::string& what) {
        std::printf("FAILED %s: %s\n", level.name, what.c_str());
        right = false;
    };
    for (const Runner& runner : all_runners()) {
        if (!options.op.empty() && options.op != runner.op) continue;
        if (runner.has && !runner.has(machine.kernels)) continue;
        Summary summary;
        for (const Case& one : cases) {
            if (one.op != runner.op || (runner.accepts && !runner.accepts(one))) continue;
            ++summary.cases;
            const std::string wrong = check(runner, machine, one, summary);
            if (wrong.empty()) continue;
            ++summary.failed;
            report(one.op + "/" + runner.name + " on '" + one.name + "': " + wrong);
        }
        if (summary.cases == 0) report(std::string(runner.op) + "/" + runner.name + ": no cases");
        std::printf("%-12s %-20s %5d cases %5d failed  worst %5.1f%% of tolerance  bits %016llx\n",
                    level.name, (std::string(runner.op) + "/" + runner.name).c_str(),
                    summary.cases, summary.failed, 100 * summary.worst,
                    static_cast<unsigned long long>(summary.bits));
    }
    for (const std::string& wrong :
         try_random_bytes(machine, *firstlight::level(0).kernels, options.seed, options.rounds)) {
        report(wrong);
    }
    const std::string wrong = check_ceilings(machine);
    if (!wrong.empty()) report(wrong);
    return right;
}

int positive(const std::string& text) {
    const int value = std::atoi(text.c_str());
    if (value < 0 || value > 1 << 20) throw std::runtime_error("not a usable number: " + text);
    return value;
}

Options parse(int count, char** arguments) {
    Options options;
    for (int i = 1; i < count; ++i) {
        const std::string argument = arguments[i];
        if (argument.rfind("--", 0) != 0) {
            options.file = argument;
            continue;
        }
        if (i + 1 == count) throw std::runtime_error(argument + " needs a value");
        const std::string value = arguments[++i];
        if (argument == "--level") {
            options.level = value;
        } else if (argument == "--op") {
            options.op = value;
        } else if (argument == "--threads") {
            options.threads = positive(value);
        } else if (argument == "--random-bytes") {
            options.rounds = positive(value);
        } else if (argument == "--seed") {
            options.seed = static_cast<uint64_t>(positive(value));
        } else {
            throw std::runtime_error("unknown option " + argument);
        }
    }
    if (options.file.empty()) throw std::runtime_error("name a file of cases");
    return options;
}

int list_levels() {
    for (int i = 0; i < level_count(); ++i) {
        if (runs_here(i)) std::printf("%s\n", level(i).name);
    }
    return 0;
}

int run(int count, char** arguments) {
    if (count == 2 && std::string(arguments[1]) == "--levels") return list_levels();
    const Options options = parse(count, arguments);
    const std::vector<Case> cases = read_cases(options.file);
    bool right = true;
    int levels = 0;
    for (int i = 0; i < level_count(); ++i) {
        if (!runs_here(i) || (!options.level.empty() && options.level != level(i).name)) continue;
        ++levels;
        right = check_level(level(i), cases, options) && right;
    }
    if (levels == 0) throw std::runtime_error("no such instruction level runs here");
    std::printf("%zu cases, %d levels: %s\n", cases.size(), levels, right ? "agreed" : "FAILED");
    return right ? 0 : 1;
}

}  // namespace
}  // namespace firstlight::tests

int main(int count, char** arguments) {
    try {
        return firstlight::tests::run(count, arguments);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "conformance: %s\n", error.what());
        return 2;
    }
}
