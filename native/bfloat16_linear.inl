// out = x weight^T + bias for bfloat16 weights and activations.

#if defined(__AVX512BF16__) && !defined(FIRSTLIGHT_TILES)

// Four rows (or one) with a panel of inputs over one chunk, into the result.
FIRSTLIGHT_INLINE void bfloat16_group(const LinearCall& call, Bfloat16Products products, int rows,
                                      int64_t row, const uint16_t* right, int64_t stride,
                                      int64_t x_begin, int inputs, int64_t start, int64_t count,
                                      const FetchAhead& ahead) {
    const uint8_t* left[kBfloat16Rows];
    for (int r = 0; r < rows; ++r) {
        left[r] = call.weight.data + (row + r) * call.weight.row_bytes + start * 2;
    }
    alignas(64) float sums[32];
    products(left, right, stride, count, ahead, sums);
    for (int x = 0; x < inputs; ++x) {
        float* target = call.out + (x_begin + x) * call.weight.rows + row;
        if (rows == kBfloat16Rows) {
            __m128 values = _mm_load_ps(sums + 4 * x);
            if (start) values = _mm_add_ps(_mm_loadu_ps(target), values);
            _mm_storeu_ps(target, values);
        } else {
            *target = start ? *target + sums[4 * x] : sums[4 * x];
        }
    }
}

