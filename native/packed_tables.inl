// Formats whose codes name one of sixteen whole numbers, in panels, in the manner of
// packed_formats.inl. Their codes lie there as they are, in planes of four bits, and are looked up on
// the way to the products in kTable, which has each number plus 2^kZeroBits.

// The codes of a panel's planes, or what they name where the format has a table.
template <class Format, int Quad>
FIRSTLIGHT_INLINE Codes quad_of(const uint8_t* group, int64_t offset) {
    const Codes codes = quad_codes<Format::kBits, Quad>(group, offset);
    if constexpr (requires { Format::kTable; }) {
        return look_up_codes(Format::kTable.bytes, codes);
    } else {
        return codes;
    }
}

struct ShiftedTable {
    uint8_t bytes[16];
};

constexpr ShiftedTable shifted_table(const int8_t (&table)[16], int zero_bits) {
    ShiftedTable out = {};
    for (int i = 0; i < 16; ++i) out.bytes[i] = static_cast<uint8_t>(table[i] + (1 << zero_bits));
    return out;
}

// A float16 scale for each row.
struct PackedIQ4_NL : PackedBlocks<BlockFormat::iq4_nl, 7, false, 18> {
    static constexpr ShiftedTable kTable = shifted_table(kNonLinear, kZeroBits);
};

// A float16 scale of 256 columns, times a signed byte of 32.
struct PackedIQ4_XS {
    static constexpr PanelShape kShape = panel_shape(BlockFormat::iq4_xs);
    static constexpr int kBits = kShape.bits, kRuns = 1, kZeroBits = 7;
    static constexpr bool kMinimum = false;
    static constexpr int64_t kBlockBytes = 136;
    static constexpr ShiftedTable kTable = shifted_table(kNonLinear, kZeroBits);

    struct Unit {
        Vector scale;
        Unit(const uint8_t* header, int first) : scale(load_float16(header + 2 * first)) {}
        FIRSTLIGHT_INLINE GroupScales<1> scales(const uint8_t* at, int first) const {
            return {{scale * to_float(widen_signed(load_bytes(at), first))}, {}};
        }
    };

    static void put_header(const uint8_t* block, uint8_t* to, int64_t row) {
        put_half(to, block, row);
    }
    static void put_scales(const uint8_t* block, int g, uint8_t* to, int64_t row) {
        to[row] = static_cast<uint8_t>(iq4_xs_scale(block, g));
    }
    static void codes(const uint8_t* block, int g, uint32_t words[8]) {
        nibble_words(block + 8 + 16 * g, words);
    }
};

// A power of two.
struct PackedMXFP4 {
    static constexpr PanelShape kShape = panel_shape(BlockFormat::mxfp4);
    static constexpr int kBits = kShape.bits, kRuns = 1, kZeroBits = 4;
    static constexpr bool kMinimum = false;
    static constexpr int64_t kBlockBytes = 17;
    static constexpr ShiftedTable kTable = shifted_table(kDoubledFloat4, kZeroBits);

    struct Unit {
        Unit(const uint8_t*, int) {}
        FIRSTLIGHT_INLINE GroupScales<1> scales(const uint8_t* at, int first) const {
            return {{half_e8m0(widen(load_bytes(at), first))}, {}};
        }
    };

    static void put_header(const uint8_t*, uint8_t*, int64_t) {}
    static void put_scales(const uint8_t* block, int, uint8_t* to, int64_t row) {
        to[row] = block[0];
    }
    static void codes(const uint8_t* block, int, uint32_t words[8]) {
        nibble_words(block + 1, words);
    }
};

// An 8-bit floating-point scale for 16 columns.
struct PackedNVFP4 {
    static constexpr PanelShape kShape = panel_shape(BlockFormat::nvfp4);
    static constexpr int kBits = kShape.bits, kRuns = 2, kZeroBits = 4;
    static constexpr bool kMinimum = false;
    static constexpr int64_t kBlockBytes = 36;
    static constexpr ShiftedTable kTable = shifted_table(kDoubledFloat4, kZeroBits);

    struct Unit {
        Unit(const uint8_t*, int) {}
        FIRSTLIGHT_INLINE GroupScales<2> scales(const uint8_t* at, int first) const {
            return {{half_e4m3(widen(load_bytes(at), first)),
                     half_e4m3(widen(load_bytes(at + 16), first))},
                    {}};
        }
    };

    static void put_header(const uint8_t*, uint8_t*, int64_t) {}
    static void put_scales(const uint8_t* block, int g, uint8_t* to, int64_t row) {
        for (int run = 0; run < 2; ++run) {
            to[16 * run + row] = e4m3_below_128(block[2 * g + run]);
        }
    }
    static void codes(const uint8_t* block, int g, uint32_t words[8]) {
        for (int run = 0; run < 2; ++run) {
            const uint8_t* from = block + 4 + 16 * g + 8 * run;
            for (int i = 0; i < 2; ++i) {
                const uint32_t word = load_word(from + 4 * i);
                words[4 * run + i] = word & 15 * kEachByte;
                words[4 * run + 2 + i] = word >> 4 & 15 * kEachByte;
            }
        }
    }
};

// Calls use(Type<Format>{}) if the format comes in panels.
template <class Use>
inline void with_packed_format(BlockFormat format, Use use) {
    switch (format) {
        case BlockFormat::q4_0: return use(Type<PackedQ4_0>{});
        case BlockFormat::q4_1: return use(Type<PackedQ4_1>{});
        case BlockFormat::q5_0: return use(Type<PackedQ5_0>{});
        case BlockFormat::q5_1: return use(Type<PackedQ5_1>{});
        case BlockFormat::q8_0: return use(Type<PackedQ8_0>{});
        case BlockFormat::q2_k: return use(Type<PackedQ2_K>{});
        case BlockFormat::q3_k: return use(Type<PackedQ3_K>{});
        case BlockFormat::q4_k: return use(Type<PackedQ4_K>{});
        case BlockFormat::q5_k: return use(Type<PackedQ5_K>{});
        case BlockFormat::q6_k: return use(Type<PackedQ6_K>{});
        case BlockFormat::iq4_nl: return use(Type<PackedIQ4_NL>{});
        case BlockFormat::iq4_xs: return use(Type<PackedIQ4_XS>{});
        case BlockFormat::mxfp4: return use(Type<PackedMXFP4>{});
        case BlockFormat::nvfp4: return use(Type<PackedNVFP4>{});
        default: return;
    }
}
