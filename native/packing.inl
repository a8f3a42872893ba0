// Matrices into panels, and single rows out of them.

// The codes of one row of a group, as eight words of four columns, into the planes.
template <int Bits>
inline void put_codes(const uint32_t words[8], uint8_t* group, int64_t row) {
    const auto put = [&](int plane, uint32_t word) {
        memcpy(group + plane * kPlaneBytes + 4 * row, &word, sizeof word);
    };
    const auto pairs = [&](int from, int shift) {
        uint32_t word = 0;
        for (int k = 0; k < 4; ++k) word |= (words[from + k] >> shift & 3 * kEachByte) << 2 * k;
        return word;
    };
    const auto singles = [&](int shift) {
        uint32_t word = 0;
        for (int k = 0; k < 8; ++k) word |= (words[k] >> shift & kEachByte) << k;
        return word;
    };
    if constexpr (Bits == 8) {
        for (int i = 0; i < 8; ++i) put(i, words[i]);
    }
    if constexpr (Bits == 2 || Bits == 3) {
        for (int i = 0; i < 2; ++i) put(i, pairs(4 * i, 0));
    }
    if constexpr (Bits == 3) put(2, singles(2));
    if constexpr (Bits == 4 || Bits == 5 || Bits == 6) {
        for (int i = 0; i < 4; ++i) {
            put(i, (words[i] & 15 * kEachByte) | (words[i + 4] & 15 * kEachByte) << 4);
        }
    }
    if constexpr (Bits == 5) put(4, singles(4));
    if constexpr (Bits == 6) {
        for (int i = 0; i < 2; ++i) put(4 + i, pairs(4 * i, 4));
    }
}

template <class Format>
inline void pack_panel(const PackCall& call, int64_t panel) {
    constexpr PanelShape kShape = Format::kShape;
    const int64_t bytes = kShape.panel_bytes(call.columns);
    uint8_t* unit = call.out + panel * bytes;
    const int64_t rows = least(kPanelRows, call.rows - panel * kPanelRows);
    if (rows < kPanelRows) memset(unit, 0, static_cast<size_t>(bytes));
    const uint8_t* block = call.data + panel * kPanelRows * call.row_bytes;
    const uint8_t* end = block + call.row_bytes;
    for (; block < end; block += Format::kBlockBytes, unit += kShape.unit_bytes()) {
        for (int64_t row = 0; row < rows; ++row) {
            const uint8_t* from = block + row * call.row_bytes;
            Format::put_header(from, unit, row);
            for (int g = 0; g < kShape.groups; ++g) {
                uint8_t* group = unit + kShape.header + g * kShape.group_bytes();
                uint32_t words[8];
                Format::codes(from, g, words);
                put_codes<Format::kBits>(words, group, row);
                Format::put_scales(from, g, group + kPlaneBytes * Format::kBits, row);
            }
        }
    }
}

void pack_task(void* context, int64_t panel) {
    const PackCall& call = *static_cast<const PackCall*>(context);
    with_packed_format(call.format, [&](auto format) {
        pack_panel<typename decltype(format)::type>(call, panel);
    });
}

void pack(ThreadPool& pool, const PackCall& call) {
    PackCall copy = call;
    share(pool, call.rows * call.columns, panels_of(call.rows), pack_task, &copy);
}

// The codes of kWidth rows, column by column: out[column][row].
template <class Format, int Quad = 0>
inline void all_codes(const uint8_t* group, int first, uint8_t (*out)[4 * kWidth]) {
    if constexpr (Quad < 8) {
        const Codes codes = quad_of<Format, Quad>(group, 4 * first);
        memcpy(out[Quad], &codes, sizeof codes);
        all_codes<Format, Quad + 1>(group, first, out);
    }
}

// One row as float32, by the same operations as its storage format's decoding.
template <class Format>
inline void unpack_row(const StoredMatrix& matrix, int64_t row, float* out) {
    constexpr PanelShape kShape = Format::kShape;
    const uint8_t* unit = matrix.data + row / kPanelRows * kShape.panel_bytes(matrix.columns);
    const int first = static_cast<int>(row % kPanelRows) / kWidth * kWidth;
    const int lane = static_cast<int>(row % kWidth);
    for (int64_t start = 0; start < matrix.columns; unit += kShape.unit_bytes()) {
        const typename Format::Unit scales_of(unit, first);
        for (int g = 0; g < kShape.groups; ++g, start += kGroupColumns) {
            const uint8_t* group = unit + kShape.header + g * kShape.group_bytes();
            const auto scales = scales_of.scales(group + kPlaneBytes * Format::kBits, first);
            uint8_t codes[8][4 * kWidth];
            all_codes<Format>(group, first, codes);
            for (int run = 0; run < Format::kRuns; ++run) {
                float scale[kWidth], minimum[kWidth];
                store(scale, scales.scale[run]);
                if constexpr (Format::kMinimum) store(minimum, scales.minimum[run]);
                constexpr int kColumns = static_cast<int>(kGroupColumns) / Format::kRuns;
                for (int i = run * kColumns; i < (run + 1) * kColumns; ++i) {
                    const float code = codes[i / 4][4 * lane + i % 4];
                    if constexpr (Format::kMinimum) {
                        out[start + i] = code * scale[lane] + minimum[lane];
                    } else {
                        out[start + i] = (code - (1 << Format::kZeroBits)) * scale[lane];
                    }
                }
            }
        }
    }
}
