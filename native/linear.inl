// out = x weight^T + bias, with weights as their format stores them.
//
// One row of x: weights are decoded in registers and used at once. Several: a tile of weights is
// decoded to float32 in the second-level cache and used for all of them. Both add in the order of
// products.inl, and decode to the same bits.

// Rows of a tile, and the distance between them, which is no power of two.
constexpr int64_t kTileRows = 32;
constexpr int64_t kTileStride = kChunk + 16;

// One block of each row, a group of each in turn: their sums do not wait for one another.
template <class Format, int Rows>
FIRSTLIGHT_INLINE void fused_blocks(const uint8_t* const* rows, int64_t offset, const float* x,
                                    Vector (&sum_of)[Rows]) {
    const auto each_group = [&](const auto&... blocks) FIRSTLIGHT_INLINED {
        const auto add_group = [&](int group) FIRSTLIGHT_INLINED {
            int r = 0;
            const auto add = [&](const Format& block, Vector& total) FIRSTLIGHT_INLINED {
                block.emit(group, [&](int i, Vector values) FIRSTLIGHT_INLINED {
                    total = multiply_add(values, load(x + i), total);
                });
            };
            (add(blocks, sum_of[r++]), ...);
        };
        // Two groups are often the two halves of the same bytes.
        constexpr int kGroups = Format::kValues / Format::kGroup;
        static_assert(kGroups == 1 || kGroups % 2 == 0);
        for (int group = 0; group < kGroups; group += 2) {
            add_group(group);
            if constexpr (kGroups > 1) add_group(group + 1);
        }
    };
    if constexpr (Rows == 4) {
        each_group(Format(rows[0] + offset), Format(rows[1] + offset), Format(rows[2] + offset),
                   Format(rows[3] + offset));
    } else {
        static_assert(Rows == 1);
        each_group(Format(rows[0] + offset));
    }
}

// Asks for the cache lines that a block at `offset` of each row begins or fills. An address past the
// end of the weight is harmless.
template <class Format, int Rows>
FIRSTLIGHT_INLINE void fetch(const uint8_t* const* rows, int64_t offset) {
    constexpr int64_t kLine = 64;
    for (int r = 0; r < Rows; ++r) {
        const uintptr_t from = reinterpret_cast<uintptr_t>(rows[r]) + static_cast<uintptr_t>(offset);
        if (Format::kBytes < kLine && from % kLine >= Format::kBytes) continue;
        for (int64_t i = 0; i < Format::kBytes; i += kLine) {
            FIRSTLIGHT_FETCH(reinterpret_cast<const uint8_t*>(from) + i);
        }
    }
}

// sums[r] = row r of the weight . x over one chunk, decoding on the way. What lies `ahead` bytes
// further, to be read next, is fetched meanwhile: decoding keeps a processor too busy to find
// enough of it by itself.
template <class Format, int Rows>
inline void fused_products(const uint8_t* const* rows, const float* x, int64_t count,
                           int64_t ahead, float* sums) {
    Vector sum_of[Rows];
    for (Vector& one : sum_of) one = broadcast(0.0f);
    if constexpr (Format::kSingleValues) {
        int64_t i = 0;
        for (; i + kWidth <= count; i += kWidth) {
            const Vector input = load(x + i);
            for (int r = 0; r < Rows; ++r) {
                const uint8_t* from = rows[r] + bytes_of<Format>(i);
                if constexpr (Rows > 1) FIRSTLIGHT_FETCH_FAR(from + ahead);
                sum_of[r] = multiply_add(Format::vector(from), input, sum_of[r]);
            }
        }
        if (i < count) {
            const Vector input = load_first(x + i, count - i);
            for (int r = 0; r < Rows; ++r) {
                const Vector values = last_vector<Format>(rows[r] + bytes_of<Format>(i), count - i);
                sum_of[r] = multiply_add(values, input, sum_of[r]);
            }
        }
    } else {
        for (int64_t start = 0; start < count; start += Format::kValues) {
            const int64_t offset = bytes_of<Format>(start);
            fetch<Format, Rows>(rows, offset + ahead);
            fused_blocks<Format, Rows>(rows, offset, x + start, sum_of);
        }
    }
    if constexpr (Rows == 4) {
        sum4(sum_of[0], sum_of[1], sum_of[2], sum_of[3], sums);
    } else {
        for (int r = 0; r < Rows; ++r) sums[r] = sum(sum_of[r]);
    }
}

template <class Format, int Rows>
inline void fused_rows(const LinearCall& call, int64_t first) {
    const StoredMatrix& weight = call.weight;
    const int64_t ahead =
        call.tuning.fetch_ahead ? call.tuning.fetch_ahead : Rows * weight.row_bytes;
    float total[Rows] = {};
    for (int64_t start = 0; start < weight.columns; start += kChunk) {
        const uint8_t* rows[Rows];
        for (int r = 0; r < Rows; ++r) {
            rows[r] = weight.data + (first + r) * weight.row_bytes + bytes_of<Format>(start);
        }
        float sums[Rows];
        const int64_t count = least(kChunk, weight.columns - start);
        if constexpr (kHasScales<Format>) {
            scaled_dot_products<Rows>(weight, first, start, count, call.x + start, ahead, sums,
                                      Type<Format>{});
        } else {
            fused_products<Format, Rows>(rows, call.x + start, count, ahead, sums);
        }
        for (int r = 0; r < Rows; ++r) total[r] = start ? total[r] + sums[r] : sums[r];
    }
    for (int r = 0; r < Rows; ++r) {
        call.out[first + r] = call.bias ? total[r] + call.bias[first + r] : total[r];
    }
}

