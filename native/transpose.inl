// Rows into columns, in registers.

#if defined(__AVX512F__)

// Rows of sixteen 32-bit values become columns.
FIRSTLIGHT_INLINE void transpose16(__m512i (&rows)[16]) {
    __m512i parts[16];
    for (int i = 0; i < 16; i += 4) {
        const auto low = [](__m512i a, __m512i b) FIRSTLIGHT_INLINED {
            return _mm512_maskz_unpacklo_epi32(kAllLanes, a, b);
        };
        const auto high = [](__m512i a, __m512i b) FIRSTLIGHT_INLINED {
            return _mm512_maskz_unpackhi_epi32(kAllLanes, a, b);
        };
        const __m512i a = low(rows[i], rows[i + 1]), b = high(rows[i], rows[i + 1]);
        const __m512i c = low(rows[i + 2], rows[i + 3]), d = high(rows[i + 2], rows[i + 3]);
        parts[i] = _mm512_maskz_unpacklo_epi64(0xFF, a, c);
        parts[i + 1] = _mm512_maskz_unpackhi_epi64(0xFF, a, c);
        parts[i + 2] = _mm512_maskz_unpacklo_epi64(0xFF, b, d);
        parts[i + 3] = _mm512_maskz_unpackhi_epi64(0xFF, b, d);
    }
    for (int j = 0; j < 4; ++j) {
        const auto even = [](__m512i a, __m512i b) FIRSTLIGHT_INLINED {
            return _mm512_maskz_shuffle_i32x4(kAllLanes, a, b, 0x88);
        };
        const auto odd = [](__m512i a, __m512i b) FIRSTLIGHT_INLINED {
            return _mm512_maskz_shuffle_i32x4(kAllLanes, a, b, 0xDD);
        };
        const __m512i p = even(parts[j], parts[4 + j]), q = odd(parts[j], parts[4 + j]);
        const __m512i r = even(parts[8 + j], parts[12 + j]), s = odd(parts[8 + j], parts[12 + j]);
        rows[j] = even(p, r);
        rows[8 + j] = odd(p, r);
        rows[4 + j] = even(q, s);
        rows[12 + j] = odd(q, s);
    }
}

#endif
