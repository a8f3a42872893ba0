// Products of many rows of x with weights in panels, where bytes can be multiplied by the quad. A
// strip, that is a few groups of up to eight panels, is taken apart once, into bytes and float32
// that stay in the first-level cache, and then meets one row of x after another. Of a row's group
// the six quads that were rounded to a step are multiplied once, the two that keep 16 bits twice,
// as two planes. Everything is added up as packed_linear.inl says.

#if defined(__AVX512VNNI__) && !defined(FIRSTLIGHT_TILES)
#define FIRSTLIGHT_STRIPS

constexpr bool kStrips = true;
constexpr int kStripGroups = 4, kStripPanels = 8;
// With fewer rows taking strips apart does not pay.
constexpr int64_t kStripLeastRows = 9;
static_assert(kWidth == kPanelRows);

// A row's group of 32 columns. Six quads as multiples of the step and two as upper and lower
// bytes; an eighth of the place of each quad's codes in a strip, in the same order; the sum of all
// values.
struct StripLine {
    uint8_t multiples[24], upper[8], lower[8], places[8];
    int32_t step, sum, unused[2];
};
static_assert(sizeof(StripLine) == 64);

inline void put_strip_line(const GroupRounding& rounding, const int32_t* rounded,
                           const int32_t* multiples, int32_t sum, StripLine* line) {
    const auto bytes = [](const auto& word_of) FIRSTLIGHT_INLINED {
        const __m128i low = _mm512_maskz_cvtepi32_epi8(kAllLanes, word_of(0));
        const __m128i high = _mm512_maskz_cvtepi32_epi8(kAllLanes, word_of(16));
        return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    };
    const auto of = [](const int32_t* from) FIRSTLIGHT_INLINED {
        return [from](int i) FIRSTLIGHT_INLINED { return _mm512_loadu_si512(from + i); };
    };
    const __m256i upper = bytes([&](int i) FIRSTLIGHT_INLINED {
        Integers value;
        memcpy(&value, rounded + i, sizeof value);
        return (__m512i)((value + broadcast_int(128)) >> 8);
    });
    const auto fine = static_cast<__mmask8>(rounding.fine);
    const auto coarse = static_cast<__mmask8>(~fine);
    const auto first_of = [](__mmask8 mask, __m256i words) FIRSTLIGHT_INLINED {
        return _mm_cvtsi128_si64(_mm256_castsi256_si128(_mm256_maskz_compress_epi32(mask, words)));
    };
    const __m256i all_places = _mm256_setr_epi32(0, 8, 16, 24, 32, 40, 48, 56);
    const auto places_of = [&](__mmask8 mask) FIRSTLIGHT_INLINED {
        const __m256i some = _mm256_maskz_compress_epi32(mask, all_places);
        return _mm_cvtsi128_si64(_mm256_maskz_cvtepi32_epi8(0xFF, some));
    };
    const int64_t upper_words = first_of(fine, upper);
    const int64_t lower_words = first_of(fine, bytes(of(rounded)));
    const int64_t places = places_of(coarse) | places_of(fine) << 48;
    _mm256_storeu_si256((__m256i*)line, _mm256_maskz_compress_epi32(coarse, bytes(of(multiples))));
    memcpy(line->upper, &upper_words, 8);
    memcpy(line->lower, &lower_words, 8);
    memcpy(line->places, &places, 8);
    line->step = rounding.step;
    line->sum = sum;
}

// What is left of a format once its codes are bytes. A group of a strip is eight vectors of codes
// for each panel; then for each panel its scales and, if any, its minima.
template <int ZeroBits, bool Minimum>
struct StripForm {
    static constexpr int kZeroBits = ZeroBits;
    static constexpr bool kMinimum = Minimum;
    static constexpr int64_t kCodeBytes = 8 * kPlaneBytes;
    static constexpr int64_t kScaleBytes = Minimum ? 128 : 64;
    static constexpr int64_t kPanelBytes = kCodeBytes + kScaleBytes;
};

// Takes `groups` groups of a unit apart, from `at`, as one of a strip's `panels`.
template <class Format>
inline void fill_strip(const typename Format::Unit& scales_of, const uint8_t* at, int groups,
                       int panel, int panels, uint8_t* strip) {
    using Form = StripForm<Format::kZeroBits, Format::kMinimum>;
    for (int g = 0; g < groups; ++g, at += Format::kShape.group_bytes()) {
        each_place<8>([&](auto quad) FIRSTLIGHT_INLINED {
            constexpr int kQuad = decltype(quad)::value;
            const Codes codes = quad_of<Format, kQuad>(at, 0);
            memcpy(strip + panel * Form::kCodeBytes + kQuad * kPlaneBytes, &codes, sizeof codes);
        });
        const auto scales = scales_of.scales(at + kPlaneBytes * Format::kBits, 0);
        uint8_t* to = strip + panels * Form::kCodeBytes + panel * Form::kScaleBytes;
        store(to, scales.scale[0]);
        if constexpr (Form::kMinimum) store(to + 64, scales.minimum[0]);
        strip += panels * Form::kPanelBytes;
    }
}

