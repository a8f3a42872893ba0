// Attention over paged streams, with an online softmax (Milakov and Gimelshein 2018,
// arXiv:1805.02867) over blocks of keys and over segments of blocks.
//
// Blocks and segments begin at multiples of fixed numbers of positions, not where a row's view
// begins, and a row skips what it does not see. So a row's result does not depend on the rows
// computed beside it, nor on whether segments are computed one after another or at once.

constexpr int64_t kBlock = 64;
constexpr int64_t kSegment = 1024;
constexpr float kNothing = -HUGE_VALF;

inline int64_t round_up(int64_t value) { return divide_up(value, 16) * 16; }

// The rows of a group, with the query heads of one key-value head.
struct AttentionTile {
    const AttentionCall* call;
    AttentionRows rows;
    int64_t key_value_head;

    int64_t heads() const { return call->heads / call->key_value_heads; }
    int64_t queries() const { return (rows.end - rows.begin) * heads(); }
    int64_t last(int64_t row) const { return call->positions[row]; }
    int64_t first(int64_t row) const {
        const int64_t first = last(row) - call->window + 1;
        return first > 0 ? first : 0;
    }
    int64_t first() const { return first(rows.begin); }
    int64_t last() const { return last(rows.end - 1); }
    // Whether entries are copied before use. In the pages those of one head lie a large power of
    // two apart, which the first-level cache holds few of.
    bool copies(StreamType type) const { return type != StreamType::float32 || queries() >= 4; }
    const float* query(int64_t query) const {
        const int64_t row = rows.begin + query / heads();
        const int64_t head = key_value_head * heads() + query % heads();
        return call->queries + (row * call->heads + head) * call->key_size;
    }
};

// For each query of a tile the softmax's running maximum and sum, and the weighted sum of values.
struct Partial {
    float* maximum;
    float* sum;
    float* values;  // [queries, stride]
    int64_t stride;

    static int64_t floats(int64_t queries, int64_t value_size) {
        return round_up(2 * queries) + queries * round_up(value_size);
    }
    static Partial at(float* memory, int64_t queries, int64_t value_size) {
        return {memory, memory + queries, memory + round_up(2 * queries), round_up(value_size)};
    }
    void clear(int64_t queries) {
        for (int64_t i = 0; i < queries; ++i) maximum[i] = kNothing;
        for (int64_t i = 0; i < queries; ++i) sum[i] = 0.0f;
        for (int64_t i = 0; i < queries * stride; ++i) values[i] = 0.0f;
    }
    bool empty(int64_t query) const { return maximum[query] == kNothing && sum[query] == 0.0f; }
};

// Where entries lie as float32: in the pages, or copied to a buffer.
struct Entries {
    const uint8_t* at[kBlock];

    void find(const AttentionTile& tile, StreamType type, const void* pages, int64_t size,
              int64_t begin, int64_t end, float* buffer) {
        const bool copied = tile.copies(type);
        const AttentionCall& call = *tile.call;
        const int32_t* table = call.page_table + tile.rows.sequence * call.table_width;
        for (int64_t t = begin; t < end; ++t) {
            const int64_t slot = table[t / call.page_tokens] * call.page_tokens +
                                 t % call.page_tokens;
            const int64_t offset = (slot * call.key_value_heads + tile.key_value_head) * size;
            const int64_t width = type == StreamType::float32 ? 4 : 2;
            at[t - begin] = static_cast<const uint8_t*>(pages) + offset * width;
            if (!copied) continue;
            float* copy = buffer + (t - begin) * round_up(size);
            if (type == StreamType::float32) {
                memcpy(copy, at[t - begin], static_cast<size_t>(size) * sizeof(float));
            } else {
                decode_to<BF16>(at[t - begin], size, copy);
            }
            at[t - begin] = reinterpret_cast<const uint8_t*>(copy);
        }
    }
};

// Sizes in float32 of a tile's scratch memory.
struct AttentionScratch {
    int64_t keys, values, scores;

    explicit AttentionScratch(const AttentionTile& tile) {
        const AttentionCall& call = *tile.call;
        keys = tile.copies(call.key_type) ? kBlock * round_up(call.key_size) : 0;
        values = tile.copies(call.value_type) ? kBlock * round_up(call.value_size) : 0;
        scores = tile.queries() * kBlock;
    }
    int64_t total() const { return keys + values + scores; }
};

