// The kernel for fp8 weights and activations rounded to bfloat16, in which every code has its value.
//
// The order of additions, whatever the batch: columns fall into chunks; in a chunk, stretches of at most
// kFloat8Stretch columns that share a scale are added up as in bfloat16.inl, from zero; a stretch's
// lanes times the scale go into those of the chunk, in one rounding; these are added by `sum4`, and the
// chunks' sums in turn.

#if defined(__AVX512BF16__)

constexpr int64_t kFloat8Chunk = 3072, kFloat8Stretch = 512;
// Rows of the weight, and of x, that are taken together: as many as registers hold sums for, and the
// decoder where it is needed.
constexpr int kFloat8Rows = 4, kFloat8Inputs = 3;
constexpr int kFloat8MostInputs = 4;
constexpr __mmask32 kAllWords = 0xFFFFFFFF;

// The values of the codes 0 to 127 as bfloat16, upper and lower bytes apart: 2^-9 times 0 to 7, then
// seven bits moved to their place with 120 added to the exponent, and NaN.
struct Float8Table {
    alignas(64) uint8_t lower[128], upper[128];

    constexpr Float8Table() : lower(), upper() {
        constexpr uint16_t kSubnormal[8] = {0x0000, 0x3B00, 0x3B80, 0x3BC0,
                                            0x3C00, 0x3C20, 0x3C40, 0x3C60};
        for (int code = 0; code < 128; ++code) {
            const int value = code < 8      ? kSubnormal[code]
                              : code == 127 ? 0x7FC0
                                            : (code << 4) + (120 << 7);
            lower[code] = static_cast<uint8_t>(value);
            upper[code] = static_cast<uint8_t>(value >> 8);
        }
    }
};
constexpr Float8Table kFloat8Table;

// The same in registers.
struct Float8Decoder {
    __m512i lower[2], upper[2], order;

    FIRSTLIGHT_INLINE Float8Decoder()
        : lower{_mm512_loadu_si512(kFloat8Table.lower), _mm512_load_si512(kFloat8Table.lower + 64)},
          upper{_mm512_loadu_si512(kFloat8Table.upper), _mm512_load_si512(kFloat8Table.upper + 64)},
          order(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7)) {}

    // Codes in the order in which bytes are put together below, as two times 32 columns.
    FIRSTLIGHT_INLINE void decode(__m512i codes, __m512i& first, __m512i& second) const {
        codes = _mm512_maskz_permutexvar_epi64(0xFF, order, codes);
        const __m512i low = _mm512_permutex2var_epi8(lower[0], codes, lower[1]);
        const __m512i high = _mm512_permutex2var_epi8(upper[0], codes, upper[1]);
        // The sign of the code: high | (codes & 0x80).
        const __m512i with_sign =
            _mm512_ternarylogic_epi64(high, codes, _mm512_set1_epi8((char)0x80), 0xF8);
        first = _mm512_maskz_unpacklo_epi8(~__mmask64{0}, low, with_sign);
        second = _mm512_maskz_unpackhi_epi8(~__mmask64{0}, low, with_sign);
    }
};

// 64 columns of a row, or the first `count` of them and zeros.
FIRSTLIGHT_INLINE __m512i load_codes(const uint8_t* from, int64_t count) {
    if (count >= 64) return _mm512_loadu_si512(from);
    return _mm512_maskz_loadu_epi8((__mmask64{1} << count) - 1, from);
}

// Some columns of a row as bfloat16, filled up with zeros to whole steps of 64; as many are fetched from
// `ahead` of them.
inline void decode_float8(const uint8_t* from, int64_t count, int64_t ahead, uint8_t* to) {
    const Float8Decoder decoder;
    for (int64_t i = 0; i < count; i += 64) {
        FIRSTLIGHT_FETCH_FAR(from + ahead + i);
        __m512i first, second;
        decoder.decode(load_codes(from + i, count - i), first, second);
        _mm512_storeu_si512(to + 2 * i, first);
        _mm512_storeu_si512(to + 2 * i + 64, second);
    }
}

// What a row of the weight brings to a chunk.
struct Float8Row {
    const uint8_t* data;  // of the chunk's first column
    const float* scale;   // of its block
};

// The columns of a chunk, and where scales change in it.
struct Float8Chunk {
    int64_t count;        // whole steps but in a row's last chunk
    int64_t block, next;  // columns of a block; where the second one begins in this chunk
    int64_t ahead;        // from a row to what is to be fetched meanwhile, if anything
};

