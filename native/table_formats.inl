// Formats whose codes of four bits name one of sixteen whole numbers, and their scales: GGUF's
// non-linear types (formats/iq4.py), and 4-bit floating point with scales of eight bits
// (formats/float4.py), in the manner of block_formats.inl.

constexpr int8_t kNonLinear[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};

// The numbers of E2M1, doubled so that they are whole; their scales are halved.
constexpr int8_t kDoubledFloat4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// The bytes of a table at sixteen places below 16.
inline Bytes look_up(const int8_t (&table)[16], Bytes places) {
#if defined(__AVX2__)
    const __m128i all = _mm_loadu_si128((const __m128i*)table);
    return (Bytes)_mm_shuffle_epi8(all, (__m128i)places);
#elif defined(__aarch64__) && defined(__ARM_NEON) && !defined(FIRSTLIGHT_PLAIN_VECTORS)
    return (Bytes)vqtbl1q_u8(vld1q_u8((const uint8_t*)table), (uint8x16_t)places);
#else
    uint8_t bytes[16];
    memcpy(bytes, &places, sizeof bytes);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(table[byte]);
    return load_bytes(bytes);
#endif
}

// Half of what E8M0 bytes mean, 2^(byte - 128); of 0 and 1 that is a subnormal number.
inline Vector half_e8m0(Integers bytes) {
    const Integers normal = (bytes << 23) - broadcast_int(0x00800000);
    const Integers subnormal = ((bytes & broadcast_int(1)) + broadcast_int(1)) << 21;
    return as_float(larger(normal, subnormal));
}
inline float half_e8m0(uint8_t byte) {
    return bits_to_float(byte < 2 ? uint32_t{0x00200000} << byte : (uint32_t{byte} - 1) << 23);
}

// Half of what bytes of E4M3 below 128 mean, none being NaN: a whole number below 16 times a power
// of two, so that processors that are slow with subnormal numbers meet none.
inline Vector half_e4m3(Integers bytes) {
    const Integers exponent = larger(shift_right(bytes, 3), broadcast_int(1));
    const Integers whole = bytes - (exponent << 3) + broadcast_int(8);
    return to_float(whole) * as_float((exponent << 23) + broadcast_int((127 - 11) << 23));
}

// A scale of nvfp4 as half_e4m3 takes it. ggml looks for NaN before it drops the top bit.
inline uint8_t e4m3_below_128(uint8_t byte) { return byte == 0x7F ? 0 : byte & 0x7F; }

inline float half_e4m3(uint8_t byte) {
    const uint8_t code = e4m3_below_128(byte);
    const int exponent = code < 8 ? 1 : code >> 3;
    return static_cast<float>(code - 8 * exponent + 8) *
           bits_to_float(static_cast<uint32_t>(exponent + 127 - 11) << 23);
}

// Sixteen bytes of two codes each: 32 values, the first 16 in the low nibbles.
template <class Sink>
FIRSTLIGHT_INLINE void emit_table_codes(int first, const int8_t (&table)[16], const uint8_t* from,
                                        float scale, Sink sink) {
    const Bytes bytes = load_bytes(from);
    const auto map = [=](Vector value) { return value * scale; };
    emit_signed(first, look_up(table, low_nibbles(bytes)), map, sink);
    emit_signed(first + 16, look_up(table, high_nibbles(bytes)), map, sink);
}

struct IQ4_NL {
    static constexpr int kValues = 32, kGroup = 32, kBytes = 18;
    static constexpr bool kSingleValues = false;
    const uint8_t* codes;
    float scale;

    explicit IQ4_NL(const uint8_t* block) : codes(block + 2), scale(load_half(block)) {}

    template <class Sink>
    FIRSTLIGHT_INLINE void emit(int, Sink sink) const {
        emit_table_codes(0, kNonLinear, codes, scale, sink);
    }
};

// The signed scale of group g of a block of iq4_xs, stored plus 32: nibble g of the four bytes from
// the fifth on, and two upper bits of the word before them.
inline int iq4_xs_scale(const uint8_t* block, int g) {
    const int low = block[4 + g / 2] >> g % 2 * 4 & 15;
    const int top = block[2 + g / 4] >> g % 4 * 2 & 3;
    return (low | top << 4) - 32;
}

struct IQ4_XS {
    static constexpr int kValues = 256, kGroup = 32, kBytes = 136;
    static constexpr bool kSingleValues = false;
    const uint8_t* block;
    float scale;

    explicit IQ4_XS(const uint8_t* block) : block(block), scale(load_half(block)) {}

    template <class Sink>
    FIRSTLIGHT_INLINE void emit(int group, Sink sink) const {
        const float factor = scale * static_cast<float>(iq4_xs_scale(block, group));
        emit_table_codes(32 * group, kNonLinear, block + 8 + 16 * group, factor, sink);
    }
};

struct MXFP4 {
    static constexpr int kValues = 32, kGroup = 32, kBytes = 17;
    static constexpr bool kSingleValues = false;
    const uint8_t* codes;
    float scale;

    explicit MXFP4(const uint8_t* block) : codes(block + 1), scale(half_e8m0(block[0])) {}

    template <class Sink>
    FIRSTLIGHT_INLINE void emit(int, Sink sink) const {
        emit_table_codes(0, kDoubledFloat4, codes, scale, sink);
    }
};

// Four scales, and eight bytes of codes for each.
struct NVFP4 {
    static constexpr int kValues = 64, kGroup = 16, kBytes = 36;
    static constexpr bool kSingleValues = false;
    const uint8_t* block;

    explicit NVFP4(const uint8_t* block) : block(block) {}

    template <class Sink>
    FIRSTLIGHT_INLINE void emit(int group, Sink sink) const {
        const float factor = half_e4m3(block[group]);
        uint64_t codes;
        memcpy(&codes, block + 4 + 8 * group, sizeof codes);
        const Bytes places = join_words(codes, codes >> 4) & broadcast_byte(15);
        emit_signed(16 * group, look_up(kDoubledFloat4, places),
                    [=](Vector value) { return value * factor; }, sink);
    }
};