// values[q, :] += sum over t of weights[q, t] * entries[t, :], for `Queries` rows of both.
template <int Queries, int Vectors>
inline void add_weighted_columns(const Entries& entries, int64_t begin, int64_t end,
                                 const float* weights, float* values, int64_t stride,
                                 int64_t column) {
    Vector total[Queries][Vectors];
    for (int q = 0; q < Queries; ++q) {
        for (int v = 0; v < Vectors; ++v) {
            total[q][v] = load(values + q * stride + column + v * kWidth);
        }
    }
    for (int64_t t = begin; t < end; ++t) {
        const uint8_t* entry = entries.at[t] + column * 4;
        Vector part[Vectors];
        for (int v = 0; v < Vectors; ++v) part[v] = load(entry + v * kWidth * 4);
        for (int q = 0; q < Queries; ++q) {
            const Vector weight = broadcast(weights[q * kBlock + t]);
            for (int v = 0; v < Vectors; ++v) {
                total[q][v] = multiply_add(weight, part[v], total[q][v]);
            }
        }
    }
    for (int q = 0; q < Queries; ++q) {
        for (int v = 0; v < Vectors; ++v) {
            store(values + q * stride + column + v * kWidth, total[q][v]);
        }
    }
}

template <int Queries>
inline void add_weighted(const Entries& entries, int64_t begin, int64_t end, int64_t size,
                         const float* weights, float* values, int64_t stride) {
    int64_t column = 0;
    for (; column + 4 * kWidth <= size; column += 4 * kWidth) {
        add_weighted_columns<Queries, 4>(entries, begin, end, weights, values, stride, column);
    }
    for (; column + kWidth <= size; column += kWidth) {
        add_weighted_columns<Queries, 1>(entries, begin, end, weights, values, stride, column);
    }
    if (column == size) return;
    for (int64_t t = begin; t < end; ++t) {
        const Vector part = load_first(entries.at[t] + column * 4, size - column);
        for (int q = 0; q < Queries; ++q) {
            float* target = values + q * stride + column;
            store(target, multiply_add(broadcast(weights[q * kBlock + t]), part, load(target)));
        }
    }
}

// Turns a query's scores of one block, those in [begin, end), into weights; all others become 0.
inline void soften(const AttentionCall& call, float* scores, int64_t begin, int64_t end,
                   float& maximum, float& sum_of_weights, float* values, int64_t stride) {
    Vector most = broadcast(maximum);
    for (int64_t i = 0; i < kBlock; i += kWidth) {
        Vector score = load(scores + i) * call.scale;
        if (call.soft_cap > 0.0f) {
            score = hyperbolic_tangent(score / broadcast(call.soft_cap)) * call.soft_cap;
        }
        store(scores + i, score);
    }
    for (int64_t i = 0; i < begin; ++i) scores[i] = kNothing;
    for (int64_t i = end; i < kBlock; ++i) scores[i] = kNothing;
    for (int64_t i = 0; i < kBlock; i += kWidth) {
        const Vector score = load(scores + i);
        most = select(less(most, score), score, most);
    }
    const float risen = largest(most);
    // While all scores are minus infinity there is nothing to measure from, and all weights are 0.
    const float base = risen == kNothing ? 0.0f : risen;
    Vector total = broadcast(0.0f);
    for (int64_t i = 0; i < kBlock; i += kWidth) {
        const Vector weight = exponential(load(scores + i) - base);
        store(scores + i, weight);
        total = total + weight;
    }
    float kept[kWidth];
    store(kept, exponential(broadcast(maximum - base)));
    sum_of_weights = sum_of_weights * kept[0] + sum(total);
    if (kept[0] != 1.0f) {
        for (int64_t i = 0; i < stride; ++i) values[i] *= kept[0];
    }
    maximum = risen;
}

