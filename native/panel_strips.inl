// Products of many rows of x with weights in panels, by steps (step_lines.inl). A strip, that is a few
// groups of a few panels, is taken apart once, into bytes and float32 that stay in the first-level
// cache, and then meets one pair of rows of x after another. Everything is added up as
// packed_linear.inl says.

#if defined(FIRSTLIGHT_STEPS)

constexpr int kStripPanels = 4, kStripPair = 2;

// What is left of a format once its codes are bytes. A group of a strip is eight vectors of codes
// for each panel; then for each panel its scales and, if any, its minima.
//
// Where float32 holds every sum of a group times its step exactly (kExact), so that only the
// multiplication by the scale rounds, part of the step may come with the scale: then there are eight
// vectors of scales, times 1 + i / 8. That spares a multiplication for each sum.
template <int ZeroBits, bool Minimum, bool Exact>
struct StripForm {
    static constexpr int kZeroBits = ZeroBits;
    static constexpr bool kMinimum = Minimum, kExact = Exact;
    static constexpr int kScales = Exact ? 8 : 1;
    static constexpr int64_t kCodeBytes = 8 * kPlaneBytes;
    static constexpr int64_t kScaleBytes = 64 * (kScales + Minimum);
    static constexpr int64_t kPanelBytes = kCodeBytes + kScaleBytes;
};

// The largest magnitude of a code, less what stands for zero, times 32 of the largest values of x,
// which rounding to a step may raise by 128. Scales have at most 20 significant bits.
template <class Format>
constexpr bool kExactSums =
    (Format::kZeroBits ? 1 << Format::kZeroBits : (1 << Format::kBits) - 1) * 32 * (32511 + 128) <
    1 << 24;

template <class Format>
using FormOf = StripForm<Format::kZeroBits, Format::kMinimum, kExactSums<Format>>;

