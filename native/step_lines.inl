// Rows of x as multiples of their groups' steps (mixed16.inl), for products where bytes can be
// multiplied by the quad: the lower bytes of all eight quads of a group, the upper bytes of the two
// that have any. A group's product is
//     (lower products + 256 * upper products) * step,
// ten byte-wise products and one multiplication where two whole planes take sixteen.

#if defined(__AVX512VNNI__) && !defined(FIRSTLIGHT_TILES)
#define FIRSTLIGHT_STEPS

constexpr bool kSteps = true;
// Groups whose lines lie together.
constexpr int kStripGroups = 4;
static_assert(kWidth == kPanelRows);

// A row's group of 32 columns.
struct StepLine {
    uint8_t lower[32], upper[8];
    uint8_t places[4];   // of the quads that the upper bytes belong to; two are used
    // The step is (1 + eighths / 8) * 2^shift.
    int32_t eighths, shift, step;
    int32_t multiples;  // the sum of all multiples
    float sum;          // of all values
};
static_assert(sizeof(StepLine) == 64);

inline int32_t sum_of_lanes(__m512i values) {
    __m256i halves[2];
    memcpy(halves, &values, sizeof halves);
    const __m256i eight = _mm256_add_epi32(halves[0], halves[1]);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}

inline void put_step_line(const GroupStep& step, const int32_t* multiples, StepLine* line) {
    uint8_t upper[32];
    __m512i sum = _mm512_setzero_si512();
    FIRSTLIGHT_UNROLL
    for (int i = 0; i < 32; i += 16) {
        const __m512i multiple = _mm512_loadu_si512(multiples + i);
        const auto over = (__m512i)(((Integers)multiple + broadcast_int(128)) >> 8);
        // The lowest byte of a multiple is the lower one, whatever was rounded into the upper.
        _mm_storeu_si128((__m128i*)(line->lower + i),
                         _mm512_maskz_cvtepi32_epi8(kAllLanes, multiple));
        _mm_storeu_si128((__m128i*)(upper + i), _mm512_maskz_cvtepi32_epi8(kAllLanes, over));
        sum = (__m512i)((Integers)sum + (Integers)multiple);
    }
    for (int i = 0; i < 2; ++i) {
        memcpy(line->upper + 4 * i, upper + 4 * step.fine[i], 4);
        line->places[i] = static_cast<uint8_t>(step.fine[i]);
    }
    const Integers bits = as_int(to_float(broadcast_int(step.step)));
    line->step = step.step;
    line->eighths = bits[0] >> 20 & 7;
    line->shift = (bits[0] >> 23) - 127;
    line->multiples = sum_of_lanes(sum);
    line->sum = static_cast<float>(line->multiples * step.step);
}

// The product of a group's codes with a row's line, once the lower bytes' have been added to what
// this gives: the upper bytes' products and what codes of 2^ZeroBits for zero have too much.
// codes(i) gives the codes of the quad at line.places[i].
template <int ZeroBits, class Source>
FIRSTLIGHT_INLINE __m512i upper_products(Source codes, const StepLine& line) {
    __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes(0),
                                      four_columns(line.upper));
    sum = _mm512_dpbusd_epi32(sum, codes(1), four_columns(line.upper + 4));
    const Integers shifted = (Integers)sum << 8;
    if constexpr (ZeroBits == 0) return (__m512i)shifted;
    return (__m512i)(shifted - (broadcast_int(line.multiples) << ZeroBits));
}

FIRSTLIGHT_INLINE Vector times_step(__m512i sum, const StepLine& line) {
    return to_float((Integers)_mm512_maskz_mullo_epi32(kAllLanes, sum, _mm512_set1_epi32(line.step)));
}

// Times the step's power of two alone.
FIRSTLIGHT_INLINE Vector times_power(__m512i sum, const StepLine& line) {
    const __m512i shift = _mm512_set1_epi32(line.shift);
    return to_float((Integers)_mm512_maskz_sllv_epi32(kAllLanes, sum, shift));
}

#else

constexpr bool kSteps = false;
constexpr int kStripGroups = 1;

struct StepLine {};

inline void put_step_line(const GroupStep&, const int32_t*, StepLine*) {}

#endif
