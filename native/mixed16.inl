// Groups of 32 fixed-point values of 16 bits, rounded to multiples of a step: mixed16 of
// ops/rounding.py, to the bit.

// The step, and the two quads whose multiples of it may need 16 bits. Those of all others lie
// between -127 and 127.
struct GroupStep {
    int32_t step;
    int32_t fine[2];
};

// The least whole number from `least` on that has no more than four significant bits.
inline int32_t four_bit_step(int32_t least) {
    int32_t unit = 1;
    while (least >= 16 * unit) unit *= 2;
    return (least + unit - 1) / unit * unit;
}

inline GroupStep step_of(int32_t first, int32_t second, int32_t third) {
    const int32_t rest = third >> 3;
    const int32_t step = rest <= 127 ? 1 : four_bit_step((rest + 126) / 127);
    return {step, {7 - (first & 7), 7 - (second & 7)}};
}

// The step is set by the quad whose largest magnitude is the third in order, and the two before it
// are the fine ones. Quads are told apart by keys: that magnitude times eight, and 7 less the
// quad's place.
#if defined(__AVX512F__)

// The largest of lanes 0 and 1 of each four, in every lane.
inline __m512i largest_key(__m512i keys) {
    const auto larger_of = [](__m512i a, __m512i b) FIRSTLIGHT_INLINED {
        return _mm512_maskz_max_epi32(kAllLanes, a, b);
    };
    keys = larger_of(keys, _mm512_maskz_shuffle_epi32(kAllLanes, keys, _MM_PERM_CDAB));
    keys = larger_of(keys, _mm512_maskz_shuffle_i64x2(0xFF, keys, keys, 0x4E));
    return larger_of(keys, _mm512_maskz_shuffle_i64x2(0xFF, keys, keys, 0xB1));
}

inline GroupStep group_step(const int32_t* values) {
    const auto quad_maxima = [&](int from) FIRSTLIGHT_INLINED {
        __m512i most = _mm512_maskz_abs_epi32(kAllLanes, _mm512_loadu_si512(values + from));
        most = _mm512_maskz_max_epi32(kAllLanes, most,
                                      _mm512_maskz_shuffle_epi32(kAllLanes, most, _MM_PERM_BADC));
        return _mm512_maskz_max_epi32(kAllLanes, most,
                                      _mm512_maskz_shuffle_epi32(kAllLanes, most, _MM_PERM_CDAB));
    };
    // Of each four lanes the first has a quad of the first half and the second one of the other.
    const __m512i maxima = _mm512_mask_mov_epi32(quad_maxima(0), 0x2222, quad_maxima(16));
    const __m512i places = _mm512_setr_epi32(7, 3, 0, 0, 6, 2, 0, 0, 5, 1, 0, 0, 4, 0, 0, 0);
    __m512i keys = _mm512_maskz_add_epi32(
        0x3333, _mm512_maskz_slli_epi32(kAllLanes, maxima, 3), places);
    int32_t found[3];
    for (int32_t& each : found) {
        const __m512i most = largest_key(keys);
        memcpy(&each, &most, sizeof each);
        // Lanes without a quad, and quads that were found, are 0: so is what comes next if all is 0.
        keys = _mm512_maskz_mov_epi32(_mm512_cmpneq_epi32_mask(keys, most), keys);
    }
    return step_of(found[0], found[1], found[2]);
}

#else

inline GroupStep group_step(const int32_t* values) {
    int32_t first = -1, second = -1, third = -1;
    for (int q = 0; q < 8; ++q) {
        int32_t most = 0;
        for (int i = 4 * q; i < 4 * q + 4; ++i) {
            const int32_t magnitude = values[i] < 0 ? -values[i] : values[i];
            most = most < magnitude ? magnitude : most;
        }
        const int32_t key = most * 8 + 7 - q;
        const int32_t other = key < first ? key : first;
        first = key < first ? first : key;
        const int32_t least_yet = other < second ? other : second;
        second = other < second ? second : other;
        third = least_yet < third ? third : least_yet;
    }
    return step_of(first, second, third);
}

#endif

// Values of 32 columns to the nearest multiples of a step.
inline void step_multiples(const int32_t* values, int32_t step, int32_t* multiples) {
    constexpr float kWhole = 0x1.8p23f;
    const Vector inverse = broadcast(1.0f / static_cast<float>(step));
    for (int i = 0; i < kGroupColumns; i += kWidth) {
        Integers value;
        memcpy(&value, values + i, sizeof value);
        const Vector whole = to_float(value) * inverse + broadcast(kWhole);
        const Integers multiple = as_int(whole) - broadcast_int(0x4B400000);
        memcpy(multiples + i, &multiple, sizeof multiple);
    }
}
