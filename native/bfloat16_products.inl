// The kernel for vdpbf16ps: four rows of the weight with up to six of the activations in registers.

#if defined(__AVX512BF16__) && !defined(FIRSTLIGHT_TILES)

constexpr int kBfloat16Rows = 4;
constexpr int kBfloat16Inputs = 6;

// What is to be fetched into the cache meanwhile: a line of each of these addresses at every step.
struct FetchAhead {
    const uint8_t* from[kBfloat16Rows];
};

// Adds the lanes of two vectors that lie `distance` apart, as `sum` does, and puts what is left of both
// into one: the first's before the second's, in the vector (8), in quarters of it by turns (2), ...
template <int distance>
FIRSTLIGHT_INLINE __m512 join_lanes(__m512 a, __m512 b) {
    __m512 one, other;
    if constexpr (distance == 8) {  // the halves of a, of b
        one = _mm512_mask_mov_ps(a, 0xFF00, b);
        other = _mm512_maskz_shuffle_f32x4(kAllLanes, a, b, 0x4E);
    } else if constexpr (distance == 4) {  // quarters: two of a, two of b
        one = _mm512_maskz_shuffle_f32x4(kAllLanes, a, b, 0x88);
        other = _mm512_maskz_shuffle_f32x4(kAllLanes, a, b, 0xDD);
    } else if constexpr (distance == 2) {  // in each quarter two lanes of a, two of b
        one = _mm512_mask_mov_ps(a, 0xCCCC, b);
        other = _mm512_maskz_shuffle_ps(kAllLanes, a, b, 0x4E);
    } else {  // the same
        one = _mm512_maskz_shuffle_ps(kAllLanes, a, b, 0x88);
        other = _mm512_maskz_shuffle_ps(kAllLanes, a, b, 0xDD);
    }
    return (__m512)((Vector)one + (Vector)other);
}

// The sums of four times four vectors in the order of `sum4`, lane 4 * x + r being that of [r][x].
FIRSTLIGHT_INLINE __m512 sum16(const __m512 (&of)[4][4]) {
    __m512 quarters[4];  // of each row: four lanes of each x
    FIRSTLIGHT_UNROLL
    for (int r = 0; r < 4; ++r) {
        const __m512 low = join_lanes<8>(of[r][0], of[r][1]);
        const __m512 high = join_lanes<8>(of[r][2], of[r][3]);
        quarters[r] = join_lanes<4>(low, high);
    }
    const __m512 first = join_lanes<2>(quarters[0], quarters[1]);
    const __m512 second = join_lanes<2>(quarters[2], quarters[3]);
    return join_lanes<1>(first, second);
}

// The same of four times two vectors, in eight lanes.
FIRSTLIGHT_INLINE __m512 sum8(const __m512 (&of)[4][2]) {
    __m512 halves[4];  // of each row: eight lanes of each x
    FIRSTLIGHT_UNROLL
    for (int r = 0; r < 4; ++r) halves[r] = join_lanes<8>(of[r][0], of[r][1]);
    // Quarters: rows 0 and 1 (2 and 3), of each both x.
    const __m512 low = join_lanes<4>(halves[0], halves[1]);
    const __m512 high = join_lanes<4>(halves[2], halves[3]);
    const __m512 pairs = join_lanes<2>(low, high);
    const __m512 sums = join_lanes<1>(pairs, pairs);
    const __m512i places = _mm512_setr_epi32(0, 8, 1, 9, 4, 12, 5, 13, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_maskz_permutexvar_ps(kAllLanes, places, sums);
}

// sums[x * 4 + r] = left[r] . right[x], for x up to the next even number or multiple of 4, over `count`
// columns, which are whole steps but in a row's last chunk. `right` is aligned and filled up with
// zeros; nothing past `count` of left is used.
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
    constexpr int kWhole = Inputs % 4 > 2 ? Inputs : Inputs / 4 * 4;  // summed by fours
    FIRSTLIGHT_UNROLL
    for (int start = 0; start < kWhole; start += 4) {
        __m512 four[4][4];
        FIRSTLIGHT_UNROLL
        for (int r = 0; r < 4; ++r) {
            FIRSTLIGHT_UNROLL
            for (int x = 0; x < 4; ++x) {
                four[r][x] = sum_of[r < Rows ? r : 0][start + x < Inputs ? start + x : start];
            }
        }
        _mm512_storeu_ps(sums + 4 * start, sum16(four));
    }
    if constexpr (kWhole < Inputs) {
        __m512 two[4][2];
        FIRSTLIGHT_UNROLL
        for (int r = 0; r < 4; ++r) {
            FIRSTLIGHT_UNROLL
            for (int x = 0; x < 2; ++x) {
                two[r][x] = sum_of[r < Rows ? r : 0][kWhole + x < Inputs ? kWhole + x : kWhole];
            }
        }
        _mm512_mask_storeu_ps(sums + 4 * kWhole, 0xFF, sum8(two));
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
