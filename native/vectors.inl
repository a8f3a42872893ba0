// A vector of kWidth float32 values and the few operations that the kernels need.
//
// With GCC and Clang it is a vector type of the compiler, as wide as the instruction level allows;
// elsewhere an array and loops. Multiplications and additions are fused only where
// `multiply_add` says so: decoding must round as the formats' definitions do, and the build turns
// off the compiler's own fusing.

#if defined(__AVX512F__)
constexpr int kWidth = 16;
// GCC 12's intrinsics without a mask read a variable that they do not set, and warn of it.
constexpr __mmask16 kAllLanes = 0xFFFF;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

#if (defined(__GNUC__) || defined(__clang__)) && !defined(FIRSTLIGHT_PLAIN_VECTORS)

typedef float Vector __attribute__((vector_size(4 * kWidth)));
typedef int32_t Integers __attribute__((vector_size(4 * kWidth)));
typedef uint16_t HalfLanes __attribute__((vector_size(2 * kWidth)));
typedef float FourLanes __attribute__((vector_size(16)));
typedef float EightLanes __attribute__((vector_size(32)));

inline Vector broadcast(float value) { return value - Vector{}; }
inline Integers broadcast_int(int32_t value) { return value - Integers{}; }
inline Vector to_float(Integers values) { return __builtin_convertvector(values, Vector); }
// Towards zero; NaN and values beyond the range give any integer.
inline Integers to_int(Vector values) { return __builtin_convertvector(values, Integers); }
inline Integers shift_right(Integers values, int bits) {
    typedef uint32_t Unsigned __attribute__((vector_size(4 * kWidth)));
    return (Integers)((Unsigned)values >> bits);
}
inline Vector as_float(Integers bits) { return (Vector)bits; }
inline Integers as_int(Vector values) { return (Integers)values; }
inline Integers less(Vector a, Vector b) { return a < b; }
inline Integers equal(Vector a, Vector b) { return a == b; }

#else

template <class T>
struct Lanes {
    T lane[kWidth];
    T& operator[](int i) { return lane[i]; }
    const T& operator[](int i) const { return lane[i]; }
};
typedef Lanes<float> Vector;
typedef Lanes<int32_t> Integers;

template <class T, class F>
inline auto each_lane(F function) {
    Lanes<T> out;
    for (int i = 0; i < kWidth; ++i) out[i] = static_cast<T>(function(i));
    return out;
}

#define FIRSTLIGHT_LANE_OPERATOR(symbol, T)                                       \
    inline Lanes<T> operator symbol(const Lanes<T>& a, const Lanes<T>& b) {       \
        return each_lane<T>([&](int i) { return a[i] symbol b[i]; });             \
    }                                                                             \
    inline Lanes<T> operator symbol(const Lanes<T>& a, T b) {                     \
        return each_lane<T>([&](int i) { return a[i] symbol b; });                \
    }                                                                             \
    inline Lanes<T> operator symbol(T a, const Lanes<T>& b) {                     \
        return each_lane<T>([&](int i) { return a symbol b[i]; });                \
    }
FIRSTLIGHT_LANE_OPERATOR(+, float)
FIRSTLIGHT_LANE_OPERATOR(-, float)
FIRSTLIGHT_LANE_OPERATOR(*, float)
FIRSTLIGHT_LANE_OPERATOR(/, float)
FIRSTLIGHT_LANE_OPERATOR(+, int32_t)
FIRSTLIGHT_LANE_OPERATOR(-, int32_t)
FIRSTLIGHT_LANE_OPERATOR(*, int32_t)
FIRSTLIGHT_LANE_OPERATOR(&, int32_t)
FIRSTLIGHT_LANE_OPERATOR(|, int32_t)
#undef FIRSTLIGHT_LANE_OPERATOR

