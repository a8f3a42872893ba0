// Products of sixteen rows of x and more with weights in panels, with matrix tiles.
//
// A few groups of a panel are taken apart, into bytes and float32 that stay in the first-level
// cache, and then meet all rows, sixteen at a time: their upper and their lower bytes are the left
// tiles of two products, the codes of a run the right one. Whole numbers are exact and what comes
// of them is added up as packed_linear.inl says, so the bits are those of any other number of rows.

#if defined(FIRSTLIGHT_TILES)

static_assert(kWidth == kPanelRows && kMostRows == kTileSide);

constexpr int kOpenGroups = 8;

// A group taken apart.
template <class Format>
struct OpenGroup {
    alignas(64) uint8_t codes[8 * kPlaneBytes];
    GroupScales<Format::kRuns> scales;
};

// Of the unit at `at`.
template <class Format>
inline void open_unit(const uint8_t* at, OpenGroup<Format>* open) {
    constexpr PanelShape kShape = Format::kShape;
    const typename Format::Unit scales_of(at, 0);
    at += kShape.header;
    for (int g = 0; g < kShape.groups; ++g, ++open, at += kShape.group_bytes()) {
        each_place<8>([&](auto quad) FIRSTLIGHT_INLINED {
            constexpr int kQuad = decltype(quad)::value;
            const Codes codes = quad_of<Format, kQuad>(at, 0);
            memcpy(open->codes + kQuad * kPlaneBytes, &codes, sizeof codes);
        });
        open->scales = scales_of.scales(at + kPlaneBytes * Format::kBits, 0);
    }
}

// Sums of products of a run with sixteen rows of x, upper bytes and then lower ones.
struct TileSums {
    alignas(64) int32_t plane[2][kTileSide * kTileSide];
};

// `lines` and `codes` are those of the run. Odd and even runs have tiles of their own, so that they
// need not wait for one another.
template <bool Odd>
FIRSTLIGHT_INLINE void tile_run([[maybe_unused]] TileUse& use, const uint8_t* lines,
                                const uint8_t* codes, TileSums& sums) {
    if constexpr (Odd) {
        FIRSTLIGHT_TILE_ZERO(use, 2);
        FIRSTLIGHT_TILE_ZERO(use, 3);
        FIRSTLIGHT_TILE_LOAD(use, 7, codes, kPlaneBytes);
        FIRSTLIGHT_TILE_LOAD(use, 4, lines, kLine);
        FIRSTLIGHT_TILE_ADD_INT8(use, 2, 4, 7);
        FIRSTLIGHT_TILE_LOAD(use, 5, lines + 32, kLine);
        FIRSTLIGHT_TILE_ADD_INT8(use, 3, 5, 7);
        FIRSTLIGHT_TILE_STORE(use, 2, sums.plane[0], kTileLine);
        FIRSTLIGHT_TILE_STORE(use, 3, sums.plane[1], kTileLine);
    } else {
        FIRSTLIGHT_TILE_ZERO(use, 0);
        FIRSTLIGHT_TILE_ZERO(use, 1);
        FIRSTLIGHT_TILE_LOAD(use, 6, codes, kPlaneBytes);
        FIRSTLIGHT_TILE_LOAD(use, 4, lines, kLine);
        FIRSTLIGHT_TILE_ADD_INT8(use, 0, 4, 6);
        FIRSTLIGHT_TILE_LOAD(use, 5, lines + 32, kLine);
        FIRSTLIGHT_TILE_ADD_INT8(use, 1, 5, 6);
        FIRSTLIGHT_TILE_STORE(use, 0, sums.plane[0], kTileLine);
        FIRSTLIGHT_TILE_STORE(use, 1, sums.plane[1], kTileLine);
    }
}

// The sum of what row m has in a run of the group whose lines begin at `lines`.
template <class Format>
FIRSTLIGHT_INLINE Integers sum_of_tile_run(const uint8_t* lines, int run, int64_t m) {
    const size_t place = Format::kRuns == 2 ? sizeof(int32_t) * static_cast<size_t>(run)
                                            : offsetof(GroupSums, all);
    const uint8_t* sums = lines + kTileSide * kLine + m * static_cast<int64_t>(sizeof(GroupSums));
    return broadcast_int(static_cast<int32_t>(load_word(sums + place)));
}

