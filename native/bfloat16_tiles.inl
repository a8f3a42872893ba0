// out = x weight^T + bias for bfloat16 weights and activations, with matrix tiles.
//
// The left tile of a product is 16 rows of the weight times 32 columns, read where the file has
// them; the right one is 16 rows of x, packed beforehand. A tile of sums takes the steps of 32
// columns one after another, from the first column to the last, whatever the batch.

#if defined(FIRSTLIGHT_TILES)

// The rows of x in panels of 16: [panel, step, 16 pairs of columns, 16 rows, 2] bfloat16, filled up
// with zeros.
struct PackedInputs {
    const float* x;
    int64_t count, columns, steps;
    uint8_t* packed;
};

inline void pack_inputs_task(void* context, int64_t index) {
    const PackedInputs& inputs = *static_cast<const PackedInputs*>(context);
    const int64_t first = index * kTileSide, rows = least(kTileSide, inputs.count - first);
    uint8_t* to = inputs.packed + index * inputs.steps * kTileBytes;
    for (int64_t step = 0; step < inputs.steps; ++step, to += kTileBytes) {
        const int64_t start = step * 32, count = least(32, inputs.columns - start);
        __m512i lines[16];
        for (int64_t r = 0; r < kTileSide; ++r) {
            alignas(64) uint16_t line[32] = {};
            if (r < rows) {
                round_to_bfloat16(inputs.x + (first + r) * inputs.columns + start, count, line);
            }
            lines[r] = _mm512_load_si512(line);
        }
        transpose16(lines);
        for (int64_t r = 0; r < kTileSide; ++r) _mm512_store_si512(to + r * kTileLine, lines[r]);
    }
}

// Rows of the weight, possibly a copy of them.
struct TileRows {
    const uint8_t* data;
    int64_t stride, full_steps;
    const uint8_t* last_step;  // [rows, 64 bytes] filled up with zeros, or null
};

// sums[(r * Inputs + x) * 256 + ...] = 16 rows times 16 rows of x, for Rows and Inputs tiles of
// them.
template <int Rows, int Inputs>
inline void tile_products([[maybe_unused]] TileUse& use, const TileRows& left, const uint8_t* right,
                          int64_t panel_bytes, int64_t ahead, float* sums) {
    FIRSTLIGHT_TILE_ZERO(use, 0);
    if constexpr (Inputs == 2) FIRSTLIGHT_TILE_ZERO(use, 1);
    if constexpr (Rows == 2) FIRSTLIGHT_TILE_ZERO(use, 2);
    if constexpr (Rows == 2 && Inputs == 2) FIRSTLIGHT_TILE_ZERO(use, 3);
    const auto add_step = [&](const uint8_t* from, int64_t stride, int64_t step)
                              FIRSTLIGHT_INLINED {
        const uint8_t* input = right + step * kTileBytes;
        FIRSTLIGHT_TILE_LOAD(use, 6, input, kTileLine);
        FIRSTLIGHT_TILE_LOAD(use, 4, from, stride);
        FIRSTLIGHT_TILE_ADD_BF16(use, 0, 4, 6);
        if constexpr (Inputs == 2) {
            FIRSTLIGHT_TILE_LOAD(use, 7, input + panel_bytes, kTileLine);
            FIRSTLIGHT_TILE_ADD_BF16(use, 1, 4, 7);
        }
        if constexpr (Rows == 2) {
            FIRSTLIGHT_TILE_LOAD(use, 5, from + kTileSide * stride, stride);
            FIRSTLIGHT_TILE_ADD_BF16(use, 2, 5, 6);
            if constexpr (Inputs == 2) FIRSTLIGHT_TILE_ADD_BF16(use, 3, 5, 7);
        }
    };
    for (int64_t step = 0; step < left.full_steps; ++step) {
        const uint8_t* from = left.data + step * kTileLine;
        for (int64_t r = 0; ahead && r < Rows * kTileSide; ++r) {
            FIRSTLIGHT_FETCH_FAR(from + r * left.stride + ahead);
        }
        add_step(from, left.stride, step);
    }
    if (left.last_step) add_step(left.last_step, kTileLine, left.full_steps);
    FIRSTLIGHT_TILE_STORE(use, 0, sums, kTileLine);
    if constexpr (Inputs == 2) FIRSTLIGHT_TILE_STORE(use, 1, sums + 256, kTileLine);
    if constexpr (Rows == 2) FIRSTLIGHT_TILE_STORE(use, 2, sums + Inputs * 256, kTileLine);
    if constexpr (Rows == 2 && Inputs == 2) FIRSTLIGHT_TILE_STORE(use, 3, sums + 768, kTileLine);
}