inline Integers operator~(const Integers& a) {
    return each_lane<int32_t>([&](int i) { return ~a[i]; });
}
inline Integers operator<<(const Integers& a, int bits) {
    return each_lane<int32_t>([&](int i) { return uint32_t(a[i]) << bits; });
}
inline Integers shift_right(const Integers& a, int bits) {
    return each_lane<int32_t>([&](int i) { return uint32_t(a[i]) >> bits; });
}
inline Vector broadcast(float value) {
    return each_lane<float>([&](int) { return value; });
}
inline Integers broadcast_int(int32_t value) {
    return each_lane<int32_t>([&](int) { return value; });
}
inline Vector to_float(const Integers& values) {
    return each_lane<float>([&](int i) { return values[i]; });
}
inline Integers to_int(const Vector& values) {
    return each_lane<int32_t>([&](int i) {
        const bool inside = values[i] > -2147483648.0f && values[i] < 2147483648.0f;
        return inside ? static_cast<int32_t>(values[i]) : INT32_MIN;
    });
}
inline Vector as_float(const Integers& bits) {
    Vector out;
    memcpy(&out, &bits, sizeof out);
    return out;
}
inline Integers as_int(const Vector& values) {
    Integers out;
    memcpy(&out, &values, sizeof out);
    return out;
}
inline Integers less(const Vector& a, const Vector& b) {
    return each_lane<int32_t>([&](int i) { return a[i] < b[i] ? -1 : 0; });
}
inline Integers equal(const Vector& a, const Vector& b) {
    return each_lane<int32_t>([&](int i) { return a[i] == b[i] ? -1 : 0; });
}

#endif

// Loads and stores at any byte.
inline Vector load(const void* from) {
    Vector out;
    memcpy(&out, from, sizeof out);
    return out;
}

inline void store(void* to, const Vector& values) { memcpy(to, &values, sizeof values); }

// The first `count` < kWidth values, and zeros.
inline Vector load_first(const void* from, int64_t count) {
    float lanes[kWidth] = {};
    memcpy(lanes, from, static_cast<size_t>(count) * sizeof(float));
    return load(lanes);
}

inline void store_first(void* to, const Vector& values, int64_t count) {
    float lanes[kWidth];
    store(lanes, values);
    memcpy(to, lanes, static_cast<size_t>(count) * sizeof(float));
}

