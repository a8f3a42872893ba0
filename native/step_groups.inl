// A strip's groups of a row at once (mixed16.inl, step_lines.inl): what each has to find out about
// itself is a chain of operations that wait for one another, so four of them go side by side.

#if defined(FIRSTLIGHT_STEPS)

static_assert(kStripGroups == 4);

inline __m512i larger_lanes(__m512i a, __m512i b) { return _mm512_maskz_max_epi32(kAllLanes, a, b); }
inline __m512i lesser_lanes(__m512i a, __m512i b) { return _mm512_maskz_min_epi32(kAllLanes, a, b); }

// Of each four lanes of the result, one is what the same four lanes of a, b, c and d come to.
template <class Join>
FIRSTLIGHT_INLINE __m512i joined_quads(__m512i a, __m512i b, __m512i c, __m512i d, Join join) {
    const __m512i ab = join(_mm512_maskz_unpacklo_epi32(kAllLanes, a, b),
                            _mm512_maskz_unpackhi_epi32(kAllLanes, a, b));
    const __m512i cd = join(_mm512_maskz_unpacklo_epi32(kAllLanes, c, d),
                            _mm512_maskz_unpackhi_epi32(kAllLanes, c, d));
    return join(_mm512_maskz_unpacklo_epi64(0xFF, ab, cd), _mm512_maskz_unpackhi_epi64(0xFF, ab, cd));
}

// Of two groups, the first in lanes 0 and 1 of each four and the second in 2 and 3.
struct PairSteps {
    __m512i step;     // as the bits of a float32
    __m512i fine[2];  // as in GroupStep
};

FIRSTLIGHT_INLINE PairSteps pair_steps(const Integers* values) {
    __m512i magnitudes[4];
    FIRSTLIGHT_UNROLL
    for (int i = 0; i < 4; ++i) magnitudes[i] = _mm512_maskz_abs_epi32(kAllLanes, (__m512i)values[i]);
    const __m512i maxima = joined_quads(
        magnitudes[0], magnitudes[1], magnitudes[2], magnitudes[3],
        [](__m512i a, __m512i b) FIRSTLIGHT_INLINED { return larger_lanes(a, b); });
    const auto places =
        (Integers)_mm512_setr_epi32(7, 3, 7, 3, 6, 2, 6, 2, 5, 1, 5, 1, 4, 0, 4, 0);
    const auto keys = (__m512i)(((Integers)maxima << 3) + places);
    // The three largest of two quads, then four, then eight, each time with those of others.
    __m512i other = _mm512_maskz_shuffle_epi32(kAllLanes, keys, _MM_PERM_CDAB);
    __m512i first = larger_lanes(keys, other), second = lesser_lanes(keys, other);
    __m512i firsts = _mm512_maskz_shuffle_i64x2(0xFF, first, first, 0x4E);
    __m512i seconds = _mm512_maskz_shuffle_i64x2(0xFF, second, second, 0x4E);
    __m512i third = larger_lanes(lesser_lanes(first, seconds), lesser_lanes(second, firsts));
    second = larger_lanes(lesser_lanes(first, firsts), larger_lanes(second, seconds));
    first = larger_lanes(first, firsts);
    firsts = _mm512_maskz_shuffle_i64x2(0xFF, first, first, 0xB1);
    seconds = _mm512_maskz_shuffle_i64x2(0xFF, second, second, 0xB1);
    const __m512i thirds = _mm512_maskz_shuffle_i64x2(0xFF, third, third, 0xB1);
    third = larger_lanes(
        larger_lanes(third, thirds),
        larger_lanes(lesser_lanes(first, seconds), lesser_lanes(second, firsts)));
    second = larger_lanes(lesser_lanes(first, firsts), larger_lanes(second, seconds));
    first = larger_lanes(first, firsts);
    // (n * 33027) >> 22 is n / 127 for all n below 2^15.
    const Integers rest = ((Integers)third >> 3) + broadcast_int(126);
    const auto least = (Integers)larger_lanes((__m512i)((rest * broadcast_int(33027)) >> 22),
                                              (__m512i)broadcast_int(1));
    // Three bits after the first: what a float32 has below them is rounded up.
    const Integers below = broadcast_int((1 << 20) - 1);
    const Integers bits = (as_int(to_float(least)) + below) & ~below;
    const Integers seven = broadcast_int(7);
    return {(__m512i)bits,
            {(__m512i)(seven - ((Integers)first & seven)),
             (__m512i)(seven - ((Integers)second & seven))}};
}

