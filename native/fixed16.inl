// Rows of x in fixed point with 16 bits, as ops/rounding.py defines it, to the bit.
//
// Rows stand in blocks of up to kMostRows. A block is, for each group of 32 columns, the lines of
// its rows and then their sums, so that a product reads it from one end to the other.

// Whole-number sums of the first and last 16 columns of a group, and of all.
struct GroupSums {
    int32_t run[2], all, unused;
};

constexpr int64_t kRowGroupBytes = kLine + sizeof(GroupSums);

struct FixedRows {
    const float* x;
    int64_t count, columns;
    uint8_t* blocks;
    float* scales;  // of a step, one a row

    int64_t groups() const { return columns / kGroupColumns; }
    int64_t row_bytes() const { return groups() * kRowGroupBytes; }
    // Of the block that begins with `row`.
    uint8_t* block(int64_t row) const { return blocks + row * row_bytes(); }
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

// Row m of a block of `rows` that begins at `to`; returns the size of a step.
inline float fix_row(const float* x, int64_t groups, int rows, int m, uint8_t* to) {
    constexpr float kLimit = 32639.0f, kLeast = 0x1p-100f;
    // Adding it leaves a whole number, ties rounded to even, in the lowest bits.
    constexpr float kWhole = 0x1.8p23f;
    const uint32_t bits = largest_magnitude_bits(x, groups * kGroupColumns);
    const bool finite = bits < 0x7F800000;
    const float most = bits_to_float(bits);
    const bool zero = !finite || most < kLeast;
    const float factor = zero ? 0.0f : kLimit / most;
    for (int64_t g = 0; g < groups; ++g, x += kGroupColumns, to += rows * kRowGroupBytes) {
        int32_t values[kGroupColumns];
        Integers run[2] = {broadcast_int(0), broadcast_int(0)};
        for (int i = 0; i < kGroupColumns; i += kWidth) {
            const Vector whole = load(x + i) * broadcast(factor) + broadcast(kWhole);
            Integers value = as_int(whole) - broadcast_int(0x4B400000);
            if (zero) value = broadcast_int(0);
            memcpy(values + i, &value, sizeof value);
            run[i / 16] = run[i / 16] + value;
        }
        put_line(values, to + m * kLine);
        GroupSums sums = {};
        for (int r = 0; r < 2; ++r) {
            int32_t lanes[kWidth];
            memcpy(lanes, &run[r], sizeof lanes);
            for (int32_t lane : lanes) sums.run[r] += lane;
        }
        sums.all = sums.run[0] + sums.run[1];
        memcpy(to + rows * kLine + m * sizeof sums, &sums, sizeof sums);
    }
    if (!finite) return bits_to_float(0x7FC00000);
    return zero ? 0.0f : most / kLimit;
}

// Rows from a multiple of kMostRows.
void fix_task(void* context, int64_t index) {
    const FixedRows& fixed = *static_cast<const FixedRows*>(context);
    const int64_t end = least((index + 1) * kMostRows, fixed.count);
    for (int64_t row = index * kMostRows; row < end;) {
        const int rows = block_rows(fixed.count - row);
        uint8_t* block = fixed.block(row);
        for (int m = 0; m < rows; ++m, ++row) {
            const float* x = fixed.x + row * fixed.columns;
            fixed.scales[row] = fix_row(x, fixed.groups(), rows, m, block);
        }
    }
}

// All rows of x, in memory that stays until the calling thread fixes others.
FixedRows fix_rows(ThreadPool& pool, const float* x, int64_t count, int64_t columns) {
    FixedRows fixed{x, count, columns, nullptr, nullptr};
    const int64_t bytes = count * fixed.row_bytes();
    const auto wanted = static_cast<size_t>(bytes + count * 4);
    fixed.blocks = static_cast<uint8_t*>(thread_scratch(wanted, Scratch::fixed16_rows));
    fixed.scales = reinterpret_cast<float*>(fixed.blocks + bytes);
    share(pool, 4 * count * columns, divide_up(count, kMostRows), fix_task, &fixed);
    return fixed;
}