// 16 rows of the weight times 16 rows of x into the result, as far as it has them.
inline void write_tile(const LinearCall& call, const float* sums, int64_t first, int64_t input) {
    const int64_t rows = least(kTileSide, call.weight.rows - first);
    const int64_t inputs = least(kTileSide, call.count - input);
    __m512i lines[16];
    for (int64_t r = 0; r < kTileSide; ++r) lines[r] = _mm512_load_si512(sums + r * kTileSide);
    transpose16(lines);
    const __mmask16 mask = static_cast<__mmask16>((1u << rows) - 1);
    const Vector bias =
        call.bias ? (Vector)_mm512_maskz_loadu_ps(mask, call.bias + first) : broadcast(0.0f);
    for (int64_t x = 0; x < inputs; ++x) {
        Vector values = as_float((Integers)lines[x]);
        if (call.bias) values = values + bias;
        _mm512_mask_storeu_ps(call.out + (input + x) * call.weight.rows + first, mask,
                              (__m512)values);
    }
}

// The rows [first, first + count) of the weight as tiles take them.
inline TileRows tile_rows(const StoredMatrix& weight, int64_t first, int64_t count,
                          uint8_t* scratch) {
    const int64_t steps = divide_up(weight.columns, 32), rest = weight.columns % 32;
    const int64_t last = (weight.row_bytes - rest * 2);
    const uint8_t* data = weight.data + first * weight.row_bytes;
    if (count % kTileSide) {
        // Too few rows: a tile would read past the end of the weight.
        const int64_t stride = steps * kTileLine;
        memset(scratch, 0, static_cast<size_t>(kTileSide * stride));
        for (int64_t r = 0; r < count; ++r) {
            memcpy(scratch + r * stride, data + r * weight.row_bytes,
                   static_cast<size_t>(weight.row_bytes));
        }
        return {scratch, stride, steps, nullptr};
    }
    if (rest == 0) return {data, weight.row_bytes, steps, nullptr};
    memset(scratch, 0, static_cast<size_t>(count * kTileLine));
    for (int64_t r = 0; r < count; ++r) {
        memcpy(scratch + r * kTileLine, data + r * weight.row_bytes + last,
               static_cast<size_t>(rest) * 2);
    }
    return {data, weight.row_bytes, steps - 1, scratch};
}

// Rows [first, end), at most two tiles of them and either one tile or whole ones, with the inputs
// [input, input_end).
inline void tile_group(TileUse& use, const LinearTiles& tiles, int64_t first, int64_t end,
                       int64_t input, int64_t input_end, uint8_t* scratch) {
    const LinearCall& call = *tiles.call;
    const int64_t panel_bytes = divide_up(call.weight.columns, 32) * kTileBytes;
    const TileRows left = tile_rows(call.weight, first, end - first, scratch);
    const bool two_rows = end - first > kTileSide;
    for (int64_t x = input; x < input_end;) {
        const uint8_t* right =
            static_cast<const uint8_t*>(tiles.x) + x / kTileSide * panel_bytes;
        const bool two_inputs = input_end - x > kTileSide;
        const int64_t ahead = x == input ? call.tuning.fetch_ahead : 0;
        alignas(64) float sums[4 * 256];
        if (two_rows && two_inputs) {
            tile_products<2, 2>(use, left, right, panel_bytes, ahead, sums);
        } else if (two_rows) {
            tile_products<2, 1>(use, left, right, panel_bytes, ahead, sums);
        } else if (two_inputs) {
            tile_products<1, 2>(use, left, right, panel_bytes, ahead, sums);
        } else {
            tile_products<1, 1>(use, left, right, panel_bytes, ahead, sums);
        }
        const int across = two_inputs ? 2 : 1;
        for (int r = 0; r < (two_rows ? 2 : 1); ++r) {
            for (int i = 0; i < across; ++i) {
                write_tile(call, sums + (r * across + i) * 256, first + r * kTileSide,
                           x + i * kTileSide);
            }
        }
        x += across * kTileSide;
    }
}

