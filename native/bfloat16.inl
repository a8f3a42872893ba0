// Products of bfloat16 weights, used where the file has them, with activations rounded to bfloat16.
//
// The order of additions, whatever the batch: columns fall into chunks of equal length; in a chunk
// lane j of one accumulator takes the columns 2j and 2j + 1 of each step of 32, in the order of the
// instruction; the lanes are added by `sum4`; the chunks' sums are added in turn. A processor
// instruction that does this treats subnormal numbers as zero.

// To nearest, ties to even, as ops/rounding.py defines it. NaN is made quiet and keeps its sign and
// upper payload.
inline uint16_t to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    const uint32_t quiet = bits >> 16 | 0x40;
    return static_cast<uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? quiet : rounded);
}

inline void round_to_bfloat16(const float* from, int64_t count, uint16_t* to) {
    int64_t i = 0;
#if defined(__AVX512BW__)
    for (; i + 16 <= count; i += 16) {
        const __m512i bits = _mm512_loadu_si512(from + i);
        const __m512i one = _mm512_set1_epi32(1);
        const __m512i odd = _mm512_and_si512(_mm512_maskz_srli_epi32(kAllLanes, bits, 16), one);
        const __m512i up = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
        __m512i words = _mm512_maskz_srli_epi32(kAllLanes, _mm512_add_epi32(bits, up), 16);
        const __m512 values = _mm512_castsi512_ps(bits);
        const __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
        words = _mm512_mask_srli_epi32(words, nan, bits, 16);
        words = _mm512_mask_or_epi32(words, nan, words, _mm512_set1_epi32(0x40));
        const __m256i narrow = _mm512_maskz_cvtepi32_epi16(kAllLanes, words);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), narrow);
    }
#endif
    for (; i < count; ++i) to[i] = to_bfloat16(from[i]);
}

#if defined(__AVX512BF16__)
// Sums of products of pairs of bfloat16.
FIRSTLIGHT_INLINE __m512 add_pairs(__m512 total, __m512i weights, __m512i input) {
    return _mm512_dpbf16_ps(total, (__m512bh)weights, (__m512bh)input);
}
#endif

// Activations as bfloat16, one row every `stride` values, filled up with zeros.
struct RoundedRows {
    const float* x;
    int64_t count, columns, stride, rows_of_task;
    uint16_t* rounded;
};

inline void round_rows_task(void* context, int64_t index) {
    const RoundedRows& rows = *static_cast<const RoundedRows*>(context);
    const int64_t first = index * rows.rows_of_task;
    const int64_t end = least(first + rows.rows_of_task, rows.count);
    for (int64_t r = first; r < end; ++r) {
        uint16_t* to = rows.rounded + r * rows.stride;
        round_to_bfloat16(rows.x + r * rows.columns, rows.columns, to);
        memset(to + rows.columns, 0, static_cast<size_t>(rows.stride - rows.columns) * 2);
    }
}

// Values between rows: whole cache lines, and an odd number of them, so that the same column of
// several rows lies in different sets of the cache.
inline int64_t rounded_stride(int64_t columns) { return (divide_up(columns, 32) | 1) * 32; }

// Rounds in scratch memory of the calling thread.
inline const uint16_t* round_rows(ThreadPool& pool, const float* x, int64_t count,
                                  int64_t columns) {
    const int64_t stride = rounded_stride(columns);
    auto* rounded = static_cast<uint16_t*>(
        thread_scratch(static_cast<size_t>(count) * static_cast<size_t>(stride) * 2,
                       Scratch::bfloat16_rows));
    RoundedRows rows{x, count, columns, stride, divide_up(1 << 14, columns + 1), rounded};
    share_ranges(pool, count * columns, divide_up(count, rows.rows_of_task), round_rows_task, &rows);
    return rounded;
}

// Columns of a chunk: at most kMostChunk, whole steps, all chunks but the last equally many.
constexpr int64_t kMostBfloat16Chunk = 1536;

inline int64_t bfloat16_chunk(int64_t columns) {
    const int64_t steps = divide_up(columns, 32);
    const int64_t chunks = divide_up(steps, kMostBfloat16Chunk / 32);
    return chunks ? divide_up(steps, chunks) * 32 : 32;
}
