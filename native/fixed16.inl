// Rows of x in fixed point, as ops/rounding.py defines mixed16, to the bit; in one or both of two
// arrangements.
//
// Blocks are of up to kMostRows rows: for each group of 32 columns, the lines of the rows and then
// their sums, so that a product reads it from one end to the other. For products by steps
// (step_lines.inl) the lines of a strip's groups lie together, row by row; the last strip may have
// room to spare.

// Whole-number sums of the first and last 16 columns of a group, and of all.
struct GroupSums {
    int32_t run[2], all, unused;
};

constexpr int64_t kRowGroupBytes = kLine + sizeof(GroupSums);

struct FixedRows {
    const float* x;
    int64_t count, columns;
    uint8_t* blocks;   // or null
    StepLine* lines;   // or null
    float* scales;     // of a step, one a row

    int64_t groups() const { return columns / kGroupColumns; }
    int64_t row_bytes() const { return groups() * kRowGroupBytes; }
    // Of the block that begins with `row`.
    uint8_t* block(int64_t row) const { return blocks + row * row_bytes(); }
    // Of a row's groups from `group`, with which a strip begins.
    StepLine* strip(int64_t group, int64_t row) const {
        return lines + group * count + row * kStripGroups;
    }
};

// How many rows the block has that begins with a row after which `left` are left, itself
// included: kMostRows, and at the end the powers of two that are left.
FIRSTLIGHT_INLINE int block_rows(int64_t left) {
    int rows = kMostRows;
    while (rows > left) rows /= 2;
    return rows;
}

// As bits, magnitudes of float32 rise with the numbers, infinity and then NaN being the last.
inline uint32_t largest_magnitude_bits(const float* x, int64_t count) {
    Integers most = broadcast_int(0);
    int64_t i = 0;
    const auto take = [&](Vector values) FIRSTLIGHT_INLINED {
        const Integers bits = as_int(values) & broadcast_int(0x7FFFFFFF);
        most = larger(most, bits);
    };
    for (; i + kWidth <= count; i += kWidth) take(load(x + i));
    if (i < count) take(load_first(x + i, count - i));
    int32_t lanes[kWidth];
    memcpy(lanes, &most, sizeof lanes);
    int32_t all = 0;
    for (int32_t lane : lanes) all = lane > all ? lane : all;
    return static_cast<uint32_t>(all);
}

#include "step_groups.inl"

// Row `row`, which is row m of a block of `rows`; returns the size of a step.
inline float fix_row(const FixedRows& fixed, int64_t row, int rows, int m) {
    // 127 * 256 - 1: rounding to a step may add half of one, 128, and both bytes stay signed bytes.
    constexpr float kLimit = 32511.0f, kLeast = 0x1p-100f;
    // Adding it leaves a whole number, ties rounded to even, in the lowest bits.
    constexpr float kWhole = 0x1.8p23f;
    const float* x = fixed.x + row * fixed.columns;
    const uint32_t bits = largest_magnitude_bits(x, fixed.columns);
    const bool finite = bits < 0x7F800000;
    const float most = bits_to_float(bits);
    const bool zero = !finite || most < kLeast;
    const float factor = zero ? 0.0f : kLimit / most;
    uint8_t* to = fixed.blocks ? fixed.block(row - m) : nullptr;
    const bool together = kSteps && !zero && fixed.lines;
    if (together) put_row_lines(fixed, row, factor);
    if (together && !to) return most / kLimit;
    for (int64_t g = 0; g < fixed.groups(); ++g, x += kGroupColumns) {
        int32_t values[kGroupColumns], multiples[kGroupColumns];
        for (int i = 0; i < kGroupColumns; i += kWidth) {
            const Vector whole = load(x + i) * broadcast(factor) + broadcast(kWhole);
            Integers value = as_int(whole) - broadcast_int(0x4B400000);
            if (zero) value = broadcast_int(0);
            memcpy(values + i, &value, sizeof value);
        }
        const GroupStep step = group_step(values);
        step_multiples(values, step.step, multiples);
        if (fixed.lines && !together) {
            StepLine* strip = fixed.strip(g / kStripGroups * kStripGroups, row);
            put_step_line(step, multiples, strip + g % kStripGroups);
        }
        if (!to) continue;
        Integers run[2] = {broadcast_int(0), broadcast_int(0)};
        for (int i = 0; i < kGroupColumns; i += kWidth) {
            Integers value;
            memcpy(&value, multiples + i, sizeof value);
            value = value * broadcast_int(step.step);
            memcpy(values + i, &value, sizeof value);
            run[i / 16] = run[i / 16] + value;
        }
        GroupSums sums = {};
        for (int r = 0; r < 2; ++r) {
            int32_t lanes[kWidth];
            memcpy(lanes, &run[r], sizeof lanes);
            for (int32_t lane : lanes) sums.run[r] += lane;
        }
        sums.all = sums.run[0] + sums.run[1];
        put_line(values, to + m * kLine);
        memcpy(to + rows * kLine + m * sizeof sums, &sums, sizeof sums);
        to += rows * kRowGroupBytes;
    }
    if (!finite) return bits_to_float(0x7FC00000);
    return zero ? 0.0f : most / kLimit;
}

// Where what is made of the rows lies in `memory`, of fixed_bytes(fixed, blocks, steps).
inline int64_t line_bytes(const FixedRows& fixed) {
    const int64_t places = divide_up(fixed.groups(), kStripGroups) * kStripGroups;
    return fixed.count * places * static_cast<int64_t>(sizeof(StepLine));
}

inline int64_t fixed_bytes(const FixedRows& fixed, bool blocks, bool steps) {
    const int64_t lines = steps ? line_bytes(fixed) : 0;
    const int64_t block_bytes = blocks ? fixed.count * fixed.row_bytes() : 0;
    return divide_up(lines + block_bytes + fixed.count * 4, 64) * 64;
}

inline void place_fixed(FixedRows& fixed, bool blocks, bool steps, uint8_t* memory) {
    if (steps) fixed.lines = reinterpret_cast<StepLine*>(memory);
    if (steps) memory += line_bytes(fixed);
    if (blocks) fixed.blocks = memory;
    if (blocks) memory += fixed.count * fixed.row_bytes();
    fixed.scales = reinterpret_cast<float*>(memory);
}

// Several x to be fixed in one parallel region.
struct FixedGroup {
    const FixedRows* first;
};

// Rows of one x from a multiple of kMostRows.
void fix_task(void* context, int64_t index) {
    const FixedRows* rows = static_cast<const FixedGroup*>(context)->first;
    for (; index >= divide_up(rows->count, kMostRows); ++rows) {
        index -= divide_up(rows->count, kMostRows);
    }
    const FixedRows& fixed = *rows;
    const int64_t end = least((index + 1) * kMostRows, fixed.count);
    for (int64_t row = index * kMostRows; row < end;) {
        const int some = block_rows(fixed.count - row);
        for (int m = 0; m < some; ++m, ++row) fixed.scales[row] = fix_row(fixed, row, some, m);
    }
}

// All rows of each x, into the memory that was placed.
void fix_rows(ThreadPool& pool, const FixedRows* fixed, int count) {
    int64_t work = 0, tasks = 0;
    for (int i = 0; i < count; ++i) {
        work += 16 * fixed[i].count * fixed[i].columns;
        tasks += divide_up(fixed[i].count, kMostRows);
    }
    FixedGroup group{fixed};
    share(pool, work, tasks, fix_task, &group);
}
