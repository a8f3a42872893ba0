// Groups of 32 fixed-point values of 16 bits, of which most keep only 8: mixed16 of
// ops/rounding.py, to the bit.

// Quad q has bit q in `fine` if its values stay as they are. The others are whole multiples of
// `step`, from -127 to 127 times.
struct GroupRounding {
    int32_t step;
    uint32_t fine;
};

// The largest magnitude of each quad.
inline void quad_maxima(const int32_t* values, int32_t maxima[8]) {
#if defined(__AVX512F__)
    for (int i = 0; i < 2; ++i) {
        __m512i most = _mm512_maskz_abs_epi32(kAllLanes, _mm512_loadu_si512(values + 16 * i));
        most = _mm512_maskz_max_epi32(kAllLanes, most,
                                      _mm512_maskz_shuffle_epi32(kAllLanes, most, _MM_PERM_BADC));
        most = _mm512_maskz_max_epi32(kAllLanes, most,
                                      _mm512_maskz_shuffle_epi32(kAllLanes, most, _MM_PERM_CDAB));
        const __m512i first = _mm512_maskz_compress_epi32(0x1111, most);
        memcpy(maxima + 4 * i, &first, 4 * sizeof *maxima);
    }
#else
    for (int q = 0; q < 8; ++q) {
        int32_t most = 0;
        for (int i = 4 * q; i < 4 * q + 4; ++i) {
            const int32_t magnitude = values[i] < 0 ? -values[i] : values[i];
            most = most < magnitude ? magnitude : most;
        }
        maxima[q] = most;
    }
#endif
}

// Values of 32 columns to what is left of them, and to multiples of the step where they are that.
inline GroupRounding round_group(const int32_t* values, int32_t* rounded, int32_t* multiples) {
    constexpr float kWhole = 0x1.8p23f;
    int32_t maxima[8];
    quad_maxima(values, maxima);
    // The three largest; of equal ones the earlier quad counts as larger.
    int32_t first = -1, second = -1, third = -1;
    for (int q = 0; q < 8; ++q) {
        const int32_t key = maxima[q] * 8 + 7 - q;
        const int32_t other = key < first ? key : first;
        first = key < first ? first : key;
        const int32_t least_yet = other < second ? other : second;
        second = other < second ? second : other;
        third = least_yet < third ? third : least_yet;
    }
    const int32_t rest = third >> 3;
    const int32_t step = rest <= 127 ? 1 : (rest + 126) / 127;
    const Vector inverse = broadcast(1.0f / static_cast<float>(step));
    for (int i = 0; i < kGroupColumns; i += kWidth) {
        Integers value;
        memcpy(&value, values + i, sizeof value);
        const Vector whole = to_float(value) * inverse + broadcast(kWhole);
        const Integers multiple = as_int(whole) - broadcast_int(0x4B400000);
        const Integers result = multiple * broadcast_int(step);
        memcpy(multiples + i, &multiple, sizeof multiple);
        memcpy(rounded + i, &result, sizeof result);
    }
    const int32_t fine[2] = {7 - (first & 7), 7 - (second & 7)};
    for (int32_t quad : fine) memcpy(rounded + 4 * quad, values + 4 * quad, 4 * sizeof *values);
    return {step, 1u << fine[0] | 1u << fine[1]};
}
