// group_dots.inl's products with AVX-VNNI: a value is 256 * upper + lower, both signed bytes, 32 of the
// one and then 32 of the other. There are 16 registers, so codes are used as they come, and kept
// sums are those of both planes.
//
// With FIRSTLIGHT_EMULATED_VNNI the instruction is AVX-512's on the same registers, so that the kernels can
// be checked on machines that have that one alone.

constexpr int kMostRows = 4;

inline void put_line(const int32_t* values, uint8_t* line) {
    for (int i = 0; i < 32; ++i) {
        line[i] = static_cast<uint8_t>((values[i] + 128) >> 8);
        line[32 + i] = static_cast<uint8_t>(values[i]);
    }
}

FIRSTLIGHT_INLINE __m256i add_quads_of(__m256i sums, Codes codes, const uint8_t* columns) {
    const __m256i x = _mm256_set1_epi32(static_cast<int32_t>(load_word(columns)));
#if defined(FIRSTLIGHT_EMULATED_VNNI)
    asm("%{evex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"((__m256i)codes), "x"(x));
    return sums;
#else
    return _mm256_dpbusd_avx_epi32(sums, (__m256i)codes, x);
#endif
}

template <int First, int Quads, int ZeroBits, int Rows, class Source, class SumOf>
FIRSTLIGHT_INLINE void run_products(Source codes, SumOf sum_of, const uint8_t* lines,
                                    Integers (&out)[Rows]) {
    __m256i upper[Rows], lower[Rows];
    FIRSTLIGHT_UNROLL
    for (int m = 0; m < Rows; ++m) upper[m] = lower[m] = _mm256_setzero_si256();
    each_place<Quads>([&](auto q) FIRSTLIGHT_INLINED {
        const Codes quad = codes(Place<First + q.value>{});
        FIRSTLIGHT_UNROLL
        for (int m = 0; m < Rows; ++m) {
            const uint8_t* from = lines + m * kLine + 4 * (First + q.value);
            upper[m] = add_quads_of(upper[m], quad, from);
            lower[m] = add_quads_of(lower[m], quad, from + 32);
        }
    });
    FIRSTLIGHT_UNROLL
    for (int m = 0; m < Rows; ++m) {
        out[m] = ((Integers)upper[m] << 8) + (Integers)lower[m];
        if constexpr (ZeroBits > 0) out[m] = out[m] - (sum_of(m) << ZeroBits);
    }
}
