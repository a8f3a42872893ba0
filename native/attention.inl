// Attention over paged streams, with an online softmax (Milakov and Gimelshein 2018,
// arXiv:1805.02867) over blocks of keys and over segments of blocks.
//
// Blocks and segments begin at multiples of fixed numbers of positions, not where a row's view
// begins, and a row skips what it does not see. So a row's result does not depend on the rows
// computed beside it, nor on whether segments are computed one after another or at once.

constexpr int64_t kSegment = 1024;
constexpr float kNothing = -HUGE_VALF;

// From so many queries on, values are copied before use: in the pages those of one head lie a large
// power of two apart, which the first-level cache holds few of.
constexpr int64_t kWorthCopying = 16;

// The rows of a group, with the query heads of one key-value head. Its queries are numbered by row,
// then by head.
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
    int64_t row_of(int64_t query) const { return rows.begin + query / heads(); }
    const float* query(int64_t query) const {
        const int64_t head = key_value_head * heads() + query % heads();
        return call->queries + (row_of(query) * call->heads + head) * call->key_size;
    }
};

// What of one key-value head's bytes in an entry is its own, and the sizes that follow from that.
struct AttentionSizes {
    int64_t queries, key_bytes, key_fours, key_columns;  // fours: of words
    int64_t value_bytes, value_columns, value_row_bytes;
    bool copies_values;

    explicit AttentionSizes(const AttentionTile& tile) {
        const AttentionCall& call = *tile.call;
        queries = tile.queries();
        key_bytes = call.key_size * bytes_per_value(call.key_type);
        key_fours = divide_up(key_bytes, 16);
        key_columns = key_fours * 4 * values_per_word(call.key_type);
        value_bytes = call.value_size * bytes_per_value(call.value_type);
        value_columns = value_stride(call);
        value_row_bytes = value_columns * bytes_per_value(call.value_type);
        copies_values = queries >= kWorthCopying || value_columns != call.value_size;
    }
    // Columns are computed in pairs of vectors, the same number at every level.
    static int64_t value_stride(const AttentionCall& call) {
        return round_up(call.value_size, 32);
    }
    // Floats of scratch memory: of one head's packed queries, and of all that a block needs.
    int64_t packed_queries() const { return round_up(queries * key_columns, 16); }
    int64_t panel() const { return key_fours * 4 * kBlock; }
    int64_t copied_values() const { return copies_values ? kBlock * value_row_bytes / 4 : 0; }
    int64_t block() const { return panel() + copied_values() + queries * kBlock; }
};

// For each query of a tile the softmax's running maximum and sum, and the weighted sum of values,
// whose columns lie as `add_columns` leaves them.
struct Partial {
    float* maximum;
    float* sum;
    float* values;  // [queries, stride]
    int64_t stride;

    static int64_t floats(int64_t queries, int64_t stride) {
        return round_up(2 * queries, 16) + queries * stride;
    }
    static Partial at(float* memory, int64_t queries, int64_t stride) {
        return {memory, memory + queries, memory + round_up(2 * queries, 16), stride};
    }
    void clear(int64_t queries) {
        for (int64_t i = 0; i < queries; ++i) maximum[i] = kNothing;
        for (int64_t i = 0; i < queries; ++i) sum[i] = 0.0f;
        for (int64_t i = 0; i < queries * stride; ++i) values[i] = 0.0f;
    }
    bool empty(int64_t query) const { return maximum[query] == kNothing && sum[query] == 0.0f; }
};

// A tile's queries as `score_queries` takes them, kSharing at a time, with zeros behind them.
inline void pack_queries(const AttentionTile& tile, float* packed) {
    const AttentionSizes sizes(tile);
    const int64_t parts = values_per_word(tile.call->key_type);
    for (int64_t q = 0; q < sizes.queries; q += kSharing) {
        const int64_t count = least(kSharing, sizes.queries - q);
        float* target = packed + q * sizes.key_columns;
        for (int64_t i = 0; i < count; ++i) {
            const float* query = tile.query(q + i);
            for (int64_t c = 0; c < sizes.key_columns; ++c) {
                // The word's value, its word, and that one's place among four.
                const int64_t part = c % parts, word = c / parts, lane = word % 4;
                target[((word / 4 * parts + part) * count + i) * 4 + lane] =
                    c < tile.call->key_size ? query[c] : 0.0f;
            }
        }
    }
}

