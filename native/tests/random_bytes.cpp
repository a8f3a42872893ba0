#include "random_bytes.hpp"

#include <cstring>
#include <random>

#include "comparison.hpp"
#include "formats.hpp"

namespace firstlight::tests {
namespace {

class Draw {
public:
    explicit Draw(uint64_t seed) : generator_(seed) {}

    int64_t below(int64_t end) {
        return static_cast<int64_t>(generator_() % static_cast<uint64_t>(end));
    }

    // In every fourth array most bytes are those of infinities, NaNs and subnormal numbers.
    void fill(const Array& array) {
        const bool strange = below(4) == 0;
        constexpr uint8_t kStrange[] = {0xFF, 0x7F, 0x7C, 0xFC, 0x80, 0x00, 0x01, 0x03};
        for (size_t i = 0; i < array.memory.size(); ++i) {
            const uint64_t bits = generator_();
            const bool plain = !strange || (bits >> 32) % 4 == 0;
            array.memory.data()[i] = plain ? static_cast<uint8_t>(bits) : kStrange[bits % 8];
        }
    }

private:
    std::mt19937_64 generator_;
};

Case random_case(const FormatInfo& format, Draw& draw) {
    const int64_t blocks = format.block_values == 1 ? draw.below(900) : 1 + draw.below(7);
    const int64_t rows = 1 + draw.below(40), count = 1 + draw.below(19);
    Case one;
    one.op = "linear";
    one.name = std::string("random bytes as ") + format.name;
    const std::vector<int64_t> shape{rows, blocks * format.block_bytes};
    const auto offset = static_cast<size_t>(draw.below(4));
    for (const char* name : {"weight", "table"}) {
        one.texts[std::string(name) + ".format"] = format.name;
        one.numbers[std::string(name) + ".columns"] =
            static_cast<double>(blocks * format.block_values);
        const auto added = one.arrays.emplace(name, Array(ElementType::byte, shape, offset));
        draw.fill(added.first->second);
    }
    if (format.code == BlockFormat::f8_e4m3 && draw.below(3)) {
        // For blocks that end within the matrix, and begin before it.
        const int64_t high = 1 + draw.below(16), wide = 32 * (1 + draw.below(5));
        const int64_t before = draw.below(high);
        const std::vector<int64_t> grid{(before + rows - 1) / high + 1,
                                        blocks / wide + (blocks % wide != 0)};
        for (const char* name : {"weight.scales", "table.scales"}) {
            draw.fill(one.arrays.emplace(name, Array(ElementType::float32, grid)).first->second);
            one.numbers[std::string(name) + ".rows"] = static_cast<double>(high);
            one.numbers[std::string(name) + ".columns"] = static_cast<double>(wide);
            one.numbers[std::string(name) + ".first_row"] = static_cast<double>(before);
        }
    }
    if (format.code == BlockFormat::e2m1 && draw.below(3)) {
        for (const char* name : {"weight.groups", "table.groups"}) {
            draw.fill(one.arrays.emplace(name, Array(ElementType::byte, {rows, blocks}))
                          .first->second);
            one.numbers[std::string(name) + ".factor"] = 0.37;
            one.numbers[std::string(name) + ".divisor"] = draw.below(2) ? 1.9 : 1.0;
        }
    }
    const std::vector<int64_t> inputs{count, blocks * format.block_values};
    draw.fill(one.arrays.emplace("x", Array(ElementType::float32, inputs)).first->second);
    const Array ids(ElementType::int32, {2 * rows});
    for (int64_t i = 0; i < ids.size(); ++i) {
        ids.elements<int32_t>()[i] = static_cast<int32_t>(i < rows ? i : draw.below(rows));
    }
    one.arrays.emplace("token_ids", ids);
    return one;
}

}  // namespace

std::vector<std::string> try_random_bytes(const Machine& machine, const KernelTable& reference,
                                          uint64_t seed, int rounds) {
    std::vector<std::string> wrong;
    const Machine other{reference, machine.pool};
    for (const FormatInfo& format : kFormats) {
        for (int round = 0; round < rounds; ++round) {
            Draw draw(seed * 1000003 + static_cast<uint64_t>(round));
            const Case one = random_case(format, draw);
            for (const Runner& runner : all_runners()) {
                const std::string op = runner.op;
                if (op != "linear" && op != "embed") continue;
                if (runner.has && !runner.has(machine.kernels)) continue;
                if (runner.accepts && !runner.accepts(one)) continue;
                const Case given = prepare(runner, machine, one), before = given;
                const auto report = [&](const char* what) {
                    wrong.push_back(one.name + ", round " + std::to_string(round) + ", " + op +
                                    "/" + runner.name + ": " + what);
                };
                if (!same_arguments(given, prepare(runner, other, one))) {
                    report("is packed otherwise than by the first level");
                }
                const Array found = run_whole(runner, machine, given);
                if (!same_arguments(before, given)) report("changed its arguments");
                // Whole numbers and single roundings are the same at every level.
                const bool exact = op == "embed" || runner.packed;
                if (exact && !same_bits(found, run_whole(runner, other, given))) {
                    report("gives other bits than the first level");
                }
            }
        }
    }
    return wrong;
}

}  // namespace firstlight::tests
