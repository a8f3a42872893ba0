// How a block of each storage format becomes float32, a vector at a time.
//
// A format's object is one block with its scales worked out. emit(g, sink) calls sink(i, v) with the
// values i to i + kWidth - 1 of the block, for those in its group g of kGroup values, i rising.
// Layouts and the order of roundings are those of firstlight/formats/, where their sources are
// named; what comes out is equal to those definitions bit for bit.

inline uint32_t load_word(const uint8_t* from) {
    uint32_t word;
    memcpy(&word, from, sizeof word);
    return word;
}

// Formats of single values, which count as blocks of one vector.

struct F32 {
    static constexpr int kValues = kWidth, kBytes = 4 * kWidth;
    static constexpr bool kSingleValues = true;
    static Vector vector(const uint8_t* from) { return load(from); }
};

struct F16 {
    static constexpr int kValues = kWidth, kBytes = 2 * kWidth;
    static constexpr bool kSingleValues = true;
    static Vector vector(const uint8_t* from) { return load_float16(from); }
};

struct BF16 {
    static constexpr int kValues = kWidth, kBytes = 2 * kWidth;
    static constexpr bool kSingleValues = true;
    static Vector vector(const uint8_t* from) { return load_bfloat16(from); }
};

// Sends the values of sixteen codes on. A code is a small whole number, and `map` gives its value.
template <class Map, class Sink>
FIRSTLIGHT_INLINE void emit_codes(int first, Bytes codes, Map map, Sink sink) {
    for (int i = 0; i < 16; i += kWidth) sink(first + i, map(to_float(widen(codes, i))));
}

template <class Map, class Sink>
FIRSTLIGHT_INLINE void emit_signed(int first, Bytes codes, Map map, Sink sink) {
    for (int i = 0; i < 16; i += kWidth) sink(first + i, map(to_float(widen_signed(codes, i))));
}

// A map from codes below 16. With sixteen lanes it is worked out once for all of them, and a code
// is looked up.
template <class Map>
struct SmallCodes {
#if defined(__AVX512F__)
    Vector values;
    explicit SmallCodes(Map map)
        : values(map(Vector{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})) {}
    template <class Sink>
    FIRSTLIGHT_INLINE void emit(int first, Bytes codes, Sink sink) const {
        const __m512i places = (__m512i)widen(codes, 0);
        sink(first, (Vector)_mm512_maskz_permutexvar_ps(kAllLanes, places, (__m512)values));
    }
#else
    Map map;
    explicit SmallCodes(Map map) : map(map) {}
    template <class Sink>
    FIRSTLIGHT_INLINE void emit(int first, Bytes codes, Sink sink) const {
        emit_codes(first, codes, map, sink);
    }
#endif
};

inline Bytes low_nibbles(Bytes bytes) { return bytes & broadcast_byte(15); }
inline Bytes high_nibbles(Bytes bytes) { return shift_down(bytes, 4, 15); }

template <class Map, class Sink>
FIRSTLIGHT_INLINE void emit_nibbles(const uint8_t* codes, Map map, Sink sink) {
    const SmallCodes<Map> small(map);
    const Bytes bytes = load_bytes(codes);
    small.emit(0, low_nibbles(bytes), sink);
    small.emit(16, high_nibbles(bytes), sink);
}

struct Q4_0 {
    static constexpr int kValues = 32, kGroup = 32, kBytes = 18;
    static constexpr bool kSingleValues = false;
    const uint8_t* codes;
    float scale;

    explicit Q4_0(const uint8_t* block) : codes(block + 2), scale(load_half(block)) {}

    template <class Sink>
    FIRSTLIGHT_INLINE void emit(int, Sink sink) const {
        const float factor = scale;
        emit_nibbles(codes, [=](Vector code) { return (code - 8.0f) * factor; }, sink);
    }
};

struct Q4_1 {
    static constexpr int kValues = 32, kGroup = 32, kBytes = 20;
    static constexpr bool kSingleValues = false;
    const uint8_t* codes;
    float scale, minimum;

    explicit Q4_1(const uint8_t* block)
        : codes(block + 4), scale(load_half(block)), minimum(load_half(block + 2)) {}

    template <class Sink>
    FIRSTLIGHT_INLINE void emit(int, Sink sink) const {
        const float factor = scale, term = minimum;
        emit_nibbles(codes, [=](Vector code) { return code * factor + term; }, sink);
    }
};

template <class Map, class Sink>
FIRSTLIGHT_INLINE void emit_five_bits(const uint8_t* fifths, const uint8_t* codes, Map map,
                                      Sink sink) {
    const uint32_t fifth = load_word(fifths);
    const Bytes bytes = load_bytes(codes);
    emit_codes(0, low_nibbles(bytes) | spread_bits(static_cast<uint16_t>(fifth), 16), map, sink);
    emit_codes(16, high_nibbles(bytes) | spread_bits(static_cast<uint16_t>(fifth >> 16), 16), map, sink);
}

