// The two products of attention, in tiles of registers. Each result is added up in one order: a
// score in four lanes, which take the words of its key in turn and are then added as `sum` adds
// four; a weighted sum of values position by position. So neither depends on which queries are
// computed together.

// Four values, again and again.
FIRSTLIGHT_INLINE Vector repeat_four(const float* from) {
#if defined(__AVX512F__)
    return (Vector)_mm512_maskz_broadcast_f32x4(kAllLanes, _mm_loadu_ps(from));
#elif defined(__AVX2__)
    return (Vector)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(from));
#else
    return load(from);
#endif
}

// The sums of four lanes each, vector by vector: kTileKeys of them.
FIRSTLIGHT_INLINE void store_sums(const Vector (&from)[kTileVectors], float* to) {
#if defined(__AVX512F__)
    const auto halves = [](Vector a, Vector b) {
        const __m512 lower =
            (__m512)_mm512_maskz_unpacklo_pd(0xFF, (__m512d)a, (__m512d)b);
        const __m512 upper =
            (__m512)_mm512_maskz_unpackhi_pd(0xFF, (__m512d)a, (__m512d)b);
        return _mm512_add_ps(lower, upper);
    };
    const __m512 ab = halves(from[0], from[1]), cd = halves(from[2], from[3]);
    // a b c d of the first four lanes, of the second, ...
    const __m512 sums = _mm512_add_ps(_mm512_maskz_shuffle_ps(kAllLanes, ab, cd, 0x88),
                                      _mm512_maskz_shuffle_ps(kAllLanes, ab, cd, 0xDD));
    const __m512i order =
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    store(to, (Vector)_mm512_maskz_permutexvar_ps(kAllLanes, order, sums));
#elif defined(__AVX2__)
    const __m256d a = (__m256d)from[0], b = (__m256d)from[1];
    const __m256 ab = _mm256_add_ps((__m256)_mm256_unpacklo_pd(a, b),
                                    (__m256)_mm256_unpackhi_pd(a, b));
    const __m128 first = _mm256_castps256_ps128(ab), second = _mm256_extractf128_ps(ab, 1);
    // a b of the first four lanes, a b of the second
    const __m128 sums = _mm_add_ps(_mm_shuffle_ps(first, second, 0x88),
                                   _mm_shuffle_ps(first, second, 0xDD));
    _mm_storeu_ps(to, _mm_shuffle_ps(sums, sums, 0xD8));
#else
    for (int v = 0; v < kTileVectors; ++v) to[v] = sum(from[v]);
#endif
}

// scores[q * kBlock + t] = query q . key t, for the tiles of keys t that touch [begin, end).
// `panel` [fours, kBlock, 4] holds the keys as `gather_rows` leaves them; `queries`
// [fours, values of a word, Queries, 4] what is multiplied with them.
template <StreamType type, int Queries>
inline void score_queries(const float* panel, int64_t fours, const float* queries, int64_t begin,
                          int64_t end, float* scores, Fetch& fetch) {
    constexpr int kParts = values_per_word(type);
    for (int64_t t = begin / kTileKeys * kTileKeys; t < end; t += kTileKeys) {
        Vector total[Queries][kTileVectors];
        for (int q = 0; q < Queries; ++q) {
            for (int v = 0; v < kTileVectors; ++v) total[q][v] = broadcast(0.0f);
        }
        for (int64_t four = 0; four < fours; ++four) {
            Vector word[kTileVectors], key[kTileVectors];
            for (int v = 0; v < kTileVectors; ++v) {
                word[v] = load(panel + (four * kBlock + t) * 4 + v * kWidth);
            }
            for (int part = 0; part < kParts; ++part) {
                const float* query = queries + (four * kParts + part) * Queries * 4;
                for (int v = 0; v < kTileVectors; ++v) key[v] = values_of<type>(word[v], part);
                for (int q = 0; q < Queries; ++q) {
                    const Vector value = repeat_four(query + 4 * q);
                    for (int v = 0; v < kTileVectors; ++v) {
                        total[q][v] = multiply_add(value, key[v], total[q][v]);
                    }
                }
            }
            fetch.step();
        }
        for (int q = 0; q < Queries; ++q) store_sums(total[q], scores + q * kBlock + t);
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

inline void score(StreamType type, int64_t count, const float* panel, int64_t fours,
                  const float* queries, int64_t begin, int64_t end, float* scores, Fetch& fetch) {
    with_number(count, [&](auto number) {
        constexpr int kQueries = decltype(number)::kValue;
        if (type == StreamType::float32) {
            score_queries<StreamType::float32, kQueries>(panel, fours, queries, begin, end, scores,
                                                         fetch);
        } else {
            score_queries<StreamType::bfloat16, kQueries>(panel, fours, queries, begin, end,
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