// sums[x * 4 + r] = rows[r] . right[x] over a chunk. `right` is aligned and filled up with zeros, and
// so are rows unless they are Stored.
template <bool Stored, int Rows, int Inputs>
inline void float8_products(const Float8Row* rows, const Float8Chunk& chunk, const uint16_t* right,
                            int64_t stride, float* sums) {
    __m512 total[Rows][Inputs], sum_of[Rows][Inputs];
    FIRSTLIGHT_UNROLL
    for (int r = 0; r < Rows; ++r) {
        FIRSTLIGHT_UNROLL
        for (int x = 0; x < Inputs; ++x) total[r][x] = _mm512_setzero_ps();
    }
    // Only used where rows are stored.
    const Float8Decoder decoder;
    const auto add_products = [&](const __m512i (&weights)[Rows], int64_t i) FIRSTLIGHT_INLINED {
        FIRSTLIGHT_UNROLL
        for (int x = 0; x < Inputs; ++x) {
            const __m512i input = _mm512_loadu_si512(right + x * stride + i);
            FIRSTLIGHT_UNROLL
            for (int r = 0; r < Rows; ++r) {
                sum_of[r][x] = add_pairs(sum_of[r][x], weights[r], input);
            }
        }
    };
    // Up to 64 columns, or 32 where no more are left.
    const auto add_step = [&](int64_t i, int64_t count) FIRSTLIGHT_INLINED {
        __m512i first[Rows], second[Rows];
        FIRSTLIGHT_UNROLL
        for (int r = 0; r < Rows; ++r) {
            if constexpr (Stored) {
                decoder.decode(load_codes(rows[r].data + i, count), first[r], second[r]);
            } else {
                first[r] = _mm512_loadu_si512(rows[r].data + 2 * i);
                if (count > 32) second[r] = _mm512_loadu_si512(rows[r].data + 2 * i + 64);
            }
        }
        add_products(first, i);
        if (count > 32) add_products(second, i + 32);
    };
    int64_t place = 0, next = chunk.next;
    for (int64_t i = 0; i < chunk.count;) {
        const int64_t end = least(least(next, i + kFloat8Stretch), chunk.count);
        FIRSTLIGHT_UNROLL
        for (int r = 0; r < Rows; ++r) {
            FIRSTLIGHT_UNROLL
            for (int x = 0; x < Inputs; ++x) sum_of[r][x] = _mm512_setzero_ps();
        }
        for (; i + 64 <= end; i += 64) {
            if constexpr (Stored) {
                FIRSTLIGHT_UNROLL
                for (int r = 0; r < Rows; ++r) FIRSTLIGHT_FETCH_FAR(rows[r].data + chunk.ahead + i);
            }
            add_step(i, 64);
        }
        if (i < end) {
            add_step(i, end - i);
            i = end;
        }
        FIRSTLIGHT_UNROLL
        for (int r = 0; r < Rows; ++r) {
            const __m512 scale = _mm512_set1_ps(rows[r].scale[place]);
            FIRSTLIGHT_UNROLL
            for (int x = 0; x < Inputs; ++x) {
                total[r][x] = _mm512_fmadd_ps(sum_of[r][x], scale, total[r][x]);
            }
        }
        if (end == next) {
            ++place;
            next += chunk.block;
        }
    }
    FIRSTLIGHT_UNROLL
    for (int x = 0; x < Inputs; ++x) {
        const auto row = [&](int r) FIRSTLIGHT_INLINED { return (Vector)total[r < Rows ? r : 0][x]; };
        sum4(row(0), row(1), row(2), row(3), sums + 4 * x);
    }
}

typedef void (*Float8Products)(const Float8Row*, const Float8Chunk&, const uint16_t*, int64_t, float*);

// Of `kept_together` rows, or of one.
inline Float8Products float8_products_for(bool stored, bool one, int inputs) {
    switch (inputs) {
        case 1:
            if (one) return stored ? float8_products<true, 1, 1> : float8_products<false, 1, 1>;
            return stored ? float8_products<true, 4, 1> : float8_products<false, 4, 1>;
        case 2:
            if (one) return stored ? float8_products<true, 1, 2> : float8_products<false, 1, 2>;
            return stored ? float8_products<true, 4, 2> : float8_products<false, 4, 2>;
        case 3:
            if (one) return stored ? float8_products<true, 1, 3> : float8_products<false, 1, 3>;
            return stored ? float8_products<true, 2, 3> : float8_products<false, 4, 3>;
        default: return one ? float8_products<true, 1, 4> : float8_products<true, 2, 4>;
    }
}

#endif
