// How a block of each storage format becomes float32, a vector at a time.
//
// A format's object is one block with its scales worked out. emit(g, sink) calls sink(i, v) with the
// values i to i + kWidth - 1 of the block, for those in its group g of kGroup values, i rising.
// Layouts and the order of roundings are those of firstlight/formats/, where their sources are
// named; what comes out is equal to those definitions bit for bit.

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
