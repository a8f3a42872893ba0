// Codes of kWidth rows and four columns at a time, taken out of a panel's planes.

#if (defined(__GNUC__) || defined(__clang__)) && !defined(FIRSTLIGHT_PLAIN_VECTORS)

typedef uint8_t Codes __attribute__((vector_size(4 * kWidth)));
typedef uint16_t CodeWords __attribute__((vector_size(4 * kWidth)));

// Bits move across bytes; `mask` takes away what came from a neighbour.
template <int Down>
FIRSTLIGHT_INLINE Codes moved_down(Codes codes, uint8_t mask) {
    if constexpr (Down >= 0) {
        return (Codes)((CodeWords)codes >> Down) & (mask - Codes{});
    } else {
        return (Codes)((CodeWords)codes << -Down) & (mask - Codes{});
    }
}

#else

typedef Bytes Codes;

template <int Down>
inline Codes moved_down(const Codes& codes, uint8_t mask) {
    return each_byte([&](int i) {
        if constexpr (Down >= 0) return codes.lane[i] >> Down & mask;
        if constexpr (Down < 0) return codes.lane[i] << -Down & mask;
    });
}

#endif

FIRSTLIGHT_INLINE Codes load_codes(const uint8_t* from) {
    Codes out;
    memcpy(&out, from, sizeof out);
    return out;
}

// The bytes of a table at places below 16.
FIRSTLIGHT_INLINE Codes look_up_codes(const uint8_t (&table)[16], Codes places) {
#if defined(__AVX512BW__)
    const __m128i one = _mm_loadu_si128((const __m128i*)table);
    const __m512i all = _mm512_maskz_broadcast_i32x4(kAllLanes, one);
    return (Codes)_mm512_shuffle_epi8(all, (__m512i)places);
#elif defined(__AVX2__)
    const __m256i all = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
    return (Codes)_mm256_shuffle_epi8(all, (__m256i)places);
#elif defined(__aarch64__) && defined(__ARM_NEON) && !defined(FIRSTLIGHT_PLAIN_VECTORS)
    return (Codes)vqtbl1q_u8(vld1q_u8(table), (uint8x16_t)places);
#else
    uint8_t bytes[4 * kWidth];
    memcpy(bytes, &places, sizeof bytes);
    for (uint8_t& byte : bytes) byte = table[byte];
    return load_codes(bytes);
#endif
}

// Quad `Quad` of a group whose codes begin at `group`, for the kWidth rows from byte `offset` of
// each vector.
template <int Bits, int Quad>
FIRSTLIGHT_INLINE Codes quad_codes(const uint8_t* group, int64_t offset) {
    const auto plane = [&](int index) FIRSTLIGHT_INLINED {
        return load_codes(group + index * kPlaneBytes + offset);
    };
    // Where in a byte of a plane of two bits the quad stands.
    constexpr int kTwo = Quad % 4 * 2;
    if constexpr (Bits == 8) {
        return plane(Quad);
    } else if constexpr (Bits == 2) {
        return moved_down<kTwo>(plane(Quad / 4), 3);
    } else if constexpr (Bits == 3) {
        return moved_down<kTwo>(plane(Quad / 4), 3) | moved_down<Quad - 2>(plane(2), 4);
    } else {
        const Codes low = moved_down<Quad / 4 * 4>(plane(Quad % 4), 15);
        if constexpr (Bits == 4) return low;
        if constexpr (Bits == 5) return low | moved_down<Quad - 4>(plane(4), 16);
        if constexpr (Bits == 6) return low | moved_down<kTwo - 4>(plane(4 + Quad / 4), 48);
    }
}