// The lines of a strip's groups of a row: 128 columns.
inline void put_step_lines(const Integers* values, StepLine* lines) {
    constexpr float kWhole = 0x1.8p23f;
    __m512i sums[kStripGroups];
    int32_t multiples[kStripGroups];
    FIRSTLIGHT_UNROLL
    for (int pair = 0; pair < 2; ++pair) {
        const PairSteps steps = pair_steps(values + 4 * pair);
        const auto inverse = (__m512i)(broadcast(1.0f) / (Vector)steps.step);
        FIRSTLIGHT_UNROLL
        for (int i = 0; i < 2; ++i) {
            StepLine& line = lines[2 * pair + i];
            const Integers* value = values + 4 * pair + 2 * i;
            const __m512i own = i ? _mm512_maskz_shuffle_epi32(kAllLanes, inverse, _MM_PERM_CCCC)
                                  : _mm512_maskz_shuffle_epi32(kAllLanes, inverse, _MM_PERM_AAAA);
            const __m512i step =
                i ? _mm512_maskz_shuffle_epi32(kAllLanes, steps.step, _MM_PERM_CCCC) : steps.step;
            Integers multiple[2];
            __m128i upper[2];
            FIRSTLIGHT_UNROLL
            for (int h = 0; h < 2; ++h) {
                const Vector whole = to_float(value[h]) * (Vector)own + broadcast(kWhole);
                multiple[h] = as_int(whole) - broadcast_int(0x4B400000);
                // The lowest byte of a multiple is the lower one, whatever was rounded into the
                // upper.
                _mm_storeu_si128((__m128i*)(line.lower + 16 * h),
                                 _mm512_maskz_cvtepi32_epi8(kAllLanes, (__m512i)multiple[h]));
                const Integers over = (multiple[h] + broadcast_int(128)) >> 8;
                upper[h] = _mm512_maskz_cvtepi32_epi8(kAllLanes, (__m512i)over);
            }
            const __m512i fine =
                i ? _mm512_maskz_unpackhi_epi32(kAllLanes, steps.fine[0], steps.fine[1])
                  : _mm512_maskz_unpacklo_epi32(kAllLanes, steps.fine[0], steps.fine[1]);
            const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(upper[0]), upper[1], 1);
            const __m256i named = _mm256_maskz_permutexvar_epi32(
                0xFF, _mm512_castsi512_si256(fine), both);
            _mm_storeu_si64(line.upper, _mm256_castsi256_si128(named));
            const __m128i fines = _mm512_castsi512_si128(fine);
            line.places[0] = static_cast<uint8_t>(_mm_cvtsi128_si32(fines));
            line.places[1] = static_cast<uint8_t>(_mm_extract_epi32(fines, 1));
            const int32_t bits = _mm_cvtsi128_si32(_mm512_castsi512_si128(step));
            line.step = _mm_cvttss_si32(_mm_castsi128_ps(_mm512_castsi512_si128(step)));
            line.eighths = bits >> 20 & 7;
            line.shift = (bits >> 23) - 127;
            sums[2 * pair + i] = (__m512i)(multiple[0] + multiple[1]);
        }
    }
    const __m512i all = joined_quads(sums[0], sums[1], sums[2], sums[3],
                                     [](__m512i a, __m512i b) FIRSTLIGHT_INLINED {
                                         return (__m512i)((Integers)a + (Integers)b);
                                     });
    __m256i halves[2];
    memcpy(halves, &all, sizeof halves);
    const __m256i half = _mm256_add_epi32(halves[0], halves[1]);
    _mm_storeu_si128((__m128i*)multiples, _mm_add_epi32(_mm256_castsi256_si128(half),
                                                        _mm256_extracti128_si256(half, 1)));
    FIRSTLIGHT_UNROLL
    for (int g = 0; g < kStripGroups; ++g) {
        lines[g].multiples = multiples[g];
        lines[g].sum = static_cast<float>(multiples[g] * lines[g].step);
    }
}

// All lines of a row of x, whose values times `factor` are rounded to whole numbers; the groups that
// fill up the last strip are zeros.
inline void put_row_lines(const FixedRows& fixed, int64_t row, float factor) {
    constexpr float kWhole = 0x1.8p23f;
    constexpr int kVectors = kStripGroups * kGroupColumns / kWidth;
    const float* x = fixed.x + row * fixed.columns;
    for (int64_t group = 0; group < fixed.groups(); group += kStripGroups) {
        const int64_t vectors = least(fixed.groups() - group, kStripGroups) * kGroupColumns / kWidth;
        Integers values[kVectors];
        for (int64_t i = 0; i < kVectors; ++i) {
            values[i] = broadcast_int(0);
            if (i >= vectors) continue;
            const Vector whole = load(x + i * kWidth) * broadcast(factor) + broadcast(kWhole);
            values[i] = as_int(whole) - broadcast_int(0x4B400000);
        }
        put_step_lines(values, fixed.strip(group, row));
        x += kStripGroups * kGroupColumns;
    }
}

#else

inline void put_row_lines(const FixedRows&, int64_t, float) {}

#endif
