// Where attention finds its entries, and the layout in which it multiplies them.
//
// Entries are taken as 32-bit words: one float32, or two bfloat16 of which the first is the lower
// half. Nothing is converted in memory; a word's values come apart in registers.

// Positions of one block begin at a multiple of this, wherever a row's view begins.
constexpr int64_t kBlock = 64;

// Queries that share what is loaded of the keys or values, and vectors of these, as the registers
// allow. Vectors come in pairs, for the two values of a word.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kSharing = 6;
constexpr int kTileVectors = 4;
#elif defined(__AVX2__)
constexpr int kSharing = 6;
constexpr int kTileVectors = 2;
#else
constexpr int kSharing = 4;
constexpr int kTileVectors = 2;
#endif
constexpr int64_t kTileColumns = kTileVectors * kWidth;
// Keys of a tile of scores, where each takes four lanes.
constexpr int64_t kTileKeys = kTileVectors * kWidth / 4;

inline int64_t round_up(int64_t value, int64_t step) { return divide_up(value, step) * step; }

constexpr int values_per_word(StreamType type) { return type == StreamType::float32 ? 1 : 2; }
constexpr int64_t bytes_per_value(StreamType type) { return type == StreamType::float32 ? 4 : 2; }

// The first or second values of words.
template <StreamType type>
FIRSTLIGHT_INLINE Vector values_of(Vector words, int which) {
    if constexpr (type == StreamType::float32) return words;
    if (which == 0) return as_float(as_int(words) << 16);
    return as_float(as_int(words) & broadcast_int(-65536));
}

// The rows of a block: row i lies at base + offset[i].
struct BlockRows {
    const uint8_t* base;
    const int64_t* offset;
};

// Where the positions [begin, end) of a block lie, in bytes from the pages' start to a position's
// first head. `begin` and `end` count from the block's first position.
struct BlockPlaces {
    int64_t begin, end;
    int64_t key[kBlock], value[kBlock];

    void find(const AttentionCall& call, int64_t sequence, int64_t block, int64_t from,
              int64_t to) {
        begin = from - block;
        end = to - block;
        const int32_t* table = call.page_table + sequence * call.table_width;
        const int64_t key_bytes =
            call.key_value_heads * call.key_size * bytes_per_value(call.key_type);
        const int64_t value_bytes =
            call.key_value_heads * call.value_size * bytes_per_value(call.value_type);
        int64_t page = from / call.page_tokens, place = from % call.page_tokens;
        for (int64_t t = begin; t < end; ++page, place = 0) {
            const int64_t first = table[page] * call.page_tokens - t + place;
            const int64_t stop = least(end, t + call.page_tokens - place);
            for (; t < stop; ++t) {
                key[t] = (first + t) * key_bytes;
                value[t] = (first + t) * value_bytes;
            }
        }
        // Positions outside are computed where that costs nothing, from an entry that is there.
        for (int64_t t = 0; t < begin; ++t) key[t] = key[begin];
        for (int64_t t = end; t < kBlock; ++t) key[t] = key[begin];
    }
};

// Rows that will be needed soon, fetched a few cache lines at a time. They are more than the
// first-level cache holds beside what is being computed.
struct Fetch {
    BlockRows rows{};
    int64_t row = 0, end = 0, byte = 0, row_bytes = 0, lines = 0;

    // All of the rows [begin, end) within so many steps.
    void plan(BlockRows from, int64_t first, int64_t stop, int64_t bytes, int64_t steps) {
        rows = from;
        row = first;
        end = stop;
        byte = 0;
        row_bytes = bytes;
        lines = divide_up((stop - first) * divide_up(bytes, 64), steps);
    }
    FIRSTLIGHT_INLINE void step() {
        if (row >= end) return;
        for (int64_t i = 0; i < lines; ++i) {
            FIRSTLIGHT_FETCH_FAR(rows.base + rows.offset[row] + byte);
            byte += 64;
            if (byte < row_bytes) continue;
            byte = 0;
            if (++row == end) return;
        }
    }
};

// Two times 16 bytes, side by side.
FIRSTLIGHT_INLINE void store_pair(float* to, const uint8_t* first, const uint8_t* second) {
#if defined(__AVX2__)
    const __m128 a = _mm_loadu_ps(reinterpret_cast<const float*>(first));
    const __m128 b = _mm_loadu_ps(reinterpret_cast<const float*>(second));
    _mm256_storeu_ps(to, _mm256_insertf128_ps(_mm256_castps128_ps256(a), b, 1));
#else
    memcpy(to, first, 16);
    memcpy(to + 4, second, 16);
#endif
}

// panel[w / 4, t, w % 4] = word w of row t, for the rows of all tiles that touch [begin, end): four
// words of every row side by side. Words beyond a row's bytes are 0.
inline void gather_rows(BlockRows rows, int64_t begin, int64_t end, int64_t bytes, float* panel) {
    const int64_t last = round_up(end, kTileKeys), whole = bytes / 16;
    for (int64_t t = begin / kTileKeys * kTileKeys; t < last; t += 2) {
        const uint8_t* even = rows.base + rows.offset[t];
        const uint8_t* odd = rows.base + rows.offset[t + 1];
        float* target = panel + t * 4;
        for (int64_t four = 0; four < whole; ++four) {
            store_pair(target + four * kBlock * 4, even + four * 16, odd + four * 16);
        }
        if (whole * 16 == bytes) continue;
        uint8_t padded[32] = {};
        memcpy(padded, even + whole * 16, static_cast<size_t>(bytes - whole * 16));
        memcpy(padded + 16, odd + whole * 16, static_cast<size_t>(bytes - whole * 16));
        memcpy(target + whole * kBlock * 4, padded, sizeof padded);
    }
}
