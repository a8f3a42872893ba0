// The kernel for vdpbf16ps: four rows of the weight with up to six of the activations in registers.

#if defined(__AVX512BF16__)

constexpr int kBfloat16Rows = 4;
constexpr int kBfloat16Inputs = 6;

// What is to be fetched into the cache meanwhile: a line of each of these addresses at every step.
struct FetchAhead {
    const uint8_t* from[kBfloat16Rows];
};

FIRSTLIGHT_INLINE __m512 add_pairs(__m512 total, __m512i weights, __m512i input) {
    return _mm512_dpbf16_ps(total, (__m512bh)weights, (__m512bh)input);
}

// The sums of four times four vectors in the order of `sum4`, to[4 * x + r] being that of [r][x].
FIRSTLIGHT_INLINE void sum16(const __m512 (&of)[4][4], float* to) {
    __m512 lanes[4];  // of each x: a quarter for each row
    for (int x = 0; x < 4; ++x) {
        const auto halves = [&](int a, int b) FIRSTLIGHT_INLINED {
            return (Vector)_mm512_maskz_shuffle_f32x4(kAllLanes, of[a][x], of[b][x], 0x44) +
                   (Vector)_mm512_maskz_shuffle_f32x4(kAllLanes, of[a][x], of[b][x], 0xEE);
        };
        const __m512 upper = (__m512)halves(0, 1), lower = (__m512)halves(2, 3);
        lanes[x] = (__m512)((Vector)_mm512_maskz_shuffle_f32x4(kAllLanes, upper, lower, 0x88) +
                            (Vector)_mm512_maskz_shuffle_f32x4(kAllLanes, upper, lower, 0xDD));
    }
    const auto pairs = [&](int a, int b) FIRSTLIGHT_INLINED {
        return (__m512d)((Vector)_mm512_maskz_unpacklo_ps(kAllLanes, lanes[a], lanes[b]) +
                         (Vector)_mm512_maskz_unpackhi_ps(kAllLanes, lanes[a], lanes[b]));
    };
    const __m512d first = pairs(0, 1), second = pairs(2, 3);
    const __m512 sums = (__m512)((Vector)_mm512_maskz_unpacklo_pd(0xFF, first, second) +
                                 (Vector)_mm512_maskz_unpackhi_pd(0xFF, first, second));
    const __m512i places =
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_ps(to, _mm512_maskz_permutexvar_ps(kAllLanes, places, sums));
}

// sums[x * 4 + r] = left[r] . right[x], for x up to the next multiple of 4, over `count` columns, which are whole steps but in a row's
// last chunk. `right` is aligned and filled up with zeros; nothing past `count` of left is used.
template <int Rows, int Inputs, int Fetches>
inline void bfloat16_products(const uint8_t* const* left, const uint16_t* right, int64_t stride,
                              int64_t count, const FetchAhead& ahead, float* sums) {
    __m512 sum_of[Rows][Inputs];
    for (int r = 0; r < Rows; ++r) {
        for (int x = 0; x < Inputs; ++x) sum_of[r][x] = _mm512_setzero_ps();
    }
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) {
        __m512i weights[Rows];
        for (int r = 0; r < Rows; ++r) weights[r] = _mm512_loadu_si512(left[r] + i * 2);
        for (int f = 0; f < Fetches; ++f) FIRSTLIGHT_FETCH_FAR(ahead.from[f] + i * 2);
        for (int x = 0; x < Inputs; ++x) {
            const __m512i input = _mm512_load_si512(right + x * stride + i);
            for (int r = 0; r < Rows; ++r) {
                sum_of[r][x] = add_pairs(sum_of[r][x], weights[r], input);
            }
        }
    }
    if (i < count) {
        const __mmask32 rest = static_cast<__mmask32>((uint64_t{1} << (count - i)) - 1);
        __m512i weights[Rows];
        for (int r = 0; r < Rows; ++r) {
            weights[r] = _mm512_maskz_loadu_epi16(rest, left[r] + i * 2);
        }
        for (int x = 0; x < Inputs; ++x) {
            const __m512i input = _mm512_load_si512(right + x * stride + i);
            for (int r = 0; r < Rows; ++r) {
                sum_of[r][x] = add_pairs(sum_of[r][x], weights[r], input);
            }
        }
    }
    if constexpr (Inputs == 1) {
        const auto row = [&](int r) FIRSTLIGHT_INLINED {
            return (Vector)sum_of[r < Rows ? r : 0][0];
        };
        return sum4(row(0), row(1), row(2), row(3), sums);
    }
    for (int start = 0; start < Inputs; start += 4) {
        __m512 four[4][4];
        for (int r = 0; r < 4; ++r) {
            for (int x = 0; x < 4; ++x) {
                four[r][x] = sum_of[r < Rows ? r : 0][start + x < Inputs ? start + x : start];
            }
        }
        sum16(four, sums + 4 * start);
    }
}

typedef void (*Bfloat16Products)(const uint8_t* const*, const uint16_t*, int64_t, int64_t,
                                 const FetchAhead&, float*);

template <int Rows, int Fetches>
inline Bfloat16Products products_for(int inputs) {
    switch (inputs) {
        case 1: return bfloat16_products<Rows, 1, Fetches>;
        case 2: return bfloat16_products<Rows, 2, Fetches>;
        case 3: return bfloat16_products<Rows, 3, Fetches>;
        case 4: return bfloat16_products<Rows, 4, Fetches>;
        case 5: return bfloat16_products<Rows, 5, Fetches>;
        default: return bfloat16_products<Rows, 6, Fetches>;
    }
}

inline Bfloat16Products products_for(int rows, int inputs, int fetches) {
    if (rows == 1) return products_for<1, 0>(inputs);
    switch (fetches) {
        case 4: return products_for<4, 4>(inputs);
        case 2: return products_for<4, 2>(inputs);
        case 1: return products_for<4, 1>(inputs);
        default: return products_for<4, 0>(inputs);
    }
}

#endif
