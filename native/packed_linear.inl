// Products with weights in panels: exact whole-number products of codes with fixed-point rows of x, a
// group at a time, and one order of float32 operations for what comes of them:
//     total = total + product * scale    for each run of the group, and where there are minima then
//     total = total + minimum * sum      for each run; at the end
//     total * step + bias
// A multiplication and the addition after it are never fused, so that every level gets the same bits.

// One product with panels, cut into tasks: runs of panels times blocks of rows of x.
struct PackedTiles {
    const LinearCall* call;
    FixedRows fixed;
    int64_t panels, block, blocks, ahead, tasks;
    bool steps;
};

// The sum of what row m of x has in a run of the group whose lines begin at `lines`.
template <class Format, int Run>
FIRSTLIGHT_INLINE Integers sum_of_run(const uint8_t* lines, int rows, int m) {
    constexpr size_t kPlace =
        Format::kRuns == 2 ? Run * sizeof(int32_t) : offsetof(GroupSums, all);
    const uint8_t* from = lines + rows * kLine + m * static_cast<int>(sizeof(GroupSums));
    return broadcast_int(static_cast<int32_t>(load_word(from + kPlace)));
}

template <class Format, int Run, int Rows>
FIRSTLIGHT_INLINE void add_minimum(const uint8_t* lines, Vector minimum, Vector (&total)[Rows]) {
    FIRSTLIGHT_UNROLL
    for (int m = 0; m < Rows; ++m) {
        total[m] = total[m] + minimum * to_float(sum_of_run<Format, Run>(lines, Rows, m));
    }
}

template <class Format, int Run, int Rows>
FIRSTLIGHT_INLINE void add_run(const uint8_t* group, int64_t offset, const uint8_t* lines,
                               Vector scale, Vector (&total)[Rows]) {
    constexpr int kQuads = 8 / Format::kRuns;
    Integers products[Rows];
    run_products<Run * kQuads, kQuads, Format::kZeroBits>(
        [&](auto quad) FIRSTLIGHT_INLINED {
            return quad_of<Format, decltype(quad)::value>(group, offset);
        },
        [&](int m) FIRSTLIGHT_INLINED { return sum_of_run<Format, Run>(lines, Rows, m); }, lines,
        products);
    FIRSTLIGHT_UNROLL
    for (int m = 0; m < Rows; ++m) total[m] = total[m] + to_float(products[m]) * scale;
}

// The product of kWidth rows of a panel, those from row `first`, with a block of rows of x.
template <class Format, int Rows>
inline void panel_product(const uint8_t* at, int first, const uint8_t* lines, int64_t units,
                          int64_t ahead, Vector (&total)[Rows]) {
    constexpr PanelShape kShape = Format::kShape;
    constexpr int kFetches = static_cast<int>((kShape.group_bytes() + kLine - 1) / kLine);
    constexpr int64_t kCodeBytes = kPlaneBytes * Format::kBits;
    FIRSTLIGHT_UNROLL
    for (int m = 0; m < Rows; ++m) total[m] = broadcast(0.0f);
    for (int64_t unit = 0; unit < units; ++unit) {
        const typename Format::Unit scales_of(at, first);
        at += kShape.header;
        for (int g = 0; g < kShape.groups; ++g) {
            for (int i = 0; i < kFetches; ++i) FIRSTLIGHT_FETCH(at + ahead + i * kLine);
            const auto scales = scales_of.scales(at + kCodeBytes, first);
            add_run<Format, 0>(at, 4 * first, lines, scales.scale[0], total);
            if constexpr (Format::kRuns == 2) {
                FIRSTLIGHT_IN_ORDER;
                add_run<Format, 1>(at, 4 * first, lines, scales.scale[1], total);
            }
            if constexpr (Format::kMinimum) {
                add_minimum<Format, 0>(lines, scales.minimum[0], total);
                if constexpr (Format::kRuns == 2) {
                    add_minimum<Format, 1>(lines, scales.minimum[1], total);
                }
            }
            at += kShape.group_bytes();
            lines += Rows * kRowGroupBytes;
        }
    }
}

// What a row's totals of a panel come to.
FIRSTLIGHT_INLINE void put_results(const PackedTiles& tiles, int64_t row, int64_t panel,
                                   Vector total) {
    const LinearCall& call = *tiles.call;
    const int64_t left = call.weight.rows - panel;
    Vector result = total * broadcast(tiles.fixed.scales[row]);
    if (call.bias) {
        result = result +
                 (left < kWidth ? load_first(call.bias + panel, left) : load(call.bias + panel));
    }
    float* out = call.out + row * call.weight.rows + panel;
    if (left < kWidth) {
        store_first(out, result, left);
    } else {
        store(out, result);
    }
}