template <class Format>
inline void one_input_tile(const LinearCall& call, int64_t first, int64_t end) {
    if constexpr (Format::kSingleValues) {
        // One row after another is what memory gives fastest, as long as x and a row stay in the
        // first-level cache together.
        if (call.weight.row_bytes + 4 * call.weight.columns <= 24576) {
            for (; first < end; ++first) fused_rows<Format, 1>(call, first);
        }
    }
    for (; first + 4 <= end; first += 4) fused_rows<Format, 4>(call, first);
    for (; first < end; ++first) fused_rows<Format, 1>(call, first);
}

template <class Format>
inline void many_inputs_tile(const LinearCall& call, int64_t first, int64_t end,
                             int64_t input_begin, int64_t input_end) {
    const StoredMatrix& weight = call.weight;
    const int64_t rows = end - first, inputs = input_end - input_begin;
    float* out = call.out + input_begin * weight.rows + first;
    // float32 itself is copied too where it is used often enough: rows of a tile lie side by side in
    // the cache, those of a matrix a large power of two apart, where few can stay at once.
    constexpr bool is_float = Format::kBytes == 4 * Format::kValues;
    const bool in_place = is_float && inputs <= 2 * kMostInputs;
    float* tile = nullptr;
    if (!in_place) {
        tile = static_cast<float*>(thread_scratch(kTileRows * kTileStride * sizeof(float)));
    }
    for (int64_t start = 0; start < weight.columns; start += kChunk) {
        const int64_t count = least(kChunk, weight.columns - start);
        const uint8_t* left[kTileRows];
        for (int64_t r = 0; r < rows; ++r) {
            left[r] = weight.data + (first + r) * weight.row_bytes + bytes_of<Format>(start);
            if (in_place) continue;
            float* to = tile + r * kTileStride;
            if constexpr (kHasScales<Format>) {
                decode_scaled(weight, first + r, start, count, to, Type<Format>{});
            } else {
                decode_to<Format>(left[r], count, to);
            }
            left[r] = reinterpret_cast<const uint8_t*>(tile + r * kTileStride);
        }
        const float* right = call.x + input_begin * weight.columns + start;
        all_dot_products(left, rows, right, inputs, weight.columns, count, start > 0, out,
                         weight.rows);
    }
    for (int64_t x = 0; x < inputs; ++x) {
        float* target = out + x * weight.rows;
        for (int64_t r = 0; r < rows; ++r) {
            if (weight.columns == 0) target[r] = 0.0f;
            if (call.bias) target[r] += call.bias[first + r];
        }
    }
}

inline void stored_task(const LinearTiles& tiles, int64_t index) {
    const LinearCall& call = *tiles.call;
    const int64_t first = index / tiles.blocks * tiles.tile_rows;
    const int64_t end = least(first + tiles.tile_rows, call.weight.rows);
    const int64_t input = index % tiles.blocks * tiles.block_inputs;
    with_format(call.weight.format, [&](auto format) {
        using Format = typename decltype(format)::type;
        if (call.count == 1) return one_input_tile<Format>(call, first, end);
        const int64_t input_end = least(input + tiles.block_inputs, call.count);
        return many_inputs_tile<Format>(call, first, end, input, input_end);
    });
}

inline LinearTiles stored_tiles(const LinearCall& call, int threads) {
    const StoredMatrix& weight = call.weight;
    LinearTiles tiles{stored_task, &call, nullptr, kTileRows, 1, call.count, 0, 0};
    if (call.count == 0 || weight.rows == 0) return tiles;
    const int64_t wanted = 8 * threads;
    if (call.count == 1) {
        // At least 16 KiB of weights at a time; many more tiles than threads, for their balance.
        const int64_t rows = divide_up(16384, weight.row_bytes + 1);
        const int64_t fair = divide_up(weight.rows, 2 * wanted);
        tiles.tile_rows = divide_up(fair > rows ? fair : rows, 4) * 4;
        if (call.tuning.panels) tiles.tile_rows = kPanelRows * int64_t{call.tuning.panels};
    } else if (call.tuning.panels) {
        tiles.tile_rows = least(kPanelRows * int64_t{call.tuning.panels}, kTileRows);
    }
    const int64_t row_tiles = divide_up(weight.rows, tiles.tile_rows);
    if (call.count > 1 && row_tiles < wanted) {
        const int64_t blocks = least(divide_up(wanted, row_tiles), divide_up(call.count, 24));
        tiles.block_inputs = divide_up(divide_up(call.count, blocks), kMostInputs) * kMostInputs;
        tiles.blocks = divide_up(call.count, tiles.block_inputs);
    }
    if (call.count > 1 && call.tuning.block_rows) {
        tiles.block_inputs = least(call.tuning.block_rows, call.count);
        tiles.blocks = divide_up(call.count, tiles.block_inputs);
    }
    tiles.tasks = row_tiles * tiles.blocks;
    return tiles;
}