// kWidth 16-bit words, which lie at any byte, as integers.
inline Integers widen_words(const void* from) {
#if defined(__AVX512F__)
    return (Integers)_mm512_maskz_cvtepu16_epi32(kAllLanes, _mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
    return (Integers)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
#elif defined(__SSE2__) && !defined(FIRSTLIGHT_PLAIN_VECTORS)
    const __m128i words = _mm_loadl_epi64((const __m128i*)from);
    return (Integers)_mm_unpacklo_epi16(words, _mm_setzero_si128());
#elif (defined(__GNUC__) || defined(__clang__)) && !defined(FIRSTLIGHT_PLAIN_VECTORS)
    HalfLanes words;
    memcpy(&words, from, sizeof words);
    return __builtin_convertvector(words, Integers);
#else
    uint16_t words[kWidth];
    memcpy(words, from, sizeof words);
    return each_lane<int32_t>([&](int i) { return words[i]; });
#endif
}

// The larger of signed integers.
inline Integers larger(Integers a, Integers b) {
#if (defined(__GNUC__) || defined(__clang__)) && !defined(FIRSTLIGHT_PLAIN_VECTORS)
    return a > b ? a : b;
#else
    return each_lane<int32_t>([&](int i) { return a[i] > b[i] ? a[i] : b[i]; });
#endif
}

inline Vector select(Integers mask, Vector yes, Vector no) {
    return as_float((as_int(yes) & mask) | (as_int(no) & ~mask));
}

// NaN in `a` stays: the instructions give their second operand where either is NaN.
#if defined(__AVX512F__)
inline Vector at_least(Vector a, Vector bound) {
    return (Vector)_mm512_maskz_max_ps(kAllLanes, (__m512)bound, (__m512)a);
}
inline Vector at_most(Vector a, Vector bound) {
    return (Vector)_mm512_maskz_min_ps(kAllLanes, (__m512)bound, (__m512)a);
}
#elif defined(__AVX2__)
inline Vector at_least(Vector a, Vector bound) {
    return (Vector)_mm256_max_ps((__m256)bound, (__m256)a);
}
inline Vector at_most(Vector a, Vector bound) {
    return (Vector)_mm256_min_ps((__m256)bound, (__m256)a);
}
#else
inline Vector at_least(Vector a, Vector bound) { return select(less(a, bound), bound, a); }
inline Vector at_most(Vector a, Vector bound) { return select(less(bound, a), bound, a); }
#endif

// a * b + c, in one rounding where the level can.
inline Vector multiply_add(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
    return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__) && defined(__ARM_NEON) && !defined(FIRSTLIGHT_PLAIN_VECTORS)
    return (Vector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

#if defined(__AVX2__)
// Halves joined until four lanes are left.
template <class Join>
FIRSTLIGHT_INLINE __m128 fold(Vector values, Join join) {
    __m256 eight;
#if defined(__AVX512F__)
    __m256 halves[2];
    memcpy(halves, &values, sizeof halves);
    eight = (__m256)join((EightLanes)halves[0], (EightLanes)halves[1]);
#else
    eight = (__m256)values;
#endif
    __m128 quarters[2];
    memcpy(quarters, &eight, sizeof quarters);
    return (__m128)join((FourLanes)quarters[0], (FourLanes)quarters[1]);
}
#endif

// The sum of all lanes: halves are added until four are left, then (l0 + l2) + (l1 + l3). `sum4`
// adds in the same order, so both give the same bits.
inline float sum(Vector values) {
#if defined(__AVX2__)
    float lanes[4];
    _mm_storeu_ps(lanes, fold(values, [](auto a, auto b) { return a + b; }));
#else
    float lanes[kWidth];
    store(lanes, values);
    for (int half = kWidth / 2; half >= 4; half /= 2) {
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
#endif
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

// The sums of four vectors.
inline void sum4(Vector a, Vector b, Vector c, Vector d, float out[4]) {
#if defined(__AVX2__)
    const auto quarter = [](Vector v) {
        return fold(v, [](auto x, auto y) { return x + y; });
    };
    const __m128 qa = quarter(a), qb = quarter(b), qc = quarter(c), qd = quarter(d);
    const __m128 ab = _mm_add_ps(_mm_unpacklo_ps(qa, qb), _mm_unpackhi_ps(qa, qb));
    const __m128 cd = _mm_add_ps(_mm_unpacklo_ps(qc, qd), _mm_unpackhi_ps(qc, qd));
    _mm_storeu_ps(out, _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab)));
#else
    out[0] = sum(a);
    out[1] = sum(b);
    out[2] = sum(c);
    out[3] = sum(d);
#endif
}

// The largest lane. A NaN counts as any number.
inline float largest(Vector values) {
#if defined(__AVX2__)
    float lanes[4];
    _mm_storeu_ps(lanes, fold(values, [](auto a, auto b) { return a < b ? b : a; }));
    constexpr int kLanes = 4;
#else
    float lanes[kWidth];
    store(lanes, values);
    constexpr int kLanes = kWidth;
#endif
    float most = lanes[0];
    for (int i = 1; i < kLanes; ++i) most = lanes[i] > most ? lanes[i] : most;
    return most;
}

inline float bits_to_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// The upper halves of float32 values.
inline Vector load_bfloat16(const void* from) { return as_float(widen_words(from) << 16); }

// IEEE 754 binary16. Its exponent is moved to float32's place and scaled by 2^112, which is exact
// for subnormal numbers too; infinity and NaN get the exponent that means so.
inline Vector load_float16(const void* from) {
#if defined(__AVX512F__)
    return (Vector)_mm512_maskz_cvtph_ps(kAllLanes, _mm256_loadu_si256((const __m256i*)from));
#elif defined(__F16C__)
    return (Vector)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
    const Integers words = widen_words(from);
    const Integers magnitude = (words & broadcast_int(0x7FFF)) << 13;
    const Vector scaled = as_float(magnitude) * broadcast(0x1p112f);
    const Integers special = less(broadcast(65504.0f), scaled) & broadcast_int(0x7F800000);
    const Integers sign = (words & broadcast_int(0x8000)) << 16;
    return as_float(as_int(scaled) | special | sign);
#endif
}

inline float load_half(const uint8_t* from) {
    uint16_t half;
    memcpy(&half, from, sizeof half);
#if defined(__F16C__)
    return _cvtsh_ss(half);
#else
    const float scaled = bits_to_float(uint32_t(half & 0x7FFF) << 13) * 0x1p112f;
    uint32_t bits;
    memcpy(&bits, &scaled, sizeof bits);
    if (scaled > 65504.0f) bits |= 0x7F800000;
    return bits_to_float(bits | uint32_t(half & 0x8000) << 16);
#endif
}
