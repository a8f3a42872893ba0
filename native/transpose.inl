// The transpose of kWidth rows of kWidth values, by log2(kWidth) rounds of interleaving.

#if defined(__has_builtin) && !defined(FIRSTLIGHT_PLAIN_VECTORS)
#if __has_builtin(__builtin_shufflevector)
#define FIRSTLIGHT_SHUFFLES
#endif
#endif

#if defined(FIRSTLIGHT_SHUFFLES)

// a0 b0 a1 b1 ... of the lower halves of a and b, and of the upper.
#if defined(__AVX512F__)
FIRSTLIGHT_INLINE Vector interleave_lower(Vector a, Vector b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
FIRSTLIGHT_INLINE Vector interleave_upper(Vector a, Vector b) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                   31);
}
#elif defined(__AVX2__)
FIRSTLIGHT_INLINE Vector interleave_lower(Vector a, Vector b) {
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
FIRSTLIGHT_INLINE Vector interleave_upper(Vector a, Vector b) {
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
#else
FIRSTLIGHT_INLINE Vector interleave_lower(Vector a, Vector b) {
    return __builtin_shufflevector(a, b, 0, 4, 1, 5);
}
FIRSTLIGHT_INLINE Vector interleave_upper(Vector a, Vector b) {
    return __builtin_shufflevector(a, b, 2, 6, 3, 7);
}
#endif

// to[2i] and to[2i + 1]: vectors i and i + kWidth / 2 interleaved.
FIRSTLIGHT_INLINE void interleave_all(const Vector (&from)[kWidth], Vector (&to)[kWidth]) {
#if defined(__GNUC__)
#pragma GCC unroll 8
#endif
    for (int i = 0; i < kWidth / 2; ++i) {
        to[2 * i] = interleave_lower(from[i], from[i + kWidth / 2]);
        to[2 * i + 1] = interleave_upper(from[i], from[i + kWidth / 2]);
    }
}

FIRSTLIGHT_INLINE void transpose(Vector (&rows)[kWidth]) {
    Vector other[kWidth];
    interleave_all(rows, other);
    interleave_all(other, rows);
    if constexpr (kWidth == 16) {
        interleave_all(rows, other);
        interleave_all(other, rows);
    } else if constexpr (kWidth == 8) {
        interleave_all(rows, other);
        for (int i = 0; i < kWidth; ++i) rows[i] = other[i];
    }
}

#else

inline void transpose(Vector (&rows)[kWidth]) {
    float lanes[kWidth][kWidth], turned[kWidth][kWidth];
    memcpy(lanes, rows, sizeof lanes);
    for (int i = 0; i < kWidth; ++i) {
        for (int j = 0; j < kWidth; ++j) turned[j][i] = lanes[i][j];
    }
    memcpy(rows, turned, sizeof lanes);
}

#endif

// to[i * stride + j] = value i of row j; row j lies at base + offset[j].
inline void transpose(const uint8_t* base, const int64_t* offset, float* to, int64_t stride) {
    Vector rows[kWidth];
    for (int i = 0; i < kWidth; ++i) rows[i] = load(base + offset[i]);
    transpose(rows);
    for (int i = 0; i < kWidth; ++i) store(to + i * stride, rows[i]);
}