void tiles_task(const LinearTiles& tiles, int64_t index) {
    const LinearCall& call = *tiles.call;
    const int64_t begin = index / tiles.blocks * tiles.tile_rows;
    const int64_t end = least(begin + tiles.tile_rows, call.weight.rows);
    const int64_t input = index % tiles.blocks * tiles.block_inputs;
    const int64_t input_end = least(input + tiles.block_inputs, call.count);
    const int64_t steps = divide_up(call.weight.columns, 32);
    auto* scratch = static_cast<uint8_t*>(
        thread_scratch(static_cast<size_t>((steps > 2 ? steps : 2) * kTileBytes)));
    TileUse use;
    // A few panels of x at a time stay in the second-level cache while the tile's rows pass by.
    constexpr int64_t kPanelInputs = 64;
    for (int64_t x = input; x < input_end; x += kPanelInputs) {
        const int64_t x_end = least(x + kPanelInputs, input_end);
        for (int64_t row = begin; row < end;) {
            const int64_t left = end - row;
            const int64_t rows = left >= 32 ? 32 : left >= 16 ? 16 : left;
            tile_group(use, tiles, row, row + rows, x, x_end, scratch);
            row += rows;
        }
    }
}

constexpr bool kBfloat16Products = true;

inline const void* bfloat16_inputs(ThreadPool& pool, const LinearCall& call) {
    const int64_t steps = divide_up(call.weight.columns, 32);
    const int64_t panels = divide_up(call.count, kTileSide);
    auto* packed = static_cast<uint8_t*>(thread_scratch(
        static_cast<size_t>(panels) * static_cast<size_t>(steps * kTileBytes),
        Scratch::bfloat16_rows));
    PackedInputs inputs{call.x, call.count, call.weight.columns, steps, packed};
    share(pool, call.count * call.weight.columns, panels, pack_inputs_task, &inputs);
    return packed;
}

inline LinearTiles bfloat16_tiles(const LinearCall& call, const void* x, int,
                                  int64_t wanted) {
    constexpr int64_t kTaskBytes = 1 << 17, kManyInputs = 64;
    const StoredMatrix& weight = call.weight;
    LinearTiles tiles{tiles_task, &call, x, 0, 1, call.count, 0, 0};
    if (call.count == 0 || weight.rows == 0) return tiles;
    int64_t rows = least(divide_up(kTaskBytes, weight.row_bytes + 1), divide_up(weight.rows, wanted));
    if (call.tuning.panels) rows = kTileSide * int64_t{call.tuning.panels};
    tiles.tile_rows = divide_up(rows, 32) * 32;
    const int64_t row_tiles = divide_up(weight.rows, tiles.tile_rows);
    if (call.tuning.block_rows) {
        tiles.block_inputs = divide_up(int64_t{call.tuning.block_rows}, 32) * 32;
    } else if (call.count > kManyInputs && row_tiles < wanted) {
        const int64_t blocks = least(divide_up(wanted, row_tiles), divide_up(call.count, 32));
        tiles.block_inputs = divide_up(divide_up(call.count, blocks), 32) * 32;
    }
    tiles.blocks = divide_up(call.count, tiles.block_inputs);
    tiles.tasks = row_tiles * tiles.blocks;
    return tiles;
}

#endif
