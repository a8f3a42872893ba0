// 8-bit floating point, E4M3 without infinities (formats/float8.py).

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

// Whether a matrix of the format may have scales of its own.
template <class Format>
constexpr bool kHasScales = false;
template <>
constexpr bool kHasScales<F8_E4M3> = true;
