// The kernel for vdpbf16ps: four rows of the weight with up to six of the activations in registers.

#if defined(__AVX512BF16__) && !defined(FIRSTLIGHT_TILES)

constexpr int kBfloat16Rows = 4;
constexpr int kBfloat16Inputs = 6;

// What is to be fetched into the cache meanwhile: a line of each of these addresses at every step.
struct FetchAhead {
    const uint8_t* from[kBfloat16Rows];
};

// Adds the lanes of two vectors that lie `distance` apart, as `sum` does: a lane of the first where
// the mask has 0, of the second where it has 1. What is blended needs no shuffle.
template <int distance>
FIRSTLIGHT_INLINE __m512 join_lanes(__m512 a, __m512 b) {
    constexpr __mmask16 kMask = distance == 8   ? 0xFF00
                                : distance == 4 ? 0xF0F0
                                : distance == 2 ? 0xCCCC
                                                : 0xAAAA;
    const __m512 kept = _mm512_mask_mov_ps(a, kMask, b), crossed = _mm512_mask_mov_ps(b, kMask, a);
    __m512 turned;
    if constexpr (distance == 8) {
        turned = _mm512_maskz_shuffle_f32x4(kAllLanes, crossed, crossed, 0x4E);
    } else if constexpr (distance == 4) {
        turned = _mm512_maskz_shuffle_f32x4(kAllLanes, crossed, crossed, 0xB1);
    } else if constexpr (distance == 2) {
        turned = _mm512_maskz_permute_ps(kAllLanes, crossed, 0x4E);
    } else {
        turned = _mm512_maskz_permute_ps(kAllLanes, crossed, 0xB1);
    }
    return (__m512)((Vector)kept + (Vector)turned);
}

// The sums of four times four vectors in the order of `sum4`, to[4 * x + r] being that of [r][x].
FIRSTLIGHT_INLINE void sum16(const __m512 (&of)[4][4], float* to) {
    __m512 quarters[4];  // of each x: four lanes of each row
    FIRSTLIGHT_UNROLL
    for (int x = 0; x < 4; ++x) {
        const __m512 even = join_lanes<8>(of[0][x], of[2][x]);
        const __m512 odd = join_lanes<8>(of[1][x], of[3][x]);
        quarters[x] = join_lanes<4>(even, odd);
    }
    const __m512 first = join_lanes<2>(quarters[0], quarters[2]);
    const __m512 second = join_lanes<2>(quarters[1], quarters[3]);
    // x in each quarter: 0 1 2 3; the quarters are rows.
    const __m512 sums = join_lanes<1>(first, second);
    const __m512i places =
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_ps(to, _mm512_maskz_permutexvar_ps(kAllLanes, places, sums));
}

// sums[x * 4 + r] = left[r] . right[x], for x up to the next multiple of 4, over `count` columns, which are whole steps but in a row's
// last chunk. `right` is aligned and filled up with zeros; nothing past `count` of left is used.
template <int Rows, int Inputs, int Fetches>
inline void bfloat16_products(const uint8_t* const* left, const uint16_t* right, int64_t stride,
                              int64_t count, const FetchAhead& ahead, float* sums) {
    // Unrolled, since a loop over an array would keep the array in memory.
    __m512 sum_of[Rows][Inputs];
    FIRSTLIGHT_UNROLL
    for (int r = 0; r < Rows; ++r) {
        FIRSTLIGHT_UNROLL
        for (int x = 0; x < Inputs; ++x) sum_of[r][x] = _mm512_setzero_ps();
    }
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) {
        __m512i weights[Rows];
        FIRSTLIGHT_UNROLL
        for (int r = 0; r < Rows; ++r) weights[r] = _mm512_loadu_si512(left[r] + i * 2);
        FIRSTLIGHT_UNROLL
        for (int f = 0; f < Fetches; ++f) FIRSTLIGHT_FETCH_FAR(ahead.from[f] + i * 2);
        FIRSTLIGHT_UNROLL
        for (int x = 0; x < Inputs; ++x) {
            const __m512i input = _mm512_load_si512(right + x * stride + i);
            FIRSTLIGHT_UNROLL
            for (int r = 0; r < Rows; ++r) {
                sum_of[r][x] = add_pairs(sum_of[r][x], weights[r], input);
            }
        }
    }
    if (i < count) {
        const __mmask32 rest = static_cast<__mmask32>((uint64_t{1} << (count - i)) - 1);
        __m512i weights[Rows];
        FIRSTLIGHT_UNROLL
        for (int r = 0; r < Rows; ++r) {
            weights[r] = _mm512_maskz_loadu_epi16(rest, left[r] + i * 2);
        }
        FIRSTLIGHT_UNROLL
        for (int x = 0; x < Inputs; ++x) {
            const __m512i input = _mm512_load_si512(right + x * stride + i);
            FIRSTLIGHT_UNROLL
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
    FIRSTLIGHT_UNROLL
    for (int start = 0; start < Inputs; start += 4) {
        __m512 four[4][4];
        FIRSTLIGHT_UNROLL
        for (int r = 0; r < 4; ++r) {
            FIRSTLIGHT_UNROLL
            for (int x = 0; x < 4; ++x) {
                four[r][x] = sum_of[r < Rows ? r : 0][start + x < Inputs ? start + x : start];
            }
        }
        sum16(four, sums + 4 * start);
    }
}

// Rows [first, end) of a weight with one input, each from end to end, as memory gives it fastest. The
// sums of four rows' chunks are added up at once; bits are those of `bfloat16_products`.
inline void bfloat16_rows(const StoredMatrix& weight, const uint16_t* x, const float* bias,
                          int64_t first, int64_t end, float* out) {
    const int64_t chunk = bfloat16_chunk(weight.columns);
    __m512 held[4] = {};
    int count_held = 0;
    // The row that the next sums belong to, and what its chunks have come to.
    int64_t row = first, added = 0;
    float total = 0.0f;
    const auto add_up = [&]() FIRSTLIGHT_INLINED {
        alignas(16) float sums[4];
        sum4((Vector)held[0], (Vector)held[1], (Vector)held[2], (Vector)held[3], sums);
        for (int i = 0; i < count_held; ++i) {
            total = added ? total + sums[i] : sums[i];
            added += chunk;
            if (added < weight.columns) continue;
            out[row] = bias ? total + bias[row] : total;
            ++row;
            added = 0;
        }
        count_held = 0;
    };
    for (int64_t r = first; r < end; ++r) {
        const uint8_t* data = weight.data + r * weight.row_bytes;
        for (int64_t start = 0; start < weight.columns; start += chunk) {
            const int64_t stop = least(start + chunk, weight.columns);
            __m512 sum = _mm512_setzero_ps();
            int64_t i = start;
            for (; i + 32 <= stop; i += 32) {
                sum = add_pairs(sum, _mm512_loadu_si512(data + i * 2), _mm512_load_si512(x + i));
            }
            if (i < stop) {
                const __mmask32 rest = static_cast<__mmask32>((uint64_t{1} << (stop - i)) - 1);
                sum = add_pairs(sum, _mm512_maskz_loadu_epi16(rest, data + i * 2),
                                _mm512_load_si512(x + i));
            }
            held[count_held++] = sum;
            if (count_held == 4) add_up();
        }
    }
    add_up();
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
