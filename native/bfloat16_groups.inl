// Groups of four rows of a weight that pass the same few rows of x one after another.
//
// All in one loop with nothing called: so the processor multiplies for the next group while it adds up the
// lanes of the one before, on units that products leave idle. (Putting the sums into memory first, to
// add them up between the next group's products, was slower: 24 stores of 64 bytes hold products up.)

#if defined(__AVX512BF16__) && !defined(FIRSTLIGHT_TILES)

// One chunk of the rows of a block, and of rows of x.
struct Bfloat16Groups {
    const uint8_t* weight;  // the first row's chunk
    int64_t row_bytes, groups;
    const uint16_t* right;  // rows of x, `stride` apart
    int64_t stride, count;  // columns of the chunk
    bool ahead_in_x;        // fetch what follows these rows of x, not the next group
    float* out;             // of the first row with the first row of x
    int64_t out_stride;
    bool more;              // add to what is there
};

FIRSTLIGHT_INLINE __m128 first_four(__m512 values) {
    __m128 four;
    memcpy(&four, &values, sizeof four);
    return four;
}

template <int Inputs, int Fetches>
FIRSTLIGHT_APART void bfloat16_groups(const Bfloat16Groups& call) {
    static_assert(Inputs == 5 || Inputs == 6);
    const int64_t count = call.count, stride = call.stride;
    const uint16_t* const right = call.right;
    for (int64_t g = 0; g < call.groups; ++g) {
        const uint8_t* const first = call.weight + g * kBfloat16Rows * call.row_bytes;
        const uint8_t* left[kBfloat16Rows];
        FIRSTLIGHT_UNROLL
        for (int r = 0; r < kBfloat16Rows; ++r) left[r] = first + r * call.row_bytes;
        // Rows of x that come next are as many as these; one of them for each group.
        const uint8_t* ahead = first + kBfloat16Rows * call.row_bytes;
        if (call.ahead_in_x) {
            ahead = reinterpret_cast<const uint8_t*>(right + (Inputs + least(g, 5)) * stride);
        }
        __m512 sum_of[kBfloat16Rows][Inputs];
        FIRSTLIGHT_UNROLL
        for (int r = 0; r < kBfloat16Rows; ++r) {
            FIRSTLIGHT_UNROLL
            for (int x = 0; x < Inputs; ++x) sum_of[r][x] = _mm512_setzero_ps();
        }
        int64_t i = 0;
        const auto add_step = [&](__mmask32 there) FIRSTLIGHT_INLINED {
            __m512i weights[kBfloat16Rows];
            FIRSTLIGHT_UNROLL
            for (int r = 0; r < kBfloat16Rows; ++r) {
                weights[r] = ~there ? _mm512_maskz_loadu_epi16(there, left[r] + i * 2)
                                    : _mm512_loadu_si512(left[r] + i * 2);
            }
            FIRSTLIGHT_UNROLL
            for (int f = 0; f < Fetches; ++f) {
                FIRSTLIGHT_FETCH_FAR(ahead + f * call.row_bytes + i * 2);
            }
            FIRSTLIGHT_UNROLL
            for (int x = 0; x < Inputs; ++x) {
                const __m512i input = _mm512_load_si512(right + x * stride + i);
                FIRSTLIGHT_UNROLL
                for (int r = 0; r < kBfloat16Rows; ++r) {
                    sum_of[r][x] = add_pairs(sum_of[r][x], weights[r], input);
                }
            }
        };
        for (; i + 32 <= count; i += 32) add_step(~__mmask32{0});
        if (i < count) add_step(static_cast<__mmask32>((uint64_t{1} << (count - i)) - 1));
        __m512 four[4][4], two[4][2];
        FIRSTLIGHT_UNROLL
        for (int r = 0; r < kBfloat16Rows; ++r) {
            FIRSTLIGHT_UNROLL
            for (int x = 0; x < 4; ++x) four[r][x] = sum_of[r][x];
            two[r][0] = sum_of[r][4];
            two[r][1] = sum_of[r][Inputs - 1];
        }
        const __m512 sixteen = sum16(four), eight = sum8(two);
        float* out = call.out + g * kBfloat16Rows;
        const auto put = [&](int x, __m128 values) FIRSTLIGHT_INLINED {
            float* to = out + x * call.out_stride;
            if (call.more) values = _mm_add_ps(_mm_loadu_ps(to), values);
            _mm_storeu_ps(to, values);
        };
        put(0, first_four(sixteen));
        put(1, _mm512_maskz_extractf32x4_ps(0xF, sixteen, 1));
        put(2, _mm512_maskz_extractf32x4_ps(0xF, sixteen, 2));
        put(3, _mm512_maskz_extractf32x4_ps(0xF, sixteen, 3));
        put(4, first_four(eight));
        if constexpr (Inputs == 6) put(5, _mm512_maskz_extractf32x4_ps(0xF, eight, 1));
    }
}

template <int Inputs>
inline void bfloat16_groups_of(int fetches, const Bfloat16Groups& call) {
    if (fetches == 4) return bfloat16_groups<Inputs, 4>(call);
    if (fetches == 1) return bfloat16_groups<Inputs, 1>(call);
    bfloat16_groups<Inputs, 0>(call);
}

#endif
