// Sixteen bytes at once: codes of a quantised block, before they are widened to integers.
//
// Operators are &, | and - on bytes; shifts stand below.

#if (defined(__GNUC__) || defined(__clang__)) && !defined(FIRSTLIGHT_PLAIN_VECTORS)

typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef uint16_t Words __attribute__((vector_size(16)));

inline Bytes broadcast_byte(uint8_t value) { return value - Bytes{}; }
inline Bytes join_words(uint64_t first, uint64_t second) {
    typedef uint64_t Pair __attribute__((vector_size(16)));
    return (Bytes)Pair{first, second};
}
inline Bytes equal_bytes(Bytes a, Bytes b) { return (Bytes)(a == b); }

// Shifts cross from a byte into its neighbour; `mask` takes away what came from there.
inline Bytes shift_down(Bytes bytes, int bits, uint8_t mask) {
    return (Bytes)((Words)bytes >> bits) & broadcast_byte(mask);
}
// Of bytes so small that nothing leaves them.
inline Bytes shift_up(Bytes bytes, int bits) { return (Bytes)((Words)bytes << bits); }

#else

struct Bytes {
    uint8_t lane[16];
};

template <class F>
inline Bytes each_byte(F function) {
    Bytes out;
    for (int i = 0; i < 16; ++i) out.lane[i] = static_cast<uint8_t>(function(i));
    return out;
}
inline Bytes operator&(const Bytes& a, const Bytes& b) {
    return each_byte([&](int i) { return a.lane[i] & b.lane[i]; });
}
inline Bytes operator|(const Bytes& a, const Bytes& b) {
    return each_byte([&](int i) { return a.lane[i] | b.lane[i]; });
}
inline Bytes operator-(const Bytes& a, const Bytes& b) {
    return each_byte([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline Bytes broadcast_byte(uint8_t value) {
    return each_byte([&](int) { return value; });
}
inline Bytes join_words(uint64_t first, uint64_t second) {
    return each_byte([&](int i) { return (i < 8 ? first : second) >> (i % 8 * 8); });
}
inline Bytes equal_bytes(const Bytes& a, const Bytes& b) {
    return each_byte([&](int i) { return a.lane[i] == b.lane[i] ? 0xFF : 0; });
}
inline Bytes shift_down(const Bytes& bytes, int bits, uint8_t mask) {
    return each_byte([&](int i) { return bytes.lane[i] >> bits & mask; });
}
inline Bytes shift_up(const Bytes& bytes, int bits) {
    return each_byte([&](int i) { return bytes.lane[i] << bits; });
}

#endif

inline Bytes load_bytes(const uint8_t* from) {
    Bytes out;
    memcpy(&out, from, sizeof out);
    return out;
}

// Sixteen bits, the lowest first, as bytes of 0 or `value`.
inline Bytes spread_bits(uint16_t bits, uint8_t value) {
#if defined(__AVX512BW__)
    return (Bytes)_mm_maskz_set1_epi8(bits, static_cast<char>(value));
#else
    constexpr uint64_t kEach = 0x0101010101010101, kPlaces = 0x8040201008040201;
    const Bytes copy = join_words(kEach * (bits & 0xFF), kEach * (bits >> 8));
    const Bytes place = join_words(kPlaces, kPlaces);
    return equal_bytes(copy & place, place) & broadcast_byte(value);
#endif
}

// Bytes `from` to `from` + kWidth - 1 as integers; `from` is a multiple of kWidth.
inline Integers widen(Bytes bytes, int from) {
#if defined(__AVX512F__)
    (void)from;
    return (Integers)_mm512_maskz_cvtepu8_epi32(kAllLanes, (__m128i)bytes);
#elif defined(__AVX2__)
    const __m128i all = (__m128i)bytes;
    return (Integers)_mm256_cvtepu8_epi32(from ? _mm_srli_si128(all, 8) : all);
#elif defined(__SSE2__) && !defined(FIRSTLIGHT_PLAIN_VECTORS)
    const __m128i all = (__m128i)bytes, zero = _mm_setzero_si128();
    const __m128i half = from < 8 ? _mm_unpacklo_epi8(all, zero) : _mm_unpackhi_epi8(all, zero);
    const bool low = from % 8 == 0;
    return (Integers)(low ? _mm_unpacklo_epi16(half, zero) : _mm_unpackhi_epi16(half, zero));
#else
    uint8_t lanes[16];
    memcpy(lanes, &bytes, sizeof lanes);
    int32_t wide[kWidth];
    for (int i = 0; i < kWidth; ++i) wide[i] = lanes[from + i];
    Integers out;
    memcpy(&out, wide, sizeof out);
    return out;
#endif
}

// The same of signed bytes.
inline Integers widen_signed(Bytes bytes, int from) {
#if defined(__AVX512F__)
    (void)from;
    return (Integers)_mm512_maskz_cvtepi8_epi32(kAllLanes, (__m128i)bytes);
#elif defined(__AVX2__)
    const __m128i all = (__m128i)bytes;
    return (Integers)_mm256_cvtepi8_epi32(from ? _mm_srli_si128(all, 8) : all);
#elif defined(__SSE2__) && !defined(FIRSTLIGHT_PLAIN_VECTORS)
    // The byte is put at the top of its integer and shifted down with its sign.
    const __m128i all = (__m128i)bytes;
    const __m128i half = from < 8 ? _mm_unpacklo_epi8(all, all) : _mm_unpackhi_epi8(all, all);
    const bool low = from % 8 == 0;
    const __m128i top = low ? _mm_unpacklo_epi16(half, half) : _mm_unpackhi_epi16(half, half);
    return (Integers)_mm_srai_epi32(top, 24);
#else
    int8_t lanes[16];
    memcpy(lanes, &bytes, sizeof lanes);
    int32_t wide[kWidth];
    for (int i = 0; i < kWidth; ++i) wide[i] = lanes[from + i];
    Integers out;
    memcpy(&out, wide, sizeof out);
    return out;
#endif
}
