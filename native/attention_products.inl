// The two products of attention, in tiles of registers. Each result is added up in one order: a
// score over the columns of its key, anew every kScoreColumns; a weighted sum of values over the
// positions. So neither depends on which queries are computed together, nor on the level's width.

constexpr int64_t kScoreColumns = 64;

// scores[q * kBlock + t] = query q . key t, for the tiles of columns t that touch [begin, end).
// `panel` [words, kBlock] holds the transposed keys, `queries` [columns, Queries] the queries.
template <StreamType type, int Queries>
inline void score_queries(const float* panel, int64_t words, const float* queries, int64_t begin,
                          int64_t end, float* scores, Fetch& fetch) {
    constexpr int kParts = values_per_word(type);
    constexpr int64_t kWords = kScoreColumns / kParts;
    for (int64_t t = begin / kTileColumns * kTileColumns; t < end; t += kTileColumns) {
        for (int64_t start = 0; start < words; start += kWords) {
            Vector total[Queries][kTileVectors];
            for (int q = 0; q < Queries; ++q) {
                for (int v = 0; v < kTileVectors; ++v) total[q][v] = broadcast(0.0f);
            }
            const int64_t stop = least(start + kWords, words);
            for (int64_t w = start; w < stop; ++w) {
                Vector word[kTileVectors], key[kTileVectors];
                for (int v = 0; v < kTileVectors; ++v) {
                    word[v] = load(panel + w * kBlock + t + v * kWidth);
                }
                for (int part = 0; part < kParts; ++part) {
                    const float* query = queries + (w * kParts + part) * Queries;
                    for (int v = 0; v < kTileVectors; ++v) {
                        key[v] = values_of<type>(word[v], part);
                    }
                    for (int q = 0; q < Queries; ++q) {
                        const Vector value = broadcast(query[q]);
                        for (int v = 0; v < kTileVectors; ++v) {
                            total[q][v] = multiply_add(value, key[v], total[q][v]);
                        }
                    }
                }
                fetch.step();
            }
            for (int q = 0; q < Queries; ++q) {
                for (int v = 0; v < kTileVectors; ++v) {
                    float* target = scores + q * kBlock + t + v * kWidth;
                    store(target, start > 0 ? load(target) + total[q][v] : total[q][v]);
                }
            }
        }
    }
}

// sums[q * stride + column ...] += sum over t of weights[q * kBlock + t] * value row t, for so many
// vectors. Of bfloat16 the even columns of a pair of vectors come first, then the odd.
template <StreamType type, int Queries, int Vectors>
inline void add_columns(BlockRows rows, int64_t begin, int64_t end, const float* weights,
                        float* sums, int64_t stride, int64_t column, Fetch& fetch) {
    constexpr int kParts = values_per_word(type);
    Vector total[Queries][Vectors];
    for (int q = 0; q < Queries; ++q) {
        for (int v = 0; v < Vectors; ++v) {
            total[q][v] = load(sums + q * stride + column + v * kWidth);
        }
    }
    const uint8_t* base = rows.base + column * bytes_per_value(type);
    for (int64_t t = begin; t < end; ++t) {
        const uint8_t* from = base + rows.offset[t];
        Vector value[Vectors];
        for (int v = 0; v < Vectors; v += kParts) {
            const Vector words = load(from + v / kParts * kWidth * 4);
            for (int part = 0; part < kParts; ++part) {
                value[v + part] = values_of<type>(words, part);
            }
        }
        for (int q = 0; q < Queries; ++q) {
            const Vector weight = broadcast(weights[q * kBlock + t]);
            for (int v = 0; v < Vectors; ++v) {
                total[q][v] = multiply_add(weight, value[v], total[q][v]);
            }
        }
        fetch.step();
    }
    for (int q = 0; q < Queries; ++q) {
        for (int v = 0; v < Vectors; ++v) {
            store(sums + q * stride + column + v * kWidth, total[q][v]);
        }
    }
}

// The same for all columns, a multiple of 2 * kWidth.
template <StreamType type, int Queries>
inline void add_rows(BlockRows rows, int64_t begin, int64_t end, int64_t columns,
                     const float* weights, float* sums, int64_t stride, Fetch& fetch) {
    int64_t column = 0;
    for (; column + kTileColumns <= columns; column += kTileColumns) {
        add_columns<type, Queries, kTileVectors>(rows, begin, end, weights, sums, stride, column,
                                                 fetch);
    }
    for (; column < columns; column += 2 * kWidth) {
        add_columns<type, Queries, 2>(rows, begin, end, weights, sums, stride, column, fetch);
    }
}

// A number as a type.
template <int value>
struct Number {
    static constexpr int kValue = value;
};

// Calls use(Number<count>{}), for 1 <= count <= kSharing.
template <class Use>
inline void with_number(int64_t count, Use use) {
    switch (count) {
        case 1: return use(Number<1>{});
        case 2: return use(Number<2>{});
        case 3: return use(Number<3>{});
        case 4: return use(Number<4>{});
#if defined(__AVX2__) || defined(__aarch64__)
        case 5: return use(Number<5>{});
        case 6: return use(Number<6>{});
#endif
        default: return;
    }
}

inline void score(StreamType type, int64_t count, const float* panel, int64_t words,
                  const float* queries, int64_t begin, int64_t end, float* scores, Fetch& fetch) {
    with_number(count, [&](auto number) {
        constexpr int kQueries = decltype(number)::kValue;
        if (type == StreamType::float32) {
            score_queries<StreamType::float32, kQueries>(panel, words, queries, begin, end, scores,
                                                         fetch);
        } else {
            score_queries<StreamType::bfloat16, kQueries>(panel, words, queries, begin, end,
                                                          scores, fetch);
        }
    });
}

inline void add_weighted(StreamType type, int64_t count, BlockRows rows, int64_t begin,
                         int64_t end, int64_t columns, const float* weights, float* sums,
                         int64_t stride, Fetch& fetch) {
    with_number(count, [&](auto number) {
        constexpr int kQueries = decltype(number)::kValue;
        if (type == StreamType::float32) {
            add_rows<StreamType::float32, kQueries>(rows, begin, end, columns, weights, sums,
                                                    stride, fetch);
        } else {
            add_rows<StreamType::bfloat16, kQueries>(rows, begin, end, columns, weights, sums,
                                                     stride, fetch);
        }
    });
}
