// out = x weight^T + bias for fp8 weights and activations rounded to bfloat16.
//
// Up to four rows of x: codes become bfloat16 in registers. More: those of a block of the weight's rows
// become bfloat16 in the second-level cache, once for all rows of x. Bits are the same.

#if defined(__AVX512BF16__)

constexpr bool kFloat8Products = true;

// Rows of the weight that are decoded together, and the bytes between them, not a power of two.
constexpr int64_t kFloat8BlockRows = 48;
constexpr int64_t kFloat8Stride = 2 * kFloat8Chunk + 64;

inline Float8Chunk float8_chunk(const StoredMatrix& weight, int64_t start, int64_t ahead) {
    const int64_t count = least(kFloat8Chunk, weight.columns - start);
    const int64_t block = weight.scales.values ? weight.scales.columns : weight.columns;
    return {count, block, (start / block + 1) * block - start, ahead};
}

inline const float* float8_scale(const StoredMatrix& weight, int64_t row, int64_t column) {
    static constexpr float kOne = 1.0f;
    const BlockScales& scales = weight.scales;
    if (!scales.values) return &kOne;
    return scales.values + (scales.first_row + row) / scales.rows * scales.stride +
           column / scales.columns;
}

// Some rows with a panel of inputs over one chunk, into the result.
inline void float8_group(const LinearCall& call, Float8Products products, const Float8Chunk& chunk,
                         const Float8Row* left, int rows, int64_t row, const uint16_t* right,
                         int64_t stride, int64_t x_begin, int inputs, bool more) {
    alignas(64) float sums[4 * kFloat8MostInputs];
    products(left, chunk, right, stride, sums);
    for (int x = 0; x < inputs; ++x) {
        float* target = call.out + (x_begin + x) * call.weight.rows + row;
        for (int r = 0; r < rows; ++r) target[r] = more ? target[r] + sums[4 * x + r] : sums[4 * x + r];
    }
}

// Rows [first, end), at most kFloat8BlockRows, with inputs [input, input_end). A few inputs at a time stay
// in the first-level cache while the block's rows pass by.
inline void float8_block(const LinearTiles& tiles, int64_t first, int64_t end, int64_t input,
                         int64_t input_end) {
    const LinearCall& call = *tiles.call;
    const StoredMatrix& weight = call.weight;
    const int64_t inputs = input_end - input, stride = rounded_stride(weight.columns);
    const bool stored = inputs <= kFloat8MostInputs;
    const int64_t panels = stored ? 1 : divide_up(inputs, kFloat8Inputs);
    const int64_t kept_together = stored && inputs > 2 ? 2 : kFloat8Rows;
    uint8_t* decoded = nullptr;
    if (!stored) decoded = static_cast<uint8_t*>(thread_scratch(kFloat8BlockRows * kFloat8Stride));
    for (int64_t start = 0; start < weight.columns; start += kFloat8Chunk) {
        const Float8Chunk chunk = float8_chunk(
            weight, start,
            call.tuning.fetch_ahead ? call.tuning.fetch_ahead : kept_together * weight.row_bytes);
        // From a row of this chunk to what is decoded after the block's chunk.
        const int64_t next = start + chunk.count < weight.columns
                                 ? chunk.count
                                 : (end - first) * weight.row_bytes - start;
        Float8Row left[kFloat8BlockRows];
        for (int64_t r = first; r < end; ++r) {
            const uint8_t* data = weight.data + r * weight.row_bytes + start;
            if (!stored) {
                uint8_t* to = decoded + (r - first) * kFloat8Stride;
                decode_float8(data, chunk.count, next, to);
                data = to;
            }
            left[r - first] = {data, float8_scale(weight, r, start)};
        }
        for (int64_t panel = 0; panel < panels; ++panel) {
            const int64_t x_begin = input + inputs * panel / panels;
            const int some = static_cast<int>(input + inputs * (panel + 1) / panels - x_begin);
            const uint16_t* right = static_cast<const uint16_t*>(tiles.x) + x_begin * stride + start;
            const Float8Products whole = float8_products_for(stored, false, some);
            const Float8Products one = float8_products_for(stored, true, some);
            int64_t row = first;
            for (; row + kept_together <= end; row += kept_together) {
                float8_group(call, whole, chunk, left + (row - first),
                             static_cast<int>(kept_together), row, right, stride, x_begin, some,
                             start > 0);
            }
            for (; row < end; ++row) {
                float8_group(call, one, chunk, left + (row - first), 1, row, right, stride, x_begin,
                             some, start > 0);
            }
        }
    }
    for (int64_t x = input; x < input_end; ++x) {
        float* target = call.out + x * weight.rows;
        for (int64_t r = first; r < end; ++r) {
            if (weight.columns == 0) target[r] = 0.0f;
            if (call.bias) target[r] += call.bias[r];
        }
    }
}

