// Small whole numbers, the codes of quantised blocks, and the values that they stand for.

inline uint32_t load_word(const uint8_t* from) {
    uint32_t word;
    memcpy(&word, from, sizeof word);
    return word;
}

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
    Vector look_up(Integers codes) const {
        return (Vector)_mm512_maskz_permutexvar_ps(kAllLanes, (__m512i)codes, (__m512)values);
    }
    template <class Sink>
    FIRSTLIGHT_INLINE void emit(int first, Bytes codes, Sink sink) const {
        sink(first, look_up(widen(codes, 0)));
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

// Sixteen bytes of two codes each, made ready for SmallCodes. A look-up takes no notice of what
// stands above a code's four bits, so bytes can be widened once and looked up twice.
struct NibblePairs {
#if defined(__AVX512F__)
    Integers wide;
    explicit NibblePairs(const uint8_t* from) : wide(widen(load_bytes(from), 0)) {}
    template <class Small, class Sink>
    FIRSTLIGHT_INLINE void emit_low(int first, const Small& small, Sink sink) const {
        sink(first, small.look_up(wide));
    }
    template <class Small, class Sink>
    FIRSTLIGHT_INLINE void emit_high(int first, const Small& small, Sink sink) const {
        sink(first, small.look_up(shift_right(wide, 4)));
    }
#else
    Bytes bytes;
    explicit NibblePairs(const uint8_t* from) : bytes(load_bytes(from)) {}
    template <class Small, class Sink>
    FIRSTLIGHT_INLINE void emit_low(int first, const Small& small, Sink sink) const {
        small.emit(first, low_nibbles(bytes), sink);
    }
    template <class Small, class Sink>
    FIRSTLIGHT_INLINE void emit_high(int first, const Small& small, Sink sink) const {
        small.emit(first, high_nibbles(bytes), sink);
    }
#endif
};

template <class Map, class Sink>
FIRSTLIGHT_INLINE void emit_nibbles(const uint8_t* codes, Map map, Sink sink) {
    const SmallCodes<Map> small(map);
    const NibblePairs pairs(codes);
    pairs.emit_low(0, small, sink);
    pairs.emit_high(16, small, sink);
}
