// The scales of blocks that the values of fp8 are multiplied by (formats/base.py, BlockScales).

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

// Columns of a row with their scales, as float32.
inline void decode_scaled(const StoredMatrix& weight, int64_t row, int64_t start, int64_t count,
                          float* values, Type<F8_E4M3>) {
    decode_to<F8_E4M3>(weight.data + row * weight.row_bytes + start, count, values);
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
inline void scaled_dot_products(const StoredMatrix& weight, int64_t first, int64_t start,
                                int64_t count, const float* x, int64_t ahead, float* sums,
                                Type<F8_E4M3>) {
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
