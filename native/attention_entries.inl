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

inline int64_t round_up(int64_t value, int64_t step) { return divide_up(value, step) * step; }

constexpr int values_per_word(StreamType type) { return type == StreamType::float32 ? 1 : 2; }
constexpr int64_t bytes_per_value(StreamType type) { return type == StreamType::float32 ? 4 : 2; }
inline int64_t words_of(StreamType type, int64_t size) {
    return divide_up(size, values_per_word(type));
}

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

// panel[w, t] = word w of row t, for the rows of all tiles of columns that touch [begin, end).
inline void transpose_rows(BlockRows rows, int64_t begin, int64_t end, int64_t bytes,
                           float* panel) {
    const int64_t last = round_up(end, kTileColumns), whole = bytes / (kWidth * 4) * kWidth;
    for (int64_t t = begin / kTileColumns * kTileColumns; t < last; t += kWidth) {
        for (int64_t w = 0; w < whole; w += kWidth) {
            transpose(rows.base + w * 4, rows.offset + t, panel + w * kBlock + t, kBlock);
        }
        if (whole * 4 == bytes) continue;
        uint8_t padded[kWidth * kWidth * 4] = {};
        int64_t offset[kWidth];
        for (int i = 0; i < kWidth; ++i) {
            offset[i] = i * kWidth * 4;
            memcpy(padded + offset[i], rows.base + rows.offset[t + i] + whole * 4,
                   static_cast<size_t>(bytes - whole * 4));
        }
        transpose(padded, offset, panel + whole * kBlock + t, kBlock);
    }
}