struct Q5_0 {
    static constexpr int kValues = 32, kGroup = 32, kBytes = 22;
    static constexpr bool kSingleValues = false;
    const uint8_t* block;
    float scale;

    explicit Q5_0(const uint8_t* block) : block(block), scale(load_half(block)) {}

    template <class Sink>
    FIRSTLIGHT_INLINE void emit(int, Sink sink) const {
        const float factor = scale;
        const auto map = [=](Vector code) { return (code - 16.0f) * factor; };
        emit_five_bits(block + 2, block + 6, map, sink);
    }
};

struct Q5_1 {
    static constexpr int kValues = 32, kGroup = 32, kBytes = 24;
    static constexpr bool kSingleValues = false;
    const uint8_t* block;
    float scale, minimum;

    explicit Q5_1(const uint8_t* block)
        : block(block), scale(load_half(block)), minimum(load_half(block + 2)) {}

    template <class Sink>
    FIRSTLIGHT_INLINE void emit(int, Sink sink) const {
        const float factor = scale, term = minimum;
        const auto map = [=](Vector code) { return code * factor + term; };
        emit_five_bits(block + 4, block + 8, map, sink);
    }
};

struct Q8_0 {
    static constexpr int kValues = 32, kGroup = 32, kBytes = 34;
    static constexpr bool kSingleValues = false;
    const uint8_t* codes;
    float scale;

    explicit Q8_0(const uint8_t* block) : codes(block + 2), scale(load_half(block)) {}

    template <class Sink>
    FIRSTLIGHT_INLINE void emit(int, Sink sink) const {
        const float factor = scale;
        const auto map = [=](Vector code) { return code * factor; };
        emit_signed(0, load_bytes(codes), map, sink);
        emit_signed(16, load_bytes(codes + 16), map, sink);
    }
};

// Sixteen codes, the first eight times `first` and the others times `last`.
inline void scale_codes(Bytes codes, float first, float last, float scaled[16]) {
#if defined(__AVX512F__)
    const Vector factors = (Vector)_mm512_mask_blend_ps(0xFF00, (__m512)broadcast(first),
                                                        (__m512)broadcast(last));
    store(scaled, to_float(widen(codes, 0)) * factors);
#else
    for (int i = 0; i < 16; i += kWidth) {
        store(scaled + i, to_float(widen(codes, i)) * (i < 8 ? first : last));
    }
#endif
}

// Sixteen signed codes times a scale.
inline void scale_signed_codes(Bytes codes, float scale, float scaled[16]) {
    for (int i = 0; i < 16; i += kWidth) store(scaled + i, to_float(widen_signed(codes, i)) * scale);
}

// Eight sub-block scales, then eight minima, from their 6-bit codes.
inline void scale_six_bit_pairs(const uint8_t* bytes, float scale, float minimum,
                                float scaled[16]) {
    const uint32_t first_scales = load_word(bytes), first_minima = load_word(bytes + 4);
    const uint32_t nibbles = load_word(bytes + 8);
    const uint32_t last_scales = (nibbles & 0x0F0F0F0F) | (first_scales >> 2 & 0x30303030);
    const uint32_t last_minima = (nibbles >> 4 & 0x0F0F0F0F) | (first_minima >> 2 & 0x30303030);
    const uint64_t scales = uint64_t{last_scales} << 32 | (first_scales & 0x3F3F3F3F);
    const uint64_t minima = uint64_t{last_minima} << 32 | (first_minima & 0x3F3F3F3F);
    scale_codes(join_words(scales, minima), scale, minimum, scaled);
}

struct Q4_K {
    static constexpr int kValues = 256, kGroup = 32, kBytes = 144;
    static constexpr bool kSingleValues = false;
    const uint8_t* block;
    float scaled[16];

    explicit Q4_K(const uint8_t* block) : block(block) {
        scale_six_bit_pairs(block + 4, load_half(block), load_half(block + 2), scaled);
    }

    template <class Sink>
    FIRSTLIGHT_INLINE void emit(int group, Sink sink) const {
        const float factor = scaled[group], term = scaled[8 + group];
        const auto map = [=](Vector code) { return code * factor - term; };
        const SmallCodes<decltype(map)> small(map);
        for (int i = 0; i < 32; i += 16) {
            const Bytes bytes = load_bytes(block + 16 + group / 2 * 32 + i);
            small.emit(32 * group + i, shift_down(bytes, group % 2 * 4, 15), sink);
        }
    }
};