// totals [kTileSide] with a run's products and, after a group's last run, its minima.
template <class Format>
FIRSTLIGHT_INLINE void add_tile_run(const TileSums& sums, const OpenGroup<Format>& open, int run,
                                    const uint8_t* lines, Vector* totals) {
    const Vector scale = open.scales.scale[run];
    for (int64_t m = 0; m < kTileSide; ++m) {
        const Integers upper = as_int(load(sums.plane[0] + m * kTileSide));
        const Integers lower = as_int(load(sums.plane[1] + m * kTileSide));
        Integers product = (upper << 8) + lower;
        if constexpr (Format::kZeroBits > 0) {
            product = product - (sum_of_tile_run<Format>(lines, run, m) << Format::kZeroBits);
        }
        Vector total = totals[m] + to_float(product) * scale;
        if constexpr (Format::kMinimum) {
            for (int r = 0; run == Format::kRuns - 1 && r < Format::kRuns; ++r) {
                const Vector sum = to_float(sum_of_tile_run<Format>(lines, r, m));
                total = total + open.scales.minimum[r] * sum;
            }
        }
        totals[m] = total;
    }
}

// Some groups of a panel times sixteen rows of x.
template <class Format>
inline void tile_groups(TileUse& use, const OpenGroup<Format>* open, int groups,
                        const uint8_t* lines, Vector* totals) {
    constexpr int kRuns = Format::kRuns, kRunBytes = 32 / kRuns;
    constexpr int64_t kGroupBytes = kTileSide * kRowGroupBytes;
    TileSums sums[2];
    const auto multiply = [&](auto odd, int run) FIRSTLIGHT_INLINED {
        const int group = run / kRuns, part = run % kRuns;
        tile_run<decltype(odd)::value == 1>(
            use, lines + group * kGroupBytes + part * kRunBytes,
            open[group].codes + part * kPlaneBytes * (8 / kRuns), sums[decltype(odd)::value]);
    };
    const auto add = [&](int odd, int run) FIRSTLIGHT_INLINED {
        add_tile_run<Format>(sums[odd], open[run / kRuns], run % kRuns,
                             lines + run / kRuns * kGroupBytes, totals);
    };
    int run = 0;
    for (; run + 2 <= groups * kRuns; run += 2) {
        multiply(Place<0>{}, run);
        multiply(Place<1>{}, run + 1);
        add(0, run);
        add(1, run + 1);
    }
    if (run < groups * kRuns) {
        multiply(Place<0>{}, run);
        add(0, run);
    }
}

// Panels `first` to `end` times the rows from `row` on, in whole blocks of sixteen; returns the row
// after the last of these.
template <class Format>
inline int64_t tile_panels(const PackedTiles& tiles, int64_t first, int64_t end, int64_t row,
                           int64_t end_row) {
    constexpr PanelShape kShape = Format::kShape;
    const int64_t blocks = (end_row - row) / kTileSide;
    if (blocks == 0) return row;
    const StoredMatrix& weight = tiles.call->weight;
    const int64_t groups = tiles.fixed.groups();
    auto* totals = static_cast<Vector*>(
        thread_scratch(static_cast<size_t>(blocks * kTileSide) * sizeof(Vector)));
    OpenGroup<Format> open[kOpenGroups];
    TileUse use({8 / Format::kRuns});
    for (int64_t panel = first; panel < end; ++panel) {
        const uint8_t* at = weight.data + panel * kShape.panel_bytes(weight.columns);
        for (int64_t i = 0; i < blocks * kTileSide; ++i) totals[i] = broadcast(0.0f);
        for (int64_t group = 0; group < groups; group += kOpenGroups) {
            const int some = static_cast<int>(least(kOpenGroups, groups - group));
            for (int g = 0; g < some; g += kShape.groups, at += kShape.unit_bytes()) {
                open_unit<Format>(at, open + g);
            }
            for (int64_t block = 0; block < blocks; ++block) {
                const uint8_t* lines = tiles.fixed.block(row + block * kTileSide) +
                                       group * kTileSide * kRowGroupBytes;
                tile_groups<Format>(use, open, some, lines, totals + block * kTileSide);
            }
        }
        for (int64_t i = 0; i < blocks * kTileSide; ++i) {
            put_results(tiles, row + i, panel * kPanelRows, totals[i]);
        }
    }
    return row + blocks * kTileSide;
}

#endif
