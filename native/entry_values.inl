// Entries of streams as float32, whatever they are stored as.

// kWidth values at any byte.
inline Vector load_values(StreamType type, const uint8_t* from) {
    return type == StreamType::float32 ? load(from) : load_bfloat16(from);
}

// The first `count` < kWidth of them, and zeros.
inline Vector load_first_values(StreamType type, const uint8_t* from, int64_t count) {
    uint8_t padded[4 * kWidth] = {};
    memcpy(padded, from, static_cast<size_t>(count * bytes_per_value(type)));
    return load_values(type, padded);
}

// One entry, filled up with zeros to `padded` values, a multiple of kWidth.
inline void widen_entry(StreamType type, const uint8_t* from, int64_t size, int64_t padded,
                        float* to) {
    const int64_t bytes = bytes_per_value(type);
    int64_t i = 0;
    for (; i + kWidth <= size; i += kWidth) store(to + i, load_values(type, from + i * bytes));
    if (i < size) {
        store(to + i, load_first_values(type, from + i * bytes, size - i));
        i += kWidth;
    }
    for (; i < padded; i += kWidth) store(to + i, broadcast(0.0f));
}

// A block of entries, side by side in the second-level cache.
struct WidenedBlock {
    float* values;  // [kBlock, stride]
    int64_t size, columns, stride;

    // Columns are whole pairs of vectors at every level; rows are no power of two apart.
    static int64_t columns_of(int64_t size) { return round_up(size, 32); }
    static int64_t stride_of(int64_t size) { return columns_of(size) + 16; }
    static int64_t floats(int64_t size) { return kBlock * stride_of(size); }

    WidenedBlock(float* memory, int64_t size_)
        : values(memory), size(size_), columns(columns_of(size_)), stride(stride_of(size_)) {}

    float* row(int64_t t) const { return values + t * stride; }
    void widen(StreamType type, int64_t t, const uint8_t* from) const {
        widen_entry(type, from, size, columns, row(t));
    }
    // scores[head * kBlock + t] = queries[head] . entry t, for the first `count` entries.
    void score(const float* queries, int64_t heads, int64_t count, float* scores) const {
        for (int64_t start = 0; start < size; start += kChunk) {
            const uint8_t* left[kBlock];
            for (int64_t t = 0; t < count; ++t) {
                left[t] = reinterpret_cast<const uint8_t*>(row(t) + start);
            }
            all_dot_products(left, count, queries + start, heads, size,
                             least(kChunk, size - start), start > 0, scores, kBlock);
        }
    }
};