// Takes `groups` groups of a unit apart, from `at`, as panel `panel` of a strip of `panels`.
template <class Format>
inline void fill_strip(const typename Format::Unit& scales_of, const uint8_t* at, int groups,
                       int panel, int panels, uint8_t* strip) {
    using Form = FormOf<Format>;
    for (int g = 0; g < groups; ++g, at += Format::kShape.group_bytes()) {
        each_place<8>([&](auto quad) FIRSTLIGHT_INLINED {
            constexpr int kQuad = decltype(quad)::value;
            const Codes codes = quad_of<Format, kQuad>(at, 0);
            memcpy(strip + panel * Form::kCodeBytes + kQuad * kPlaneBytes, &codes, sizeof codes);
        });
        const auto scales = scales_of.scales(at + kPlaneBytes * Format::kBits, 0);
        uint8_t* to = strip + panels * Form::kCodeBytes + panel * Form::kScaleBytes;
        FIRSTLIGHT_UNROLL
        for (int i = 0; i < Form::kScales; ++i) {
            const float part = 1.0f + 0.125f * static_cast<float>(i);
            store(to + 64 * i, i ? scales.scale[0] * broadcast(part) : scales.scale[0]);
        }
        if constexpr (Form::kMinimum) store(to + 64 * Form::kScales, scales.minimum[0]);
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

// A strip times some rows of x, whose lines these are.
template <class Form, int Panels, int Rows>
FIRSTLIGHT_APART void strip_rows(const uint8_t* strip, const StepLine* line, int groups,
                                 Vector* totals) {
    Vector total[Rows][Panels];
    FIRSTLIGHT_UNROLL
    for (int m = 0; m < Rows; ++m) {
        FIRSTLIGHT_UNROLL
        for (int p = 0; p < Panels; ++p) FIRSTLIGHT_FETCH(totals + (Rows + m) * Panels + p);
    }
    FIRSTLIGHT_UNROLL
    for (int m = 0; m < Rows; ++m) {
        FIRSTLIGHT_UNROLL
        for (int p = 0; p < Panels; ++p) total[m][p] = totals[m * Panels + p];
    }
    for (int g = 0; g < groups; ++g, ++line) {
        __m512i sum[Rows][Panels];
        FIRSTLIGHT_UNROLL
        for (int m = 0; m < Rows; ++m) {
            FIRSTLIGHT_UNROLL
            for (int p = 0; p < Panels; ++p) {
                sum[m][p] = upper_products<Form::kZeroBits>(
                    [&](int i) FIRSTLIGHT_INLINED {
                        const int64_t place = line[m * kStripGroups].places[i];
                        return (__m512i)load_codes(strip + kPlaneBytes * place +
                                                   p * Form::kCodeBytes);
                    },
                    line[m * kStripGroups]);
            }
        }
        FIRSTLIGHT_UNROLL
        for (int m = 0; m < Rows; ++m) FIRSTLIGHT_FETCH(line + (Rows + m) * kStripGroups);
        FIRSTLIGHT_UNROLL
        for (int q = 0; q < 8; ++q) {
            __m512i codes[Panels];
            FIRSTLIGHT_UNROLL
            for (int p = 0; p < Panels; ++p) {
                codes[p] = (__m512i)load_codes(strip + kPlaneBytes * q + p * Form::kCodeBytes);
            }
            FIRSTLIGHT_UNROLL
            for (int m = 0; m < Rows; ++m) {
                const __m512i x = four_columns(line[m * kStripGroups].lower + 4 * q);
                FIRSTLIGHT_UNROLL
                for (int p = 0; p < Panels; ++p) {
                    sum[m][p] = _mm512_dpbusd_epi32(sum[m][p], codes[p], x);
                }
            }
        }
        const uint8_t* scales = strip + Panels * Form::kCodeBytes;
        FIRSTLIGHT_UNROLL
        for (int p = 0; p < Panels; ++p) {
            const uint8_t* own = scales + p * Form::kScaleBytes;
            FIRSTLIGHT_UNROLL
            for (int m = 0; m < Rows; ++m) {
                const StepLine& at = line[m * kStripGroups];
                const Vector product = Form::kExact ? times_power(sum[m][p], at)
                                                    : times_step(sum[m][p], at);
                const Vector scale = load(own + (Form::kExact ? 64 * int64_t{at.eighths} : 0));
                total[m][p] = total[m][p] + product * scale;
            }
            if constexpr (Form::kMinimum) {
                const Vector minimum = load(own + 64 * Form::kScales);
                FIRSTLIGHT_UNROLL
                for (int m = 0; m < Rows; ++m) {
                    const Vector all = broadcast(line[m * kStripGroups].sum);
                    total[m][p] = total[m][p] + minimum * all;
                }
            }
        }
        strip += Panels * Form::kPanelBytes;
    }
    FIRSTLIGHT_UNROLL
    for (int m = 0; m < Rows; ++m) {
        FIRSTLIGHT_UNROLL
        for (int p = 0; p < Panels; ++p) totals[m * Panels + p] = total[m][p];
    }
}

// Whether a quad named by a line is taken from where its panel lies. Else all eight are put down as
// bytes first.
template <class Format, int Rows>
constexpr bool kQuadsInPlace = Format::kBits == 8 || (Format::kBits == 4 && Rows <= 2);

// The codes of the quad at line.places[i].
template <class Format>
FIRSTLIGHT_INLINE __m512i quad_in_place(const uint8_t* group, const StepLine& line, int i) {
    if constexpr (Format::kBits == 8) {
        return (__m512i)load_codes(group + kPlaneBytes * int64_t{line.places[i]});
    }
    const auto both = (__m512i)load_codes(group + kPlaneBytes * int64_t{line.places[i] & 3u});
    // A quad of the last four lies in upper nibbles.
    const __m128i shift = _mm_cvtsi32_si128(line.places[i] & 4);
    const __m512i down = _mm512_maskz_srl_epi16((__mmask32)-1, both, shift);
    const auto codes = (Codes)down & (15 - Codes{});
    if constexpr (requires { Format::kTable; }) {
        return (__m512i)look_up_codes(Format::kTable.bytes, codes);
    } else {
        return (__m512i)codes;
    }
}

// A panel times rows of x whose first lines these are, with `count` rows in all. Few rows: its codes
// go through registers once for all of them.
template <class Format, int Rows>
FIRSTLIGHT_APART void panel_rows(const uint8_t* panel, const StepLine* lines, int64_t count,
                                 int64_t groups, int64_t ahead, Vector* totals) {
    constexpr PanelShape kShape = Format::kShape;
    static_assert(kShape.groups == 1 || kShape.groups % kStripGroups == 0);
    constexpr int kFetches = static_cast<int>((kShape.group_bytes() + kLine - 1) / kLine);
    Vector total[Rows];
    FIRSTLIGHT_UNROLL
    for (int m = 0; m < Rows; ++m) total[m] = broadcast(0.0f);
    for (int64_t group = 0; group < groups; group += kStripGroups) {
        const uint8_t* unit = panel + group / kShape.groups * kShape.unit_bytes();
        const uint8_t* at = unit + kShape.header + group % kShape.groups * kShape.group_bytes();
        const typename Format::Unit scales_of(unit, 0);
        const StepLine* line = lines + group * count;
        const StepLine* end = line + least(kStripGroups, groups - group);
        for (; line < end; ++line) {
            FIRSTLIGHT_UNROLL
            for (int i = 0; i < kFetches; ++i) {
                // In two leaps: the first-level cache has too few places for lines on their way
                // to hide the memory's latency.
                FIRSTLIGHT_FETCH_FAR(at + ahead + i * kLine);
                FIRSTLIGHT_FETCH(at + 3 * kShape.group_bytes() + i * kLine);
            }
            alignas(64) uint8_t bytes[8 * kPlaneBytes];
            __m512i quads[8];
            each_place<8>([&](auto quad) FIRSTLIGHT_INLINED {
                constexpr int kQuad = decltype(quad)::value;
                quads[kQuad] = (__m512i)quad_of<Format, kQuad>(at, 0);
                if constexpr (!kQuadsInPlace<Format, Rows>) {
                    _mm512_store_si512(bytes + kQuad * kPlaneBytes, quads[kQuad]);
                }
            });
            __m512i sum[Rows];
            FIRSTLIGHT_UNROLL
            for (int m = 0; m < Rows; ++m) {
                sum[m] = upper_products<Format::kZeroBits>(
                    [&](int i) FIRSTLIGHT_INLINED {
                        if constexpr (kQuadsInPlace<Format, Rows>) {
                            return quad_in_place<Format>(at, line[m * kStripGroups], i);
                        } else {
                            return _mm512_load_si512(
                                bytes + kPlaneBytes * line[m * kStripGroups].places[i]);
                        }
                    },
                    line[m * kStripGroups]);
            }
            FIRSTLIGHT_UNROLL
            for (int q = 0; q < 8; ++q) {
                FIRSTLIGHT_UNROLL
                for (int m = 0; m < Rows; ++m) {
                    const uint8_t* from = line[m * kStripGroups].lower + 4 * q;
                    sum[m] = _mm512_dpbusd_epi32(sum[m], quads[q], four_columns(from));
                }
            }
            const auto scales = scales_of.scales(at + kPlaneBytes * Format::kBits, 0);
            FIRSTLIGHT_UNROLL
            for (int m = 0; m < Rows; ++m) {
                const Vector product = times_step(sum[m], line[m * kStripGroups]);
                total[m] = total[m] + product * scales.scale[0];
            }
            if constexpr (Format::kMinimum) {
                FIRSTLIGHT_UNROLL
                for (int m = 0; m < Rows; ++m) {
                    const Vector all = broadcast(line[m * kStripGroups].sum);
                    total[m] = total[m] + scales.minimum[0] * all;
                }
            }
            at += kShape.group_bytes();
        }
    }
    FIRSTLIGHT_UNROLL
    for (int m = 0; m < Rows; ++m) totals[m] = total[m];
}

#else

constexpr int kStripPanels = 1;

#endif

// Whether products with weights of that format go by steps.
template <class Format>
constexpr bool kBySteps = kSteps && Format::kRuns == 1;

inline bool by_steps(BlockFormat format) {
    bool steps = false;
    with_packed_format(format, [&](auto type) {
        steps = kBySteps<typename decltype(type)::type>;
    });
    return steps;
}