// Turns a query's scores of one block, those in [begin, end), into weights; all others become 0.
inline void soften(const AttentionCall& call, float* scores, int64_t begin, int64_t end,
                   float& maximum, float& sum_of_weights, float* values, int64_t stride) {
    constexpr int kVectors = kBlock / kWidth;
    Vector score[kVectors];
    for (int v = 0; v < kVectors; ++v) {
        score[v] = load(scores + v * kWidth) * call.scale;
        if (call.soft_cap <= 0.0f) continue;
        score[v] = hyperbolic_tangent(score[v] / broadcast(call.soft_cap)) * call.soft_cap;
    }
    if (begin > 0 || end < kBlock) {
        for (int v = 0; v < kVectors; ++v) store(scores + v * kWidth, score[v]);
        for (int64_t i = 0; i < begin; ++i) scores[i] = kNothing;
        for (int64_t i = end; i < kBlock; ++i) scores[i] = kNothing;
        for (int v = 0; v < kVectors; ++v) score[v] = load(scores + v * kWidth);
    }
    Vector most = broadcast(maximum);
    for (int v = 0; v < kVectors; ++v) most = at_least(score[v], most);
    const float risen = largest(most);
    // While all scores are minus infinity there is nothing to measure from, and all weights are 0.
    const float base = risen == kNothing ? 0.0f : risen;
    Vector total = broadcast(0.0f);
    for (int v = 0; v < kVectors; ++v) {
        score[v] = exponential(score[v] - base);
        store(scores + v * kWidth, score[v]);
        total = total + score[v];
    }
    if (maximum == risen) {
        sum_of_weights += sum(total);
        return;
    }
    float kept[kWidth];
    store(kept, exponential(broadcast(maximum - base)));
    sum_of_weights = sum_of_weights * kept[0] + sum(total);
    for (int64_t i = 0; i < stride; ++i) values[i] *= kept[0];
    maximum = risen;
}

// One key-value head at one block.
struct AttentionStep {
    AttentionTile tile;
    const BlockPlaces* places;

    BlockRows keys() const {
        const AttentionCall& call = *tile.call;
        const int64_t offset =
            tile.key_value_head * call.key_size * bytes_per_value(call.key_type);
        return {static_cast<const uint8_t*>(call.keys) + offset, places->key};
    }
    BlockRows values() const {
        const AttentionCall& call = *tile.call;
        const int64_t offset =
            tile.key_value_head * call.value_size * bytes_per_value(call.value_type);
        return {static_cast<const uint8_t*>(call.values) + offset, places->value};
    }
};

// What a query sees of a block.
struct Seen {
    int64_t from, to;

    explicit Seen(const BlockPlaces& places) : from(places.begin), to(places.end) {}
    Seen(const AttentionTile& tile, const BlockPlaces& places, int64_t block, int64_t query) {
        const int64_t row = tile.row_of(query);
        from = tile.first(row) - block;
        from = from > places.begin ? from : places.begin;
        to = least(tile.last(row) + 1 - block, places.end);
    }
    // A bit for each position of the block.
    uint64_t bits() const {
        if (from >= to) return 0;
        const uint64_t before = to < kBlock ? ~(~uint64_t{0} << to) : ~uint64_t{0};
        return ~uint64_t{0} << from & before;
    }
};

// Adds the weighted values of one block to the sums of the queries [query, query + count). What a
// query does not see is not multiplied by a weight of 0: it need not be a number.
inline void add_values(const AttentionStep& step, const AttentionSizes& sizes, BlockRows rows,
                       int64_t block, int64_t query, int64_t count, const float* weights,
                       Partial partial, Fetch& fetch) {
    int64_t begin = 0, end = kBlock;
    for (int64_t q = query; q < query + count; ++q) {
        const Seen seen(step.tile, *step.places, block, q);
        begin = seen.from > begin ? seen.from : begin;
        end = least(end, seen.to);
    }
    const auto add = [&](int64_t q, int64_t queries, int64_t first, int64_t stop) {
        if (first >= stop) return;
        add_weighted(step.tile.call->value_type, queries, rows, first, stop, sizes.value_columns,
                     weights + q * kBlock, partial.values + q * partial.stride, partial.stride,
                     fetch);
    };
    if (begin >= end) end = begin = kBlock;
    for (int64_t q = query; q < query + count; ++q) {
        const Seen seen(step.tile, *step.places, block, q);
        add(q, 1, seen.from, least(begin, seen.to));
    }
    add(query, count, begin, end);
    for (int64_t q = query; q < query + count; ++q) {
        add(q, 1, end, Seen(step.tile, *step.places, block, q).to);
    }
}

// Values as `add_weighted` takes them: where they lie, or copied, with zeros behind each row.
inline BlockRows usable_values(const AttentionStep& step, const AttentionSizes& sizes,
                               float* buffer, int64_t* offsets) {
    const BlockRows rows = step.values();
    if (!sizes.copies_values) return rows;
    uint8_t* copy = reinterpret_cast<uint8_t*>(buffer);
    for (int64_t t = step.places->begin; t < step.places->end; ++t) {
        offsets[t] = t * sizes.value_row_bytes;
        uint8_t* target = copy + offsets[t];
        memcpy(target, rows.base + rows.offset[t], static_cast<size_t>(sizes.value_bytes));
        memset(target + sizes.value_bytes, 0,
               static_cast<size_t>(sizes.value_row_bytes - sizes.value_bytes));
    }
    return {copy, offsets};
}

