// 8-bit floating point, E4M3 without infinities (formats/float8.py), and the scales of blocks that its
// values are multiplied by (formats/base.py, BlockScales).

// kWidth values at any byte. As binary16 a code is a number too small by 2^8, subnormal or not, but for
// the NaNs, which become 480 so and get the exponent that means NaN.
inline Vector load_float8(const uint8_t* from) {
#if defined(__AVX512F__)
    const __m256i words = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)from));
    const __m256i half = _mm256_and_si256(_mm256_slli_epi16(words, 7), _mm256_set1_epi16((short)0xBF80));
    const __m256i most = _mm256_set1_epi16(0x3F80);
    const __m256i nan = _mm256_cmpeq_epi16(_mm256_and_si256(half, most), most);
    const __m256i quiet = _mm256_and_si256(nan, _mm256_set1_epi16(0x4000));
    return (Vector)_mm512_maskz_cvtph_ps(kAllLanes, _mm256_or_si256(half, quiet)) * 256.0f;
#elif defined(__F16C__)
    const __m128i words = _mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i*)from));
    const __m128i half = _mm_and_si128(_mm_slli_epi16(words, 7), _mm_set1_epi16((short)0xBF80));
    const __m128i most = _mm_set1_epi16(0x3F80);
    const __m128i nan = _mm_cmpeq_epi16(_mm_and_si128(half, most), most);
    const __m128i quiet = _mm_and_si128(nan, _mm_set1_epi16(0x4000));
    return (Vector)_mm256_cvtph_ps(_mm_or_si128(half, quiet)) * 256.0f;
#else
    uint8_t padded[16] = {};
    memcpy(padded, from, kWidth);
    const Integers codes = widen(load_bytes(padded), 0);
    const Vector values = as_float((codes & broadcast_int(0x7F)) << 20) * broadcast(0x1p120f);
    const Integers nan = less(broadcast(448.0f), values) & broadcast_int(0x7F800000);
    return as_float(as_int(values) | nan | (codes & broadcast_int(0x80)) << 24);
#endif
}

struct F8_E4M3 {
    static constexpr int kValues = kWidth, kBytes = kWidth;
    static constexpr bool kSingleValues = true;
    static Vector vector(const uint8_t* from) { return load_float8(from); }
};

// Whether a matrix of the format may have scales of blocks.
template <class Format>
constexpr bool kHasScales = false;
template <>
constexpr bool kHasScales<F8_E4M3> = true;

// Walks along a row from column to column, through stretches that share a scale.
struct ScaleWalk {
    const float* scale;
    int64_t block, next;  // columns of a block; where the next one begins

    // Without scales, all columns share one.
    ScaleWalk(const StoredMatrix& weight, int64_t row, int64_t column) {
        static constexpr float kOne = 1.0f;
        const BlockScales& scales = weight.scales;
        if (!scales.values) {
            scale = &kOne;
            block = next = weight.columns + 1;
            return;
        }
        const int64_t place = column / scales.columns;
        scale = scales.values + (scales.first_row + row) / scales.rows * scales.stride + place;
        block = scales.columns;
        next = (place + 1) * block;
    }

    // From there to `end`, or to where the scale changes; the walk goes on behind it.
    struct Stretch {
        float scale;
        int64_t end;
    };
    Stretch take(int64_t end) {
        const Stretch stretch{*scale, least(next, end)};
        if (stretch.end == next) {
            ++scale;
            next += block;
        }
        return stretch;
    }
};

// Multiplies values of a row, those of the columns from `start`, by their scales.
inline void multiply_scales(const StoredMatrix& weight, int64_t row, int64_t start, int64_t count,
                            float* values) {
    if (!weight.scales.values) return;
    ScaleWalk walk(weight, row, start);
    for (int64_t column = start; column < start + count;) {
        const auto [scale, end] = walk.take(start + count);
        float* to = values + (column - start);
        const int64_t size = end - column;
        int64_t i = 0;
        for (; i + kWidth <= size; i += kWidth) store(to + i, load(to + i) * scale);
        for (; i < size; ++i) to[i] *= scale;
        column = end;
    }
}

// sums[r] = row first + r of the weight . x over one chunk, the columns from `start`, each value
// decoded and multiplied by its scale on the way; `x` is that of the first of these columns.
template <int Rows>
inline void float8_dot_products(const StoredMatrix& weight, int64_t first, int64_t start,
                                int64_t count, const float* x, int64_t ahead, float* sums) {
    for (int r = 0; r < Rows; ++r) {
        const uint8_t* row = weight.data + (first + r) * weight.row_bytes + start;
        ScaleWalk walk(weight, first + r, start);
        Vector total = broadcast(0.0f);
        for (int64_t i = 0; i < count;) {
            const auto stretch = walk.take(start + count);
            const int64_t end = stretch.end - start;
            for (; i + kWidth <= end; i += kWidth) {
                if (i % 64 == 0) FIRSTLIGHT_FETCH_FAR(row + i + ahead);
                total = multiply_add(load_float8(row + i) * stretch.scale, load(x + i), total);
            }
            if (i < end) {
                uint8_t padded[kWidth] = {};
                memcpy(padded, row + i, static_cast<size_t>(end - i));
                const Vector values = load_float8(padded) * stretch.scale;
                total = multiply_add(values, load_first(x + i, end - i), total);
                i = end;
            }
        }
        sums[r] = sum(total);
    }
}
