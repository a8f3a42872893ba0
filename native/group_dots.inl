// Exact whole-number products of kWidth rows of codes with up to kMostRows rows of x, a group of 32
// columns at a time; the one thing in a packed product that depends on the instruction set.
//
// A row of x has a line of 64 bytes for a group (kLine), made by put_line from fixed-point values
// of 16 bits; `rows` lines of one group stand together. A sum of 32 products of a code below 256
// with such a value stays within 32 bits.

constexpr int kLine = 64;

// A whole number that templates can be given.
template <int Value>
struct Place {
    static constexpr int value = Value;
};

// Calls use(Place<0>{}) to use(Place<Count - 1>{}).
template <int Count, int From = 0, class Use>
FIRSTLIGHT_INLINE void each_place(Use use) {
    if constexpr (From < Count) {
        use(Place<From>{});
        each_place<Count, From + 1>(use);
    }
}

#if defined(__AVX512VNNI__)

// A value is 256 * upper + lower, both signed bytes: 32 of the one, then 32 of the other.
#if defined(FIRSTLIGHT_TILES)
constexpr int kMostRows = 16;  // packed_tiles.inl takes so many together
#else
constexpr int kMostRows = 8;
#endif

inline void put_line(const int32_t* values, uint8_t* line) {
    for (int i = 0; i < 32; i += 16) {
        const Integers value = as_int(load(values + i));
        const __m512i upper = (__m512i)((value + broadcast_int(128)) >> 8);
        _mm_storeu_si128((__m128i*)(line + i), _mm512_maskz_cvtepi32_epi8(kAllLanes, upper));
        // The lowest byte of the value is the lower one, whatever was rounded into the upper.
        const __m128i lower = _mm512_maskz_cvtepi32_epi8(kAllLanes, (__m512i)value);
        _mm_storeu_si128((__m128i*)(line + 32 + i), lower);
    }
}

FIRSTLIGHT_INLINE __m512i four_columns(const uint8_t* from) {
    return _mm512_set1_epi32(static_cast<int32_t>(load_word(from)));
}

// out[m] = the products of the run's codes with row m, less sum_of(m) << ZeroBits if that is not 0.
// codes(Place<q>{}) gives the codes of quad q, of quads First to First + Quads - 1.
template <int First, int Quads, int ZeroBits, int Rows, class Source, class SumOf>
FIRSTLIGHT_INLINE void run_products(Source codes, SumOf sum_of, const uint8_t* lines,
                                    Integers (&out)[Rows]) {
    __m512i quads[Quads];
    each_place<Quads>([&](auto q) FIRSTLIGHT_INLINED {
        quads[q.value] = (__m512i)codes(Place<First + q.value>{});
    });
    const auto add = [&](int m, int plane, Integers start) FIRSTLIGHT_INLINED {
        __m512i sum = (__m512i)start;
        FIRSTLIGHT_UNROLL
        for (int q = 0; q < Quads; ++q) {
            const uint8_t* from = lines + m * kLine + 32 * plane + 4 * (First + q);
            sum = _mm512_dpbusd_epi32(sum, quads[q], four_columns(from));
        }
        return (Integers)sum;
    };
    const auto shifted = [&](int m, Integers upper) FIRSTLIGHT_INLINED {
        if constexpr (ZeroBits == 0) return upper << 8;
        return ((upper << (8 - ZeroBits)) - sum_of(m)) << ZeroBits;
    };
    if constexpr (Rows < 4) {
        // Few sums: those of both planes go side by side, since each waits for itself.
        FIRSTLIGHT_UNROLL
        for (int m = 0; m < Rows; ++m) {
            const Integers none = broadcast_int(0);
            out[m] = shifted(m, add(m, 0, none)) + add(m, 1, none);
        }
    } else {
        FIRSTLIGHT_UNROLL
        for (int m = 0; m < Rows; ++m) out[m] = shifted(m, add(m, 0, broadcast_int(0)));
        FIRSTLIGHT_UNROLL
        for (int m = 0; m < Rows; ++m) out[m] = add(m, 1, out[m]);
    }
}

#elif defined(__AVXVNNI__) || defined(FIRSTLIGHT_EMULATED_VNNI)

#include "group_dots_avx2_vnni.inl"

#elif defined(__ARM_FEATURE_MATMUL_INT8) && !defined(FIRSTLIGHT_PLAIN_VECTORS)

#include "group_dots_i8mm.inl"

#elif defined(__ARM_FEATURE_DOTPROD) && !defined(FIRSTLIGHT_PLAIN_VECTORS)

// 32 upper and then 32 lower bytes of each value, both unsigned and 256 * upper + lower being the
// value and 32768 more. 32768 times the sum of the codes is taken away in the end; on the way sums
// stay below 2^30.
constexpr int kMostRows = 4;

inline void put_line(const int32_t* values, uint8_t* line) {
    for (int i = 0; i < 32; ++i) {
        const int32_t value = values[i] + 32768;
        line[i] = static_cast<uint8_t>(value >> 8);
        line[32 + i] = static_cast<uint8_t>(value);
    }
}