struct Q5_K {
    static constexpr int kValues = 256, kGroup = 32, kBytes = 176;
    static constexpr bool kSingleValues = false;
    const uint8_t* block;
    float scaled[16];

    explicit Q5_K(const uint8_t* block) : block(block) {
        scale_six_bit_pairs(block + 4, load_half(block), load_half(block + 2), scaled);
    }

    template <class Sink>
    FIRSTLIGHT_INLINE void emit(int group, Sink sink) const {
        const float factor = scaled[group], term = scaled[8 + group];
        const auto map = [=](Vector code) { return code * factor - term; };
        for (int i = 0; i < 32; i += 16) {
            const Bytes low = load_bytes(block + 48 + group / 2 * 32 + i);
            const Bytes fifth = shift_down(load_bytes(block + 16 + i), group, 1);
            const Bytes codes = shift_down(low, group % 2 * 4, 15) | shift_up(fifth, 4);
            emit_codes(32 * group + i, codes, map, sink);
        }
    }
};

struct Q2_K {
    static constexpr int kValues = 256, kGroup = 16, kBytes = 84;
    static constexpr bool kSingleValues = false;
    const uint8_t* block;
    float scales[16], minima[16];

    explicit Q2_K(const uint8_t* block) : block(block) {
        const float scale = load_half(block + 80), minimum = load_half(block + 82);
        const Bytes pairs = load_bytes(block);
        scale_codes(low_nibbles(pairs), scale, scale, scales);
        scale_codes(high_nibbles(pairs), minimum, minimum, minima);
    }

    template <class Sink>
    FIRSTLIGHT_INLINE void emit(int group, Sink sink) const {
        const float factor = scales[group], term = minima[group];
        const auto map = [=](Vector code) { return code * factor - term; };
        const Bytes bytes = load_bytes(block + 16 + group / 8 * 32 + group % 2 * 16);
        const SmallCodes<decltype(map)> small(map);
        small.emit(16 * group, shift_down(bytes, group % 8 / 2 * 2, 3), sink);
    }
};

struct Q3_K {
    static constexpr int kValues = 256, kGroup = 16, kBytes = 110;
    static constexpr bool kSingleValues = false;
    const uint8_t* block;
    float scales[16];

    // Scale g, stored plus 32: its low four bits are nibble g / 8 of byte g % 8, its upper two are
    // bits 2 (g / 4) of byte 8 + g % 4.
    explicit Q3_K(const uint8_t* block) : block(block) {
        const uint32_t first = load_word(block + 96), second = load_word(block + 100);
        const uint32_t top = load_word(block + 104);
        const auto four = [&](uint32_t low, int shift) {
            return uint64_t{(low & 0x0F0F0F0F) | (top >> shift & 0x03030303) << 4};
        };
        const Bytes codes = join_words(four(first, 0) | four(second, 2) << 32,
                                       four(first >> 4, 4) | four(second >> 4, 6) << 32);
        scale_signed_codes(codes - broadcast_byte(32), load_half(block + 108), scales);
    }

    template <class Sink>
    FIRSTLIGHT_INLINE void emit(int group, Sink sink) const {
        const float factor = scales[group];
        const auto map = [=](Vector code) { return (code - 4.0f) * factor; };
        const Bytes bytes = load_bytes(block + 32 + group / 8 * 32 + group % 2 * 16);
        const Bytes high = shift_down(load_bytes(block + group % 2 * 16), group / 2, 1);
        const Bytes codes = shift_down(bytes, group % 8 / 2 * 2, 3) | shift_up(high, 2);
        SmallCodes<decltype(map)>(map).emit(16 * group, codes, sink);
    }
};

struct Q6_K {
    static constexpr int kValues = 256, kGroup = 16, kBytes = 210;
    static constexpr bool kSingleValues = false;
    const uint8_t* block;
    float scales[16];

    explicit Q6_K(const uint8_t* block) : block(block) {
        scale_signed_codes(load_bytes(block + 192), load_half(block + 208), scales);
    }

    template <class Sink>
    FIRSTLIGHT_INLINE void emit(int group, Sink sink) const {
        const int half = group / 8, quarter = group % 8 / 2, offset = group % 2 * 16;
        const float factor = scales[group];
        const auto map = [=](Vector code) { return code * factor; };
        const Bytes low = load_bytes(block + 64 * half + 32 * (quarter % 2) + offset);
        const Bytes top = load_bytes(block + 128 + 32 * half + offset);
        const Bytes codes = shift_down(low, quarter / 2 * 4, 15) |
                            shift_up(shift_down(top, quarter * 2, 3), 4);
        emit_signed(16 * group, codes - broadcast_byte(32), map, sink);
    }
};

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