void float8_task(const LinearTiles& tiles, int64_t index) {
    const LinearCall& call = *tiles.call;
    const int64_t begin = index / tiles.blocks * tiles.tile_rows;
    const int64_t end = least(begin + tiles.tile_rows, call.weight.rows);
    const int64_t input = index % tiles.blocks * tiles.block_inputs;
    const int64_t input_end = least(input + tiles.block_inputs, call.count);
    for (int64_t row = begin; row < end; row += tiles.block_rows) {
        float8_block(tiles, row, least(row + tiles.block_rows, end), input, input_end);
    }
}

// Up to kFewInputs the weight streams through once; with more, blocks of it stay in the second-level
// cache.
inline LinearTiles float8_tiles(const LinearCall& call, const void* x, int threads) {
    constexpr int64_t kFewInputs = 20, kTaskBytes = 1 << 17;
    const StoredMatrix& weight = call.weight;
    LinearTiles tiles{float8_task, &call, x, 0, 1, call.count, 0, kFloat8Rows};
    if (call.count == 0 || weight.rows == 0) return tiles;
    const int64_t wanted = 8 * threads, fair = divide_up(weight.rows, wanted);
    if (call.count > kFloat8MostInputs) tiles.block_rows = 16;
    if (call.count > kFewInputs) tiles.block_rows = kFloat8BlockRows;
    if (call.tuning.panels) {
        tiles.block_rows = least(16 * int64_t{call.tuning.panels}, kFloat8BlockRows);
    }
    tiles.block_rows = least(tiles.block_rows, divide_up(fair, kFloat8Rows) * kFloat8Rows);
    const int64_t rows = least(divide_up(kTaskBytes, weight.row_bytes + 1), fair);
    tiles.tile_rows = divide_up(rows, tiles.block_rows) * tiles.block_rows;
    if (call.count > kFewInputs) tiles.tile_rows = tiles.block_rows;
    const int64_t row_tiles = divide_up(weight.rows, tiles.tile_rows);
    if (call.tuning.block_rows) {
        tiles.block_inputs = call.tuning.block_rows;
    } else if (call.count > kFewInputs && row_tiles < wanted) {
        const int64_t blocks = least(divide_up(wanted, row_tiles), divide_up(call.count, 24));
        tiles.block_inputs = divide_up(divide_up(call.count, blocks), kFloat8Inputs) * kFloat8Inputs;
    }
    tiles.blocks = divide_up(call.count, tiles.block_inputs);
    tiles.tasks = row_tiles * tiles.blocks;
    return tiles;
}

#else

constexpr bool kFloat8Products = false;
inline LinearTiles float8_tiles(const LinearCall&, const void*, int) { return {}; }

#endif

inline bool rounds_for_float8(const LinearCall& call) {
    return kFloat8Products && call.round_to_bfloat16 &&
           call.weight.format == BlockFormat::f8_e4m3;
}

// The x of several products, rounded: once for those that follow one another with the same x.
struct Float8Inputs {
    RoundedRows rows[kMostProducts];
    int count;
    int used[kMostProducts];  // by each product

    static int64_t tasks(const RoundedRows& rows) { return divide_up(rows.count, rows.rows_of_task); }

    static void task(void* context, int64_t index) {
        RoundedRows* rows = static_cast<Float8Inputs*>(context)->rows;
        for (; index >= tasks(*rows); ++rows) index -= tasks(*rows);
        round_rows_task(rows, index);
    }

    void round(ThreadPool& pool, const LinearCall* calls, int products) {
        count = 0;
        int64_t values = 0, work = 0, all = 0;
        for (int i = 0; i < products; ++i) {
            const LinearCall& call = calls[i];
            if (!rounds_for_float8(call)) continue;
            const int64_t columns = call.weight.columns;
            const RoundedRows* last = count ? &rows[count - 1] : nullptr;
            used[i] = count - 1;
            if (last && last->x == call.x && last->count == call.count && last->columns == columns) {
                continue;
            }
            used[i] = count;
            rows[count++] = {call.x, call.count, columns, rounded_stride(columns),
                             divide_up(1 << 14, columns + 1), nullptr};
            values += call.count * rounded_stride(columns);
        }
        if (!count) return;
        auto* memory = static_cast<uint16_t*>(
            thread_scratch(static_cast<size_t>(values) * 2, Scratch::float8_rows));
        for (int i = 0; i < count; ++i) {
            rows[i].rounded = memory;
            memory += rows[i].count * rows[i].stride;
            work += rows[i].count * rows[i].columns;
            all += tasks(rows[i]);
        }
        share(pool, work, all, task, this);
    }

    const uint16_t* of(int product) const { return rows[used[product]].rounded; }
};