// As above.
template <int First, int Quads, int ZeroBits, int Rows, class Source, class SumOf>
FIRSTLIGHT_INLINE void run_products(Source codes, SumOf sum_of, const uint8_t* lines,
                                    Integers (&out)[Rows]) {
    uint32x4_t upper[Rows], lower[Rows], all_codes = vdupq_n_u32(0);
    FIRSTLIGHT_UNROLL
    for (int m = 0; m < Rows; ++m) upper[m] = lower[m] = vdupq_n_u32(0);
    each_place<Quads>([&](auto q) FIRSTLIGHT_INLINED {
        const auto quad = (uint8x16_t)codes(Place<First + q.value>{});
        all_codes = vdotq_u32(all_codes, quad, vdupq_n_u8(1));
        FIRSTLIGHT_UNROLL
        for (int m = 0; m < Rows; ++m) {
            const uint8_t* from = lines + m * kLine + 4 * (First + q.value);
            upper[m] = vdotq_u32(upper[m], quad, (uint8x16_t)vdupq_n_u32(load_word(from)));
            lower[m] = vdotq_u32(lower[m], quad, (uint8x16_t)vdupq_n_u32(load_word(from + 32)));
        }
    });
    FIRSTLIGHT_UNROLL
    for (int m = 0; m < Rows; ++m) {
        const uint32x4_t total = vaddq_u32(vshlq_n_u32(upper[m], 8), lower[m]);
        out[m] = (Integers)vsubq_u32(total, vshlq_n_u32(all_codes, 15));
        if constexpr (ZeroBits > 0) out[m] = out[m] - (sum_of(m) << ZeroBits);
    }
}

#else

// Values of 16 bits: of each four columns the first, the third, the second, the fourth, so that codes
// are widened to meet them by taking every other byte.
#if defined(__AVX2__)
constexpr int kMostRows = 4;
#else
constexpr int kMostRows = 2;
#endif

inline void put_line(const int32_t* values, uint8_t* line) {
    int16_t words[32];
    for (int i = 0; i < 32; ++i) {
        words[i / 4 * 4 + i % 2 * 2 + i % 4 / 2] = static_cast<int16_t>(values[i]);
    }
    memcpy(line, words, sizeof words);
}

// Of each lane two words of codes times two of x, added.
#if defined(__AVX512BW__)
FIRSTLIGHT_INLINE Integers pair_products(Codes codes, Integers x) {
    return (Integers)_mm512_madd_epi16((__m512i)codes, (__m512i)x);
}
#elif defined(__AVX2__)
FIRSTLIGHT_INLINE Integers pair_products(Codes codes, Integers x) {
    return (Integers)_mm256_madd_epi16((__m256i)codes, (__m256i)x);
}
#elif defined(__SSE2__) && !defined(FIRSTLIGHT_PLAIN_VECTORS)
FIRSTLIGHT_INLINE Integers pair_products(Codes codes, Integers x) {
    return (Integers)_mm_madd_epi16((__m128i)codes, (__m128i)x);
}
#elif defined(__aarch64__) && defined(__ARM_NEON) && !defined(FIRSTLIGHT_PLAIN_VECTORS)
FIRSTLIGHT_INLINE Integers pair_products(Codes codes, Integers x) {
    const int16x8_t a = (int16x8_t)codes, b = (int16x8_t)x;
    const int32x4_t low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
    return (Integers)vpaddq_s32(low, vmull_high_s16(a, b));
}
#else
inline Integers pair_products(const Codes& codes, const Integers& x) {
    int16_t a[2 * kWidth], b[2 * kWidth];
    int32_t sums[kWidth];
    memcpy(a, &codes, sizeof a);
    memcpy(b, &x, sizeof b);
    for (int i = 0; i < kWidth; ++i) sums[i] = a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
    Integers out;
    memcpy(&out, sums, sizeof out);
    return out;
}
#endif

// The first and third, and the second and fourth of four bytes, as words.
#if (defined(__GNUC__) || defined(__clang__)) && !defined(FIRSTLIGHT_PLAIN_VECTORS) && \
    __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
FIRSTLIGHT_INLINE Codes even_words(Codes codes) {
    return (Codes)((CodeWords)codes & (0xFF - CodeWords{}));
}
FIRSTLIGHT_INLINE Codes odd_words(Codes codes) { return (Codes)((CodeWords)codes >> 8); }
#else
inline Codes every_other(const Codes& codes, int from) {
    uint8_t bytes[4 * kWidth];
    uint16_t words[2 * kWidth];
    memcpy(bytes, &codes, sizeof bytes);
    for (int i = 0; i < 2 * kWidth; ++i) words[i] = bytes[2 * i + from];
    Codes out;
    memcpy(&out, words, sizeof out);
    return out;
}
inline Codes even_words(const Codes& codes) { return every_other(codes, 0); }
inline Codes odd_words(const Codes& codes) { return every_other(codes, 1); }
#endif

FIRSTLIGHT_INLINE Integers two_columns(const uint8_t* from) {
    return broadcast_int(static_cast<int32_t>(load_word(from)));
}

// As above.
template <int First, int Quads, int ZeroBits, int Rows, class Source, class SumOf>
FIRSTLIGHT_INLINE void run_products(Source codes, SumOf sum_of, const uint8_t* lines,
                                    Integers (&out)[Rows]) {
    FIRSTLIGHT_UNROLL
    for (int m = 0; m < Rows; ++m) {
        out[m] = broadcast_int(0);
        if constexpr (ZeroBits > 0) out[m] = out[m] - (sum_of(m) << ZeroBits);
    }
    each_place<Quads>([&](auto q) FIRSTLIGHT_INLINED {
        const Codes quad = codes(Place<First + q.value>{});
        const Codes even = even_words(quad), odd = odd_words(quad);
        FIRSTLIGHT_UNROLL
        for (int m = 0; m < Rows; ++m) {
            const uint8_t* from = lines + m * kLine + 8 * (First + q.value);
            out[m] = out[m] + pair_products(even, two_columns(from));
            out[m] = out[m] + pair_products(odd, two_columns(from + 4));
        }
    });
}

#endif