// A panel times the block of rows of x that begins with `row`.
template <class Format, int Rows>
inline void panel_block(const PackedTiles& tiles, int64_t panel, int64_t row) {
    const StoredMatrix& weight = tiles.call->weight;
    constexpr int64_t kUnitColumns = kGroupColumns * Format::kShape.groups;
    const uint8_t* at = weight.data + panel * Format::kShape.panel_bytes(weight.columns);
    for (int first = 0; first < kPanelRows; first += kWidth) {
        Vector total[Rows];
        panel_product<Format>(at, first, tiles.fixed.block(row), weight.columns / kUnitColumns,
                              tiles.ahead, total);
        const int64_t start = panel * kPanelRows + first;
        if (weight.rows <= start) return;
        for (int m = 0; m < Rows; ++m) put_results(tiles, row + m, start, total[m]);
    }
}

#if defined(FIRSTLIGHT_STEPS)

// Where the results of a pair of rows will go is brought near: their lines lie far from each other.
template <int Panels>
FIRSTLIGHT_INLINE void fetch_results(const PackedTiles& tiles, int64_t row, int64_t panel) {
    const float* out = tiles.call->out + row * tiles.call->weight.rows + panel * kPanelRows;
    for (int m = 0; m < kStripPair; ++m, out += tiles.call->weight.rows) {
        FIRSTLIGHT_UNROLL
        for (int p = 0; p < Panels; ++p) FIRSTLIGHT_FETCH(out + p * kPanelRows);
    }
}

// Panels from `panel` times rows from `begin` to `end`.
template <class Format, int Panels>
inline void strip_panels(const PackedTiles& tiles, int64_t panel, int64_t begin, int64_t end,
                         Vector* totals) {
    using Form = FormOf<Format>;
    constexpr PanelShape kShape = Format::kShape;
    const StoredMatrix& weight = tiles.call->weight;
    const FixedRows& fixed = tiles.fixed;
    const int64_t rows = end - begin, panel_bytes = kShape.panel_bytes(weight.columns);
    auto* strip = reinterpret_cast<uint8_t*>(totals + rows * Panels);
    for (int64_t i = 0; i < rows * Panels; ++i) totals[i] = broadcast(0.0f);
    for (int64_t group = 0; group < fixed.groups(); group += kStripGroups) {
        const int groups = static_cast<int>(least(kStripGroups, fixed.groups() - group));
        const bool last = group + kStripGroups >= fixed.groups();
        StripFetch fetch{};
        fetch.bytes = groups * kShape.group_bytes();
        for (int p = 0; p < Panels; ++p) {
            const uint8_t* first = weight.data + (panel + p) * panel_bytes;
            const uint8_t* unit = first + group / kShape.groups * kShape.unit_bytes();
            const uint8_t* at =
                unit + kShape.header + group % kShape.groups * kShape.group_bytes();
            fill_strip<Format>(typename Format::Unit(unit, 0), at, groups, p, Panels, strip);
            // After the last strip of these panels comes the first of those that follow.
            fetch.at[p] = last ? first + Panels * panel_bytes : at + fetch.bytes;
        }
        const auto lines = static_cast<int>(
            divide_up(kStripPair * Panels * divide_up(fetch.bytes, kLine), rows));
        Vector* total = totals;
        int64_t row = begin;
        for (; row + kStripPair <= end; row += kStripPair, total += kStripPair * Panels) {
            fetch.some(lines, Panels);
            if (last) fetch_results<Panels>(tiles, row, panel);
            strip_rows<Form, Panels, kStripPair>(strip, fixed.strip(group, row), groups, total);
        }
        for (; row < end; ++row, total += Panels) {
            strip_rows<Form, Panels, 1>(strip, fixed.strip(group, row), groups, total);
        }
    }
    for (int64_t row = begin; row < end; ++row) {
        for (int p = 0; p < Panels; ++p, ++totals) {
            put_results(tiles, row, (panel + p) * kPanelRows, *totals);
        }
    }
}

template <class Format>
inline void strip_tile(const PackedTiles& tiles, int64_t panel, int64_t end, int64_t begin_row,
                       int64_t end_row) {
    constexpr int64_t kBytes = kStripGroups * kStripPanels * StripForm<0, true, true>::kPanelBytes;
    const auto totals = (end_row - begin_row) * kStripPanels * static_cast<int64_t>(sizeof(Vector));
    auto* memory = static_cast<Vector*>(thread_scratch(static_cast<size_t>(totals + kBytes)));
    for (; panel + kStripPanels <= end; panel += kStripPanels) {
        strip_panels<Format, kStripPanels>(tiles, panel, begin_row, end_row, memory);
    }
    for (; panel < end; ++panel) {
        strip_panels<Format, 1>(tiles, panel, begin_row, end_row, memory);
    }
}

// With more rows than this strips pay.
constexpr int kPanelMostRows = 8;