// scores[q * kBlock + t] = query q . keys[t], for all queries of the tile; of a row's scores those
// that it does not see are left unused.
inline void score_block(const AttentionTile& tile, const Entries& keys, int64_t count,
                        float* scores) {
    const AttentionCall& call = *tile.call;
    const int64_t heads = tile.heads(), rows = tile.rows.end - tile.rows.begin;
    for (int64_t start = 0; start < call.key_size; start += kChunk) {
        const int64_t columns = least(kChunk, call.key_size - start);
        const uint8_t* left[kBlock];
        for (int64_t t = 0; t < count; ++t) left[t] = keys.at[t] + start * 4;
        if (rows > heads) {
            for (int64_t h = 0; h < heads; ++h) {
                all_dot_products(left, count, tile.query(h) + start, rows,
                                 call.heads * call.key_size, columns, start > 0,
                                 scores + h * kBlock, heads * kBlock);
            }
        } else {
            for (int64_t r = 0; r < rows; ++r) {
                all_dot_products(left, count, tile.query(r * heads) + start, heads, call.key_size,
                                 columns, start > 0, scores + r * heads * kBlock, kBlock);
            }
        }
    }
}

// Takes the positions [begin, end) of one block into the tile's partial result.
inline void attend_block(const AttentionTile& tile, int64_t block, int64_t begin, int64_t end,
                         float* scratch, Partial partial) {
    const AttentionCall& call = *tile.call;
    const AttentionScratch sizes(tile);
    float* key_buffer = scratch;
    float* value_buffer = key_buffer + sizes.keys;
    float* scores = value_buffer + sizes.values;
    const int64_t heads = tile.heads();
    // Scores lie by position within the block; entries by position from `begin`.
    const int64_t shift = begin - block;
    Entries keys, values;
    keys.find(tile, call.key_type, call.keys, call.key_size, begin, end, key_buffer);
    score_block(tile, keys, end - begin, scores + shift);
    values.find(tile, call.value_type, call.values, call.value_size, begin, end, value_buffer);
    for (int64_t row = tile.rows.begin; row < tile.rows.end; ++row) {
        const int64_t seen_from = tile.first(row) - block, seen_to = tile.last(row) + 1 - block;
        const int64_t from = seen_from > shift ? seen_from : shift;
        const int64_t to = least(seen_to, end - block);
        if (from >= to) continue;
        const int64_t first_query = (row - tile.rows.begin) * heads;
        for (int64_t q = first_query; q < first_query + heads; ++q) {
            soften(call, scores + q * kBlock, from, to, partial.maximum[q], partial.sum[q],
                   partial.values + q * partial.stride, partial.stride);
        }
        for (int64_t q = first_query; q < first_query + heads;) {
            const bool four = q + 4 <= first_query + heads;
            const auto add = four ? add_weighted<4> : add_weighted<1>;
            add(values, from - shift, to - shift, call.value_size, scores + q * kBlock + shift,
                partial.values + q * partial.stride, partial.stride);
            q += four ? 4 : 1;
        }
    }
}

// Joins the result of a later segment to the total of those before.
inline void join(Partial total, Partial later, int64_t queries, int64_t value_size) {
    for (int64_t q = 0; q < queries; ++q) {
        if (later.empty(q)) continue;
        float* values = total.values + q * total.stride;
        const float* added = later.values + q * later.stride;
        if (total.empty(q)) {
            total.maximum[q] = later.maximum[q];
            total.sum[q] = later.sum[q];
            memcpy(values, added, size_t(value_size) * sizeof(float));
            continue;
        }
        const bool rises = !(later.maximum[q] <= total.maximum[q]);
        const float risen = rises ? later.maximum[q] : total.maximum[q];
        const float base = risen == kNothing ? 0.0f : risen;
        float kept[kWidth], taken[kWidth];
        store(kept, exponential(broadcast(total.maximum[q] - base)));
        store(taken, exponential(broadcast(later.maximum[q] - base)));
        total.maximum[q] = risen;
        total.sum[q] = total.sum[q] * kept[0] + later.sum[q] * taken[0];
        for (int64_t i = 0; i < value_size; ++i) {
            values[i] = values[i] * kept[0] + added[i] * taken[0];
        }
    }
}

inline void finish(const AttentionTile& tile, Partial total) {
    const AttentionCall& call = *tile.call;
    for (int64_t q = 0; q < tile.queries(); ++q) {
        const int64_t row = tile.rows.begin + q / tile.heads();
        const int64_t head = tile.key_value_head * tile.heads() + q % tile.heads();
        float* out = call.out + (row * call.heads + head) * call.value_size;
        const float* values = total.values + q * total.stride;
        for (int64_t i = 0; i < call.value_size; ++i) out[i] = values[i] / total.sum[q];
    }
}
