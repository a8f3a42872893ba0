// The formats in panels: how a group's codes become values, and how a block is taken apart to get
// there.
//
// A packed format has, of its storage format's `block`, the codes of group `g` as eight words of four
// (codes), and puts row r's part of a unit's header and of a group's scales where packed_layout.inl
// says (put_header, put_scales). Of a panel, `Unit` gives a group's scales and minima for kWidth
// rows, those from row `first`: a value is
//     (code - 2^kZeroBits) * scale    or    code * scale + minimum    where kMinimum,
// with one of each for a group, or two for its two runs of 16 columns (kRuns).

constexpr uint32_t kEachByte = 0x01010101;

inline void put_half(uint8_t* to, const uint8_t* from, int64_t row) { memcpy(to + 2 * row, from, 2); }

// Four bits, the lowest first, as the lowest bits of four bytes.
inline uint32_t spread_four(uint32_t bits) { return (bits & 15) * 0x00204081 & kEachByte; }

inline void nibble_words(const uint8_t* from, uint32_t words[8]) {
    for (int i = 0; i < 4; ++i) {
        const uint32_t word = load_word(from + 4 * i);
        words[i] = word & 15 * kEachByte;
        words[i + 4] = word >> 4 & 15 * kEachByte;
    }
}

template <int Runs>
struct GroupScales {
    Vector scale[Runs], minimum[Runs];
};

// Blocks of 32 values with a float16 scale, and in kMinimum formats a float16 minimum.
template <BlockFormat Name, int ZeroBits, bool Minimum, int BlockBytes>
struct PackedBlocks {
    static constexpr PanelShape kShape = panel_shape(Name);
    static constexpr int kBits = kShape.bits, kRuns = 1, kZeroBits = ZeroBits;
    static constexpr bool kMinimum = Minimum;
    static constexpr int64_t kBlockBytes = BlockBytes;

    struct Unit {
        Unit(const uint8_t*, int) {}
        FIRSTLIGHT_INLINE GroupScales<1> scales(const uint8_t* at, int first) const {
            GroupScales<1> out = {{load_float16(at + 2 * first)}, {broadcast(0.0f)}};
            if constexpr (Minimum) out.minimum[0] = load_float16(at + 32 + 2 * first);
            return out;
        }
    };

    static void put_header(const uint8_t*, uint8_t*, int64_t) {}
    static void put_scales(const uint8_t* block, int, uint8_t* to, int64_t row) {
        put_half(to, block, row);
        if constexpr (Minimum) put_half(to + 32, block + 2, row);
    }
    static void codes(const uint8_t* block, int, uint32_t words[8]) {
        constexpr int kStart = Minimum ? 4 : 2;
        if constexpr (kBits == 8) {
            // From signed to 128 more.
            for (int i = 0; i < 8; ++i) words[i] = load_word(block + 2 + 4 * i) ^ 128 * kEachByte;
        } else if constexpr (kBits == 4) {
            nibble_words(block + kStart, words);
        } else {
            const uint32_t fifths = load_word(block + kStart);
            nibble_words(block + kStart + 4, words);
            for (int i = 0; i < 8; ++i) words[i] |= spread_four(fifths >> 4 * i) << 4;
        }
    }
};

typedef PackedBlocks<BlockFormat::q4_0, 3, false, 18> PackedQ4_0;
typedef PackedBlocks<BlockFormat::q4_1, 0, true, 20> PackedQ4_1;
typedef PackedBlocks<BlockFormat::q5_0, 4, false, 22> PackedQ5_0;
typedef PackedBlocks<BlockFormat::q5_1, 0, true, 24> PackedQ5_1;
typedef PackedBlocks<BlockFormat::q8_0, 7, false, 34> PackedQ8_0;

// q4_k and q5_k: a scale and a minimum for 32 columns.
template <BlockFormat Name, int BlockBytes>
struct PackedPairs {
    static constexpr PanelShape kShape = panel_shape(Name);
    static constexpr int kBits = kShape.bits, kRuns = 1, kZeroBits = 0;
    static constexpr bool kMinimum = true;
    static constexpr int64_t kBlockBytes = BlockBytes;

    struct Unit {
        Vector scale, minimum;
        Unit(const uint8_t* header, int first)
            : scale(load_float16(header + 2 * first)),
              minimum(load_float16(header + 32 + 2 * first) * broadcast(-1.0f)) {}
        FIRSTLIGHT_INLINE GroupScales<1> scales(const uint8_t* at, int first) const {
            return {{scale * to_float(widen(load_bytes(at), first))},
                    {minimum * to_float(widen(load_bytes(at + 16), first))}};
        }
    };