// The panel times `rows` rows from `row`, at most kPanelMostRows.
template <class Format, int Rows = 1>
inline void panel_few(const PackedTiles& tiles, int64_t panel, int64_t row, int64_t rows) {
    if constexpr (Rows <= kPanelMostRows) {
        if (rows != Rows) return panel_few<Format, Rows + 1>(tiles, panel, row, rows);
        const StoredMatrix& weight = tiles.call->weight;
        const uint8_t* at = weight.data + panel * Format::kShape.panel_bytes(weight.columns);
        Vector totals[Rows];
        panel_rows<Format, Rows>(at, tiles.fixed.strip(0, row), tiles.fixed.count,
                                 tiles.fixed.groups(), tiles.ahead, totals);
        for (int m = 0; m < Rows; ++m) put_results(tiles, row + m, panel * kPanelRows, totals[m]);
    }
}

template <class Format>
inline void step_tile(const PackedTiles& tiles, int64_t panel, int64_t end, int64_t begin_row,
                      int64_t end_row) {
    if (end_row - begin_row > kPanelMostRows) {
        return strip_tile<Format>(tiles, panel, end, begin_row, end_row);
    }
    for (; panel < end; ++panel) panel_few<Format>(tiles, panel, begin_row, end_row - begin_row);
}

#endif

#include "packed_tiles.inl"

template <class Format>
inline void packed_tile(const PackedTiles& tiles, int64_t index) {
    const LinearCall& call = *tiles.call;
    const int64_t first = index / tiles.blocks * tiles.panels;
    const int64_t end = least(first + tiles.panels, panels_of(call.weight.rows));
    int64_t begin_row = index % tiles.blocks * tiles.block;
    const int64_t end_row = least(begin_row + tiles.block, call.count);
#if defined(FIRSTLIGHT_TILES)
    begin_row = tile_panels<Format>(tiles, first, end, begin_row, end_row);
    if (begin_row == end_row) return;
#elif defined(FIRSTLIGHT_STEPS)
    if constexpr (kBySteps<Format>) {
        return step_tile<Format>(tiles, first, end, begin_row, end_row);
    }
#endif
    for (int64_t panel = first; panel < end; ++panel) {
        for (int64_t row = begin_row; row < end_row;) {
            const int rows = block_rows(end_row - row);
            switch (rows) {
                case 1: panel_block<Format, 1>(tiles, panel, row); break;
                case 2: panel_block<Format, 2>(tiles, panel, row); break;
                case 4:
                    if constexpr (kMostRows >= 4) panel_block<Format, 4>(tiles, panel, row);
                    break;
                case 8:
                    if constexpr (kMostRows >= 8) panel_block<Format, 8>(tiles, panel, row);
                    break;
                default: break;
            }
            row += rows;
        }
    }
}

inline void packed_task(const PackedTiles& tiles, int64_t index) {
    with_packed_format(tiles.call->weight.format, [&](auto format) {
        packed_tile<typename decltype(format)::type>(tiles, index);
    });
}

// Bytes of x that a thread takes through the weight again and again: they stay in its second-level
// cache together with a panel.
constexpr int64_t kBlockBytes = 384 << 10;

// Rows that a strip meets one after another: their totals are in the second-level cache.
constexpr int64_t kStripRows = 512;

// How far ahead weights are fetched for products by steps, where few rows meet them.
constexpr int64_t kStepsAhead = 12 << 10;

inline PackedTiles packed_tiles(const LinearCall& call, const FixedRows& fixed, int threads) {
    const StoredMatrix& weight = call.weight;
    const LinearTuning& tuning = call.tuning;
    PackedTiles tiles{&call, fixed, 1, call.count, 1, 4096, 0, by_steps(weight.format)};
    if (call.count == 0 || weight.rows == 0) return tiles;
    if (tiles.steps) tiles.ahead = kStepsAhead;
    if (tuning.fetch_ahead) tiles.ahead = tuning.fetch_ahead;
    const int64_t fitting = kBlockBytes / (fixed.row_bytes() + 1);
    int64_t rows = tiles.steps ? kStripRows : fitting;
    if (tuning.block_rows) rows = tuning.block_rows;
    if (rows < call.count) tiles.block = divide_up(rows > 0 ? rows : 1, kMostRows) * kMostRows;
    tiles.blocks = divide_up(call.count, tiles.block);
    const int64_t panels = panels_of(weight.rows);
    // Long runs for the memory's sake, but several for each thread, for their balance.
    tiles.panels = tuning.panels ? tuning.panels : divide_up(panels, 8 * threads);
    if (!tuning.panels) tiles.panels = divide_up(tiles.panels, kStripPanels) * kStripPanels;
    tiles.panels = least(tiles.panels, panels);
    tiles.tasks = divide_up(panels, tiles.panels) * tiles.blocks;
    return tiles;
}
