// GGUF's k-quants, in the manner of block_formats.inl.

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
    static constexpr int kValues = 256, kGroup = 64, kBytes = 144;
    static constexpr bool kSingleValues = false;
    const uint8_t* block;
    float scaled[16];

    explicit Q4_K(const uint8_t* block) : block(block) {
        scale_six_bit_pairs(block + 4, load_half(block), load_half(block + 2), scaled);
    }

    FIRSTLIGHT_INLINE auto small_codes(int run) const {
        const float factor = scaled[run], term = scaled[8 + run];
        const auto map = [=](Vector code) { return code * factor - term; };
        return SmallCodes<decltype(map)>(map);
    }

    template <class Sink>
    FIRSTLIGHT_INLINE void emit(int group, Sink sink) const {
        const NibblePairs first(block + 16 + 32 * group), second(block + 32 + 32 * group);
        const auto low = small_codes(2 * group), high = small_codes(2 * group + 1);
        first.emit_low(64 * group, low, sink);
        second.emit_low(64 * group + 16, low, sink);
        first.emit_high(64 * group + 32, high, sink);
        second.emit_high(64 * group + 48, high, sink);
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