// Takes one block into the tile's partial result, and fetches what the next step will read.
inline void attend_block(const AttentionStep& step, const AttentionStep* next, int64_t block,
                         const float* packed_queries, float* scratch, Partial partial) {
    const AttentionTile& tile = step.tile;
    const AttentionSizes sizes(tile);
    const AttentionCall& call = *tile.call;
    const BlockPlaces& places = *step.places;
    float* panel = scratch;
    float* copied = panel + sizes.panel();
    float* scores = copied + sizes.copied_values();
    Fetch keys, values;
    if (next) {
        const BlockPlaces& to = *next->places;
        keys.plan(next->keys(), to.begin, to.end, sizes.key_bytes,
                  sizes.key_fours * (kBlock / kTileKeys));
        values.plan(next->values(), to.begin, to.end, sizes.value_bytes,
                    kBlock * divide_up(sizes.value_columns, kTileColumns));
    }
    gather_rows(step.keys(), places.begin, places.end, sizes.key_bytes, panel);
    for (int64_t q = 0; q < sizes.queries; q += kSharing) {
        score(call.key_type, least(kSharing, sizes.queries - q), panel, sizes.key_fours,
              packed_queries + q * sizes.key_columns, places.begin, places.end,
              scores + q * kBlock, keys);
    }
    for (int64_t q = 0; q < sizes.queries; ++q) {
        const Seen seen(tile, places, block, q);
        if (seen.from >= seen.to) continue;
        soften(call, scores + q * kBlock, seen.from, seen.to, partial.maximum[q], partial.sum[q],
               partial.values + q * partial.stride, partial.stride);
    }
    int64_t offsets[kBlock];
    const BlockRows rows = usable_values(step, sizes, copied, offsets);
    for (int64_t q = 0; q < sizes.queries; q += kSharing) {
        add_values(step, sizes, rows, block, q, least(kSharing, sizes.queries - q), scores, partial,
                   values);
    }
}

// Joins the result of a later segment to the total of those before.
inline void join(Partial total, Partial later, int64_t queries) {
    for (int64_t q = 0; q < queries; ++q) {
        if (later.empty(q)) continue;
        float* values = total.values + q * total.stride;
        const float* added = later.values + q * later.stride;
        if (total.empty(q)) {
            total.maximum[q] = later.maximum[q];
            total.sum[q] = later.sum[q];
            memcpy(values, added, static_cast<size_t>(total.stride) * sizeof(float));
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
        for (int64_t i = 0; i < total.stride; ++i) {
            values[i] = values[i] * kept[0] + added[i] * taken[0];
        }
    }
}

// Adds to a sum of weights that of a sink: a score whose value is zero. Values measured from `maximum`
// are to be multiplied by what is returned.
inline float add_sink(float sink, float maximum, float& sum_of_weights) {
    const bool above = sink > maximum;
    float risen[kWidth];
    store(risen, exponential(broadcast(above ? maximum - sink : sink - maximum)));
    sum_of_weights = above ? sum_of_weights * risen[0] + 1.0f : sum_of_weights + risen[0];
    return above ? risen[0] : 1.0f;
}

// Divides by the sum of weights, and puts columns in their order.
inline void finish(const AttentionTile& tile, Partial total) {
    const AttentionCall& call = *tile.call;
    for (int64_t q = 0; q < tile.queries(); ++q) {
        const int64_t head = tile.key_value_head * tile.heads() + q % tile.heads();
        float* out = call.out + (tile.row_of(q) * call.heads + head) * call.value_size;
        const float* values = total.values + q * total.stride;
        float sum_of_weights = total.sum[q], kept = 1.0f;
        if (call.sinks) kept = add_sink(call.sinks[head], total.maximum[q], sum_of_weights);
        if (call.value_type == StreamType::float32) {
            for (int64_t i = 0; i < call.value_size; ++i) {
                out[i] = values[i] * kept / sum_of_weights;
            }
            continue;
        }
        for (int64_t i = 0; i < call.value_size; ++i) {
            const int64_t pair = i / (2 * kWidth), within = i % (2 * kWidth);
            const int64_t place = pair * 2 * kWidth + within % 2 * kWidth + within / 2;
            out[i] = values[place] * kept / sum_of_weights;
        }
    }
}

// One way of computing attention, block by block. How much memory it needs is counted in floats.
struct AttentionWay {
    int64_t (*stride)(const AttentionCall&);          // of a query's weighted sum of values
    int64_t (*packed_queries)(const AttentionTile&);  // of one head
    int64_t (*block)(const AttentionTile&);           // scratch memory of a block
    void (*pack)(const AttentionTile&, float* packed);
    void (*attend)(const AttentionStep&, const AttentionStep* next, int64_t block,
                   const float* packed_queries, float* scratch, Partial);
    void (*join)(Partial total, Partial later, int64_t queries);
    void (*finish)(const AttentionTile&, Partial total);
};

constexpr AttentionWay kValuesAsStored = {
    [](const AttentionCall& call) { return AttentionSizes::value_stride(call); },
    [](const AttentionTile& tile) { return AttentionSizes(tile).packed_queries(); },
    [](const AttentionTile& tile) { return AttentionSizes(tile).block(); },
    pack_queries, attend_block, join, finish,
};