// Rows [first, end) with inputs [input, input_end). A few inputs at a time stay in the first-level
// cache while the block's rows, which stay in the second, pass by.
inline void bfloat16_block(const LinearTiles& tiles, int64_t first, int64_t end, int64_t input,
                           int64_t input_end) {
    const LinearCall& call = *tiles.call;
    const StoredMatrix& weight = call.weight;
    const int64_t inputs = input_end - input, stride = rounded_stride(weight.columns);
    const int64_t chunk = bfloat16_chunk(weight.columns);
    const int64_t panels = divide_up(inputs, kBfloat16Inputs);
    const bool one_group = end - first <= kBfloat16Rows;
    for (int64_t start = 0; start < weight.columns; start += chunk) {
        const int64_t count = least(chunk, weight.columns - start);
        // From a row of the weight to what is read after this block's chunk of it.
        const int64_t next = start + count < weight.columns
                                 ? (start + count) * 2
                                 : (end - first) * weight.row_bytes;
        for (int64_t panel = 0; panel < panels; ++panel) {
            const int64_t x_begin = input + inputs * panel / panels;
            const int64_t x_end = input + inputs * (panel + 1) / panels;
            const int some = static_cast<int>(x_end - x_begin);
            const uint16_t* right = static_cast<const uint16_t*>(tiles.x) + x_begin * stride + start;
            FetchAhead ahead = {};
            int fetches = 0;
            if (one_group) {
                // Each panel has a part of the next rows, or of their next chunk, fetched.
                const int64_t from = 4 * panel / panels;
                fetches = static_cast<int>(4 * (panel + 1) / panels - from);
                for (int f = 0; f < fetches; ++f) {
                    ahead.from[f] = weight.data + (first + from + f) * weight.row_bytes + next;
                }
            } else if (panel == 0) {
                fetches = kBfloat16Rows;
            } else if (panel + 1 < panels) {
                fetches = 1;
            }
            int64_t row = first;
            if (!one_group && some >= 5) {
                const int64_t groups = (end - first) / kBfloat16Rows;
                const Bfloat16Groups pass{weight.data + first * weight.row_bytes + start * 2,
                                          weight.row_bytes, groups, right, stride, count, panel > 0,
                                          call.out + x_begin * weight.rows + first, weight.rows,
                                          start > 0};
                if (some == 6) {
                    bfloat16_groups_of<6>(fetches, pass);
                } else {
                    bfloat16_groups_of<5>(fetches, pass);
                }
                row += groups * kBfloat16Rows;
            }
            const Bfloat16Products whole = products_for(kBfloat16Rows, some, fetches);
            for (; row + kBfloat16Rows <= end; row += kBfloat16Rows) {
                if (!one_group && panel == 0) {
                    for (int f = 0; f < kBfloat16Rows; ++f) {
                        ahead.from[f] = weight.data + start * 2 +
                                        (row + kBfloat16Rows + f) * weight.row_bytes;
                    }
                } else if (!one_group) {
                    // The inputs of the next panel, one for each group of rows.
                    const int64_t group = (row - first) / kBfloat16Rows;
                    ahead.from[0] =
                        reinterpret_cast<const uint8_t*>(right + (some + least(group, 5)) * stride);
                }
                bfloat16_group(call, whole, kBfloat16Rows, row, right, stride, x_begin, some,
                               start, count, ahead);
            }
            const Bfloat16Products one = products_for(1, some, 0);
            for (; row < end; ++row) {
                bfloat16_group(call, one, 1, row, right, stride, x_begin, some, start, count,
                               ahead);
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

void bfloat16_task(const LinearTiles& tiles, int64_t index) {
    const LinearCall& call = *tiles.call;
    // The whole weight for one block of rows of x after another.
    const int64_t row_tiles = tiles.tasks / tiles.blocks;
    const int64_t begin = index % row_tiles * tiles.tile_rows;
    const int64_t end = least(begin + tiles.tile_rows, call.weight.rows);
    const int64_t input = index / row_tiles * tiles.block_inputs;
    const int64_t input_end = least(input + tiles.block_inputs, call.count);
    for (int64_t row = begin; row < end; row += tiles.block_rows) {
        bfloat16_block(tiles, row, least(row + tiles.block_rows, end), input, input_end);
    }
}

// The same with one input, as long as it stays in the first-level cache beside a row.
void bfloat16_row_task(const LinearTiles& tiles, int64_t index) {
    const LinearCall& call = *tiles.call;
    const int64_t begin = index * tiles.tile_rows;
    bfloat16_rows(call.weight, static_cast<const uint16_t*>(tiles.x), call.bias, begin,
                  least(begin + tiles.tile_rows, call.weight.rows), call.out);
}

constexpr bool kBfloat16Products = true;

inline const void* bfloat16_inputs(ThreadPool& pool, const LinearCall& call) {
    return round_rows(pool, call.x, call.count, call.weight.columns);
}

// Up to so many rows of x the weight streams through once; with more, blocks of it stay in the
// second-level cache.
constexpr int64_t kFewBfloat16Inputs = 20;

// Many rows of x are cut into a block for each thread, if that leaves so many: what a thread rounds,
// norms, multiplies and adds then stays with its core.
constexpr int64_t kManyBfloat16Inputs = 96;

inline int64_t bfloat16_blocks(int64_t count, int threads) {
    const int64_t blocks = least(count / kManyBfloat16Inputs, threads);
    return blocks > 1 ? blocks : 1;
}

// In about as many tasks as are wanted.
inline LinearTiles bfloat16_tiles(const LinearCall& call, const void* x, int threads,
                                  int64_t wanted) {
    constexpr int64_t kManyRows = 64, kTaskBytes = 1 << 17;
    const StoredMatrix& weight = call.weight;
    LinearTiles tiles{bfloat16_task, &call, x, 0, 1, call.count, 0, kBfloat16Rows};
    if (call.count == 0 || weight.rows == 0) return tiles;
    int64_t kept_together = kBfloat16Rows;
    const int64_t blocks = bfloat16_blocks(call.count, threads);
    const int64_t fair = divide_up(weight.rows * blocks, wanted);
    if (call.count == 1 && weight.columns > 0 && weight.columns <= 6144) {
        tiles.run = bfloat16_row_task;
        tiles.block_rows = kept_together = 1;
    }
    if (call.count > kFewBfloat16Inputs) tiles.block_rows = least(kManyRows, fair);
    if (call.tuning.panels) tiles.block_rows = 16 * int64_t{call.tuning.panels};
    tiles.block_rows = divide_up(tiles.block_rows, kept_together) * kept_together;
    const int64_t rows = least(divide_up(kTaskBytes, weight.row_bytes + 1), fair);
    tiles.tile_rows = divide_up(rows, tiles.block_rows) * tiles.block_rows;
    if (call.count > kFewBfloat16Inputs) tiles.tile_rows = tiles.block_rows;
    const int64_t row_tiles = divide_up(weight.rows, tiles.tile_rows);
    if (call.tuning.block_rows) {
        tiles.block_inputs = call.tuning.block_rows;
    } else if (call.count > kFewBfloat16Inputs && row_tiles * blocks < wanted) {
        const int64_t more = least(divide_up(wanted, row_tiles), divide_up(call.count, 24));
        tiles.block_inputs = divide_up(divide_up(call.count, more), 6) * 6;
    } else {
        tiles.block_inputs = divide_up(call.count, blocks);
    }
    tiles.blocks = divide_up(call.count, tiles.block_inputs);
    tiles.tasks = row_tiles * tiles.blocks;
    return tiles;
}

#elif !defined(FIRSTLIGHT_TILES)

constexpr bool kBfloat16Products = false;
inline const void* bfloat16_inputs(ThreadPool&, const LinearCall&) { return nullptr; }
inline LinearTiles bfloat16_tiles(const LinearCall&, const void*, int, int64_t) { return {}; }

#endif
