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