// Weights that are needed next, brought nearer bit by bit.
struct StripFetch {
    const uint8_t* at[kStripPanels];
    int64_t bytes;  // of each
    int panel = 0;
    int64_t place = 0;

    FIRSTLIGHT_INLINE void some(int lines, int panels) {
        for (; lines > 0 && panel < panels; --lines) {
            FIRSTLIGHT_FETCH_FAR(at[panel] + place);
            place += 64;
            if (place >= bytes) {
                place = 0;
                ++panel;
            }
        }
    }
};

// A strip times one row of x, whose lines these are.
template <class Form, int Panels>
inline void strip_row(const uint8_t* strip, const StripLine* line, int groups, Vector* totals) {
    Vector total[Panels];
    FIRSTLIGHT_UNROLL
    for (int p = 0; p < Panels; ++p) total[p] = totals[p];
    for (int g = 0; g < groups; ++g, ++line) {
        __m512i product[Panels], upper[Panels];
        FIRSTLIGHT_UNROLL
        for (int p = 0; p < Panels; ++p) product[p] = upper[p] = _mm512_setzero_si512();
        FIRSTLIGHT_UNROLL
        for (int q = 0; q < 6; ++q) {
            const __m512i x = four_columns(line->multiples + 4 * q);
            const uint8_t* codes = strip + 8 * int64_t{line->places[q]};
            FIRSTLIGHT_UNROLL
            for (int p = 0; p < Panels; ++p) {
                const auto some = (__m512i)load_codes(codes + p * Form::kCodeBytes);
                product[p] = _mm512_dpbusd_epi32(product[p], some, x);
            }
        }
        const __m512i step = _mm512_set1_epi32(line->step);
        FIRSTLIGHT_UNROLL
        for (int p = 0; p < Panels; ++p) {
            product[p] = _mm512_maskz_mullo_epi32(kAllLanes, product[p], step);
        }
        FIRSTLIGHT_UNROLL
        for (int q = 0; q < 2; ++q) {
            const __m512i x = four_columns(line->upper + 4 * q);
            const __m512i y = four_columns(line->lower + 4 * q);
            const uint8_t* codes = strip + 8 * int64_t{line->places[6 + q]};
            FIRSTLIGHT_UNROLL
            for (int p = 0; p < Panels; ++p) {
                const auto some = (__m512i)load_codes(codes + p * Form::kCodeBytes);
                upper[p] = _mm512_dpbusd_epi32(upper[p], some, x);
                product[p] = _mm512_dpbusd_epi32(product[p], some, y);
            }
        }
        const uint8_t* scales = strip + Panels * Form::kCodeBytes;
        const Integers zero = broadcast_int(line->sum) << Form::kZeroBits;
        FIRSTLIGHT_UNROLL
        for (int p = 0; p < Panels; ++p) {
            Integers all = ((Integers)upper[p] << 8) + (Integers)product[p];
            if constexpr (Form::kZeroBits > 0) all = all - zero;
            const Vector scale = load(scales + p * Form::kScaleBytes);
            total[p] = total[p] + to_float(all) * scale;
        }
        if constexpr (Form::kMinimum) {
            const Vector sum = broadcast(static_cast<float>(line->sum));
            FIRSTLIGHT_UNROLL
            for (int p = 0; p < Panels; ++p) {
                const Vector minimum = load(scales + p * Form::kScaleBytes + 64);
                total[p] = total[p] + minimum * sum;
            }
        }
        strip += Panels * Form::kPanelBytes;
    }
    FIRSTLIGHT_UNROLL
    for (int p = 0; p < Panels; ++p) totals[p] = total[p];
}

#else

constexpr bool kStrips = false;
constexpr int64_t kStripLeastRows = 0;
constexpr int kStripPanels = 1, kStripGroups = 1;

struct StripLine {};

inline void put_strip_line(const GroupRounding&, const int32_t*, const int32_t*, int32_t,
                           StripLine*) {}

#endif

// Whether so many rows of x meet a weight of that format in strips.
template <class Format>
constexpr bool kInStrips = kStrips && Format::kRuns == 1;

inline bool in_strips(BlockFormat format, int64_t rows) {
    bool strips = false;
    with_packed_format(format, [&](auto type) {
        strips = kInStrips<typename decltype(type)::type> && rows >= kStripLeastRows;
    });
    return strips;
}
