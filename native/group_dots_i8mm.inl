// group_dots.inl's products with Arm's i8mm: a value is 256 * upper + lower, both signed bytes, 32 of the
// one and then 32 of the other. One instruction multiplies two rows of codes by two rows of x, eight
// columns each; a single row of x takes the products of four columns.

constexpr int kMostRows = 4;

inline void put_line(const int32_t* values, uint8_t* line) {
    for (int i = 0; i < 32; ++i) {
        line[i] = static_cast<uint8_t>((values[i] + 128) >> 8);
        line[32 + i] = static_cast<uint8_t>(values[i]);
    }
}

FIRSTLIGHT_INLINE int32x4_t add_quads_of(int32x4_t sums, Codes codes, const uint8_t* columns) {
    const uint32x4_t x = vdupq_n_u32(load_word(columns));
    return vusdotq_s32(sums, (uint8x16_t)codes, (int8x16_t)x);
}

// Two rows of sixteen columns as two matrices of two rows and eight columns.
struct RowPairs {
    uint8x16_t columns[2];
    FIRSTLIGHT_INLINE RowPairs(uint8x16_t a, uint8x16_t b)
        : columns{(uint8x16_t)vzip1q_u64((uint64x2_t)a, (uint64x2_t)b),
                  (uint8x16_t)vzip2q_u64((uint64x2_t)a, (uint64x2_t)b)} {}
};

template <int First, int Quads, int ZeroBits, int Rows, class Source, class SumOf>
FIRSTLIGHT_INLINE void run_products(Source codes, SumOf sum_of, const uint8_t* lines,
                                    Integers (&out)[Rows]) {
    if constexpr (Rows == 1) {
        int32x4_t upper = vdupq_n_s32(0), lower = upper;
        each_place<Quads>([&](auto q) FIRSTLIGHT_INLINED {
            const Codes quad = codes(Place<First + q.value>{});
            const uint8_t* from = lines + 4 * (First + q.value);
            upper = add_quads_of(upper, quad, from);
            lower = add_quads_of(lower, quad, from + 32);
        });
        out[0] = (Integers)vaddq_s32(vshlq_n_s32(upper, 8), lower);
    } else {
        // Sums of two rows of codes, the first or the last of four, with two of x.
        constexpr int kPairs = Rows / 2;
        int32x4_t sums[2][kPairs][2];
        FIRSTLIGHT_UNROLL
        for (int p = 0; p < kPairs; ++p) {
            sums[0][p][0] = sums[0][p][1] = sums[1][p][0] = sums[1][p][1] = vdupq_n_s32(0);
        }
        each_place<Quads / 4>([&](auto four) FIRSTLIGHT_INLINED {
            constexpr int kQuad = First + 4 * decltype(four)::value;
            const auto pair = [](Codes a, Codes b) FIRSTLIGHT_INLINED {
                return vzipq_u32((uint32x4_t)a, (uint32x4_t)b);
            };
            const uint32x4x2_t weights[2] = {
                pair(codes(Place<kQuad>{}), codes(Place<kQuad + 1>{})),
                pair(codes(Place<kQuad + 2>{}), codes(Place<kQuad + 3>{}))};
            FIRSTLIGHT_UNROLL
            for (int p = 0; p < kPairs; ++p) {
                FIRSTLIGHT_UNROLL
                for (int plane = 0; plane < 2; ++plane) {
                    const uint8_t* from = lines + 2 * p * kLine + 32 * plane + 4 * kQuad;
                    const RowPairs x(vld1q_u8(from), vld1q_u8(from + kLine));
                    FIRSTLIGHT_UNROLL
                    for (int i = 0; i < 2; ++i) {
                        FIRSTLIGHT_UNROLL
                        for (int half = 0; half < 2; ++half) {
                            sums[half][p][plane] = vusmmlaq_s32(
                                sums[half][p][plane], (uint8x16_t)weights[i].val[half],
                                (int8x16_t)x.columns[i]);
                        }
                    }
                }
            }
        });
        FIRSTLIGHT_UNROLL
        for (int p = 0; p < kPairs; ++p) {
            int32x4_t both[2];
            for (int half = 0; half < 2; ++half) {
                both[half] = vaddq_s32(vshlq_n_s32(sums[half][p][0], 8), sums[half][p][1]);
            }
            out[2 * p] = (Integers)vuzp1q_s32(both[0], both[1]);
            out[2 * p + 1] = (Integers)vuzp2q_s32(both[0], both[1]);
        }
    }
    if constexpr (ZeroBits > 0) {
        FIRSTLIGHT_UNROLL
        for (int m = 0; m < Rows; ++m) out[m] = out[m] - (sum_of(m) << ZeroBits);
    }
}
