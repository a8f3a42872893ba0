// The scales that E2M1 has in a tensor of their own, E4M3 for each 16 columns (formats/group_scales.py;
// NVFP4).

constexpr int64_t kFloat4Group = 16;

// The halves of kWidth scales of a row, those from a multiple of kWidth groups on; of `count`.
struct HalfScales {
    float half[kWidth];

    HalfScales(const GroupScales& scales, int64_t row, int64_t group, int64_t count) {
        const uint8_t* from = scales.values + row * scales.stride + group;
        uint8_t padded[kWidth] = {};
        if (count < kWidth) {
            memcpy(padded, from, static_cast<size_t>(count));
            from = padded;
        }
        const Vector stored = load_float8(from);
        const Vector factor = broadcast(scales.factor);
        store(half, (scales.divides ? stored / factor : stored * factor) * 0.5f);
    }
};

// Calls use(column, half) for the groups of the columns [start, start + count) of a row.
template <class Use>
FIRSTLIGHT_INLINE void each_float4_group(const StoredMatrix& weight, int64_t row, int64_t start,
                                         int64_t count, Use use) {
    if (!weight.groups.values) {
        for (int64_t i = 0; i < count; i += kFloat4Group) use(i, 0.5f);
        return;
    }
    const int64_t groups = count / kFloat4Group;
    for (int64_t g = 0; g < groups; g += kWidth) {
        const int64_t here = least(kWidth, groups - g);
        const HalfScales scales(weight.groups, row, start / kFloat4Group + g, here);
        for (int64_t i = 0; i < here; ++i) use((g + i) * kFloat4Group, scales.half[i]);
    }
}

// Columns of a row with their scales, as float32.
inline void decode_scaled(const StoredMatrix& weight, int64_t row, int64_t start, int64_t count,
                          float* to, Type<E2M1>) {
    const uint8_t* from = weight.data + row * weight.row_bytes + start / 2;
    each_float4_group(weight, row, start, count, [&](int64_t column, float half)
                      FIRSTLIGHT_INLINED {
        E2M1(from + column / 2).emit_scaled(half, [&](int i, Vector values) FIRSTLIGHT_INLINED {
            store(to + column + i, values);
        });
    });
}

// As of fp8.
template <int Rows>
inline void scaled_dot_products(const StoredMatrix& weight, int64_t first, int64_t start,
                                int64_t count, const float* x, int64_t ahead, float* sums,
                                Type<E2M1>) {
    for (int r = 0; r < Rows; ++r) {
        const uint8_t* from = weight.data + (first + r) * weight.row_bytes + start / 2;
        Vector total = broadcast(0.0f);
        each_float4_group(weight, first + r, start, count, [&](int64_t column, float half)
                          FIRSTLIGHT_INLINED {
            if (column % 128 == 0) FIRSTLIGHT_FETCH_FAR(from + column / 2 + ahead);
            E2M1(from + column / 2).emit_scaled(half, [&](int i, Vector values) FIRSTLIGHT_INLINED {
                total = multiply_add(values, load(x + column + i), total);
            });
        });
        sums[r] = sum(total);
    }
}