    static void put_header(const uint8_t* block, uint8_t* to, int64_t row) {
        put_half(to, block, row);
        put_half(to + 32, block + 2, row);
    }
    // Of the last four groups, the upper two bits stand above those of the first four.
    static void put_scales(const uint8_t* block, int g, uint8_t* to, int64_t row) {
        const uint8_t* six = block + 4;
        const int last = g % 4;
        to[row] = g < 4 ? six[g] & 63 : (six[8 + last] & 15) | six[last] >> 6 << 4;
        to[16 + row] = g < 4 ? six[4 + g] & 63 : six[8 + last] >> 4 | six[4 + last] >> 6 << 4;
    }
    static void codes(const uint8_t* block, int g, uint32_t words[8]) {
        const uint8_t* low = block + (kBits == 5 ? 48 : 16) + g / 2 * 32;
        for (int i = 0; i < 8; ++i) {
            words[i] = load_word(low + 4 * i) >> g % 2 * 4 & 15 * kEachByte;
            if constexpr (kBits == 5) {
                words[i] |= (load_word(block + 16 + 4 * i) >> g & kEachByte) << 4;
            }
        }
    }
};

typedef PackedPairs<BlockFormat::q4_k, 144> PackedQ4_K;
typedef PackedPairs<BlockFormat::q5_k, 176> PackedQ5_K;

// q3_k and q6_k: a signed scale for 16 columns.
template <BlockFormat Name, int ZeroBits, int BlockBytes>
struct PackedRuns {
    static constexpr PanelShape kShape = panel_shape(Name);
    static constexpr int kBits = kShape.bits, kRuns = 2, kZeroBits = ZeroBits;
    static constexpr bool kMinimum = false;
    static constexpr int64_t kBlockBytes = BlockBytes;

    struct Unit {
        Vector scale;
        Unit(const uint8_t* header, int first) : scale(load_float16(header + 2 * first)) {}
        FIRSTLIGHT_INLINE GroupScales<2> scales(const uint8_t* at, int first) const {
            return {{scale * to_float(widen_signed(load_bytes(at), first)),
                     scale * to_float(widen_signed(load_bytes(at + 16), first))},
                    {}};
        }
    };

    static void put_header(const uint8_t* block, uint8_t* to, int64_t row) {
        put_half(to, block + BlockBytes - 2, row);
    }
    static void put_scales(const uint8_t* block, int g, uint8_t* to, int64_t row) {
        for (int run = 0; run < 2; ++run) to[16 * run + row] = scale_byte(block, 2 * g + run);
    }
    static uint8_t scale_byte(const uint8_t* block, int run) {
        if constexpr (kBits == 6) return block[192 + run];
        const uint8_t* low = block + 96;
        const int nibble = low[run % 8] >> run / 8 * 4 & 15;
        return static_cast<uint8_t>((nibble | (low[8 + run % 4] >> run / 4 * 2 & 3) << 4) - 32);
    }
    static void codes(const uint8_t* block, int g, uint32_t words[8]) {
        const int half = g / 4, quarter = g % 4;
        for (int i = 0; i < 8; ++i) {
            if constexpr (kBits == 6) {
                const uint32_t low = load_word(block + 64 * half + quarter % 2 * 32 + 4 * i);
                const uint32_t top = load_word(block + 128 + 32 * half + 4 * i);
                words[i] = (low >> quarter / 2 * 4 & 15 * kEachByte) |
                           (top >> quarter * 2 & 3 * kEachByte) << 4;
            } else {
                const uint32_t low = load_word(block + 32 + 32 * half + 4 * i);
                const uint32_t top = load_word(block + 4 * i);
                words[i] = (low >> quarter * 2 & 3 * kEachByte) | (top >> g & kEachByte) << 2;
            }
        }
    }
};

typedef PackedRuns<BlockFormat::q3_k, 2, 110> PackedQ3_K;
typedef PackedRuns<BlockFormat::q6_k, 5, 210> PackedQ6_K;

// A scale and a minimum of four bits each for 16 columns.
struct PackedQ2_K {
    static constexpr PanelShape kShape = panel_shape(BlockFormat::q2_k);
    static constexpr int kBits = kShape.bits, kRuns = 2, kZeroBits = 0;
    static constexpr bool kMinimum = true;
    static constexpr int64_t kBlockBytes = 84;

    struct Unit {
        Vector scale, minimum;
        Unit(const uint8_t* header, int first)
            : scale(load_float16(header + 2 * first)),
              minimum(load_float16(header + 32 + 2 * first) * broadcast(-1.0f)) {}
        FIRSTLIGHT_INLINE GroupScales<2> scales(const uint8_t* at, int first) const {
            const Integers a = widen(load_bytes(at), first), b = widen(load_bytes(at + 16), first);
            const Integers low = broadcast_int(15);
            return {{scale * to_float(a & low), scale * to_float(b & low)},
                    {minimum * to_float(shift_right(a, 4)), minimum * to_float(shift_right(b, 4))}};
        }
    };

    static void put_header(const uint8_t* block, uint8_t* to, int64_t row) {
        put_half(to, block + 80, row);
        put_half(to + 32, block + 82, row);
    }
    static void put_scales(const uint8_t* block, int g, uint8_t* to, int64_t row) {
        to[row] = block[2 * g];
        to[16 + row] = block[2 * g + 1];
    }
    static void codes(const uint8_t* block, int g, uint32_t words[8]) {
        for (int i = 0; i < 8; ++i) {
            words[i] = load_word(block + 16 + g / 4 * 32 + 4 * i) >> g % 4 * 2 & 3 * kEachByte;
        }
    }
};
