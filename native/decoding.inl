// Whole rows from their blocks, and the choice of a format at run time.

// A type as a value.
template <class T>
struct Type {
    typedef T type;
};

// Calls use(Type<Format>{}).
template <class Use>
inline void with_format(BlockFormat format, Use use) {
    switch (format) {
        case BlockFormat::f32: return use(Type<F32>{});
        case BlockFormat::f16: return use(Type<F16>{});
        case BlockFormat::bf16: return use(Type<BF16>{});
        case BlockFormat::f8_e4m3: return use(Type<F8_E4M3>{});
        case BlockFormat::e2m1: return use(Type<E2M1>{});
        case BlockFormat::q4_0: return use(Type<Q4_0>{});
        case BlockFormat::q4_1: return use(Type<Q4_1>{});
        case BlockFormat::q5_0: return use(Type<Q5_0>{});
        case BlockFormat::q5_1: return use(Type<Q5_1>{});
        case BlockFormat::q8_0: return use(Type<Q8_0>{});
        case BlockFormat::q2_k: return use(Type<Q2_K>{});
        case BlockFormat::q3_k: return use(Type<Q3_K>{});
        case BlockFormat::q4_k: return use(Type<Q4_K>{});
        case BlockFormat::q5_k: return use(Type<Q5_K>{});
        case BlockFormat::q6_k: return use(Type<Q6_K>{});
        case BlockFormat::iq4_nl: return use(Type<IQ4_NL>{});
        case BlockFormat::iq4_xs: return use(Type<IQ4_XS>{});
        case BlockFormat::mxfp4: return use(Type<MXFP4>{});
        case BlockFormat::nvfp4: return use(Type<NVFP4>{});
    }
}

// Bytes of `count` values, which are whole blocks.
template <class Format>
inline int64_t bytes_of(int64_t count) {
    return count / Format::kValues * Format::kBytes;
}

// The last values of a row of single values, fewer than kWidth, and zeros.
template <class Format>
inline Vector last_vector(const uint8_t* from, int64_t count) {
    uint8_t padded[Format::kBytes] = {};
    memcpy(padded, from, static_cast<size_t>(count) * (Format::kBytes / kWidth));
    return Format::vector(padded);
}

// Decodes `count` values of a row to float32.
template <class Format>
inline void decode_to(const uint8_t* from, int64_t count, float* to) {
    if constexpr (Format::kSingleValues) {
        int64_t i = 0;
        for (; i + kWidth <= count; i += kWidth) {
            store(to + i, Format::vector(from + bytes_of<Format>(i)));
        }
        if (i == count) return;
        const Vector last = last_vector<Format>(from + bytes_of<Format>(i), count - i);
        store_first(to + i, last, count - i);
    } else {
        for (int64_t start = 0; start < count; start += Format::kValues, from += Format::kBytes) {
            const Format block(from);
            for (int group = 0; group < Format::kValues / Format::kGroup; ++group) {
                block.emit(group, [&](int i, Vector values) FIRSTLIGHT_INLINED {
                    store(to + start + i, values);
                });
            }
        }
    }
}
