// Dot products of a few rows with a few rows, the heart of `linear` and of attention's scores.
//
// A dot product is added up in one fixed order, whoever computes it: lane j of one accumulator
// takes the columns j, j + kWidth, ...; the lanes are added by `sum`; and this anew every kChunk
// columns, whose sums are added in turn. So a result has the same bits in whatever company its
// row is computed, and float32 sums stay short.

constexpr int64_t kChunk = 768;

// Rows of the right operand that share what is loaded of the left, as the registers allow.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMostInputs = 6;
#elif defined(__AVX2__)
constexpr int kMostInputs = 3;
#else
constexpr int kMostInputs = 2;
#endif

// sums[x * 4 + r] = left[r] . right[x] over `count` <= kChunk columns. `left` holds float32 at any
// byte; rows of `right` lie `stride` values apart.
template <int Rows, int Inputs>
inline void dot_products(const uint8_t* const* left, const float* right, int64_t stride,
                         int64_t count, float* sums) {
    Vector sum_of[Rows][Inputs];
    for (int r = 0; r < Rows; ++r) {
        for (int x = 0; x < Inputs; ++x) sum_of[r][x] = broadcast(0.0f);
    }
    int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) {
        Vector input[Inputs];
        for (int x = 0; x < Inputs; ++x) input[x] = load(right + x * stride + i);
        for (int r = 0; r < Rows; ++r) {
            const Vector values = load(left[r] + i * 4);
            for (int x = 0; x < Inputs; ++x) {
                sum_of[r][x] = multiply_add(values, input[x], sum_of[r][x]);
            }
        }
    }
    if (i < count) {
        for (int x = 0; x < Inputs; ++x) {
            const Vector input = load_first(right + x * stride + i, count - i);
            for (int r = 0; r < Rows; ++r) {
                const Vector values = load_first(left[r] + i * 4, count - i);
                sum_of[r][x] = multiply_add(values, input, sum_of[r][x]);
            }
        }
    }
    for (int x = 0; x < Inputs; ++x) {
        if constexpr (Rows == 4) {
            sum4(sum_of[0][x], sum_of[1][x], sum_of[2][x], sum_of[3][x], sums + 4 * x);
        } else {
            for (int r = 0; r < Rows; ++r) sums[4 * x + r] = sum(sum_of[r][x]);
        }
    }
}

template <int Rows>
inline void dot_products_of(int inputs, const uint8_t* const* left, const float* right,
                            int64_t stride, int64_t count, float* sums) {
    switch (inputs) {
        case 1: return dot_products<Rows, 1>(left, right, stride, count, sums);
        case 2: return dot_products<Rows, 2>(left, right, stride, count, sums);
#if defined(__AVX2__) || defined(__aarch64__)
        case 3: return dot_products<Rows, 3>(left, right, stride, count, sums);
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
        case 4: return dot_products<Rows, 4>(left, right, stride, count, sums);
        case 5: return dot_products<Rows, 5>(left, right, stride, count, sums);
        case 6: return dot_products<Rows, 6>(left, right, stride, count, sums);
#endif
        default: return;
    }
}

// out[x * out_stride + r] = (or, if `more`, +=) left[r] . right[x], for any number of both.
inline void all_dot_products(const uint8_t* const* left, int64_t rows, const float* right,
                             int64_t inputs, int64_t stride, int64_t count, bool more, float* out,
                             int64_t out_stride) {
    for (int64_t x = 0; x < inputs; x += kMostInputs) {
        const int some = static_cast<int>(inputs - x < kMostInputs ? inputs - x : kMostInputs);
        for (int64_t r = 0; r < rows; r += 4) {
            const int these = static_cast<int>(rows - r < 4 ? rows - r : 4);
            float sums[4 * kMostInputs];
            const float* input = right + x * stride;
            if (these == 4) {
                dot_products_of<4>(some, left + r, input, stride, count, sums);
            } else {
                for (int i = 0; i < these; ++i) {
                    float one[4 * kMostInputs] = {};
                    dot_products_of<1>(some, left + r + i, input, stride, count, one);
                    for (int j = 0; j < some; ++j) sums[4 * j + i] = one[4 * j];
                }
            }
            for (int j = 0; j < some; ++j) {
                float* target = out + (x + j) * out_stride + r;
                for (int i = 0; i < these; ++i) {
                    target[i] = more ? target[i] + sums[4 * j + i] : sums[4 * j + i];
                }
            }
        }
    }
}
