// 4-bit floating point, E2M1 as checkpoints store it: two in a byte, the first in the low nibble
// (formats/codes.py).

// Sixteen bytes, of the first and second eight in turn.
inline Bytes in_turn(Bytes bytes) {
#if defined(__SSE2__) && !defined(FIRSTLIGHT_PLAIN_VECTORS)
    return (Bytes)_mm_unpacklo_epi8((__m128i)bytes, _mm_srli_si128((__m128i)bytes, 8));
#elif defined(__aarch64__) && defined(__ARM_NEON) && !defined(FIRSTLIGHT_PLAIN_VECTORS)
    return (Bytes)vzip1q_u8((uint8x16_t)bytes, vextq_u8((uint8x16_t)bytes, (uint8x16_t)bytes, 8));
#else
    uint8_t from[16], to[16];
    memcpy(from, &bytes, sizeof from);
    for (int i = 0; i < 16; ++i) to[i] = from[i / 2 + i % 2 * 8];
    return load_bytes(to);
#endif
}

struct E2M1 {
    static constexpr int kValues = 16, kGroup = 16, kBytes = 8;
    static constexpr bool kSingleValues = false;
    Bytes doubled;

    explicit E2M1(const uint8_t* block) {
        uint64_t codes;
        memcpy(&codes, block, sizeof codes);
        doubled = look_up(kDoubledFloat4,
                          in_turn(join_words(codes, codes >> 4) & broadcast_byte(15)));
    }

    template <class Sink>
    FIRSTLIGHT_INLINE void emit(int, Sink sink) const {
        emit_scaled(0.5f, sink);
    }
    // The values times `twice` as much as half of it.
    template <class Sink>
    FIRSTLIGHT_INLINE void emit_scaled(float half, Sink sink) const {
        emit_signed(0, doubled, [=](Vector value) { return value * half; }, sink);
    }
};

template <>
constexpr bool kHasScales<E2M1> = true;
