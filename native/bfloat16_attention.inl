// Attention over bfloat16 state in products of bfloat16, pairs of values at a time.
//
// Queries are rounded to bfloat16, and so are the weights of the softmax. A weight is 2^(t - e): t the
// score times log2(e), e a whole number near the largest t. Whole numbers, so that a weight measured
// from another e differs by a power of two exactly and is rounded alike (ops/attention.py defines
// it); so a row's bits do not depend on when e rose.
//
// The order of additions: a score takes the pairs of its key one after another; a weighted sum, and
// the sum of weights in each of sixteen lanes, the pairs of positions.

#if defined(__AVX512BF16__) || defined(FIRSTLIGHT_EMULATED_TILES)

constexpr int64_t kPairs = kBlock / 2;   // of positions in a block
constexpr int64_t kSumLanes = 16;        // in which weights are added up
constexpr float kLogarithm = 1.44269504088896341f;  // of e, to base 2

// Weights up to 2^kHeadroom are as good as those up to 1, so `e` need not follow the largest score
// at once.
constexpr float kHeadroom = 16.0f;

#if defined(FIRSTLIGHT_EMULATED_TILES)
// On machines without the instruction, for tests: the products of odd places first, as it has them.
FIRSTLIGHT_INLINE Vector add_two(Vector total, Vector a, Vector b) {
    total = multiply_add(values_of<StreamType::bfloat16>(a, 1),
                         values_of<StreamType::bfloat16>(b, 1), total);
    return multiply_add(values_of<StreamType::bfloat16>(a, 0),
                        values_of<StreamType::bfloat16>(b, 0), total);
}
#else
FIRSTLIGHT_INLINE Vector add_two(Vector total, Vector a, Vector b) {
    return (Vector)add_pairs((__m512)total, (__m512i)a, (__m512i)b);
}
#endif

// A word, in all lanes.
FIRSTLIGHT_INLINE Vector repeat_word(const float* from) {
    int32_t word;
    memcpy(&word, from, sizeof word);
    return as_float(broadcast_int(word));
}

// 32 values as bfloat16.
FIRSTLIGHT_INLINE Vector narrow(Vector low, Vector high) {
#if defined(FIRSTLIGHT_EMULATED_TILES)
    float values[2 * kWidth];
    uint16_t rounded[2 * kWidth];
    store(values, low);
    store(values + kWidth, high);
    round_to_bfloat16(values, 2 * kWidth, rounded);
    return load(rounded);
#else
    return (Vector)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
#endif
}

// 2^x, exact where x is whole, and 0 for minus infinity: the nearest sixteenth's from a table, and of what
// is left, at most 1/32, a parabola. It errs by 5e-7 of the result, and takes three multiplications
// where a polynomial on its own takes five, which are what weights of attention wait for.
FIRSTLIGHT_INLINE Vector power_of_two(Vector x) {
    const __m512 roots =
        _mm512_setr_ps(1.0f, 1.0442737824274138f, 1.0905077326652577f, 1.1387886347566916f,
                       1.1892071150027210f, 1.2418578120734840f, 1.2968395546510096f,
                       1.3542555469368927f, 1.4142135623730951f, 1.4768261459394993f,
                       1.5422108254079407f, 1.6104903319492543f, 1.6817928305074290f,
                       1.7562521603732995f, 1.8340080864093424f, 1.9152065613971474f);
    x = at_least(x, broadcast(-200.0f));
    const Vector magic = broadcast(786432.0f);  // 1.5 * 2^19: sixteenths are the lowest bits
    const Vector shifted = x + magic;
    const Vector near = shifted - magic;
    const Vector rest = x - near;
    const Vector root = (Vector)_mm512_maskz_permutexvar_ps(kAllLanes, (__m512i)shifted, roots);
    const Vector series = multiply_add(rest, broadcast(0.24022651f), broadcast(0.69318784f));
    const Vector power = multiply_add(series, rest * root, root);
    return (Vector)_mm512_maskz_scalef_ps(kAllLanes, (__m512)power, (__m512)near);
}

// What of one tile is where, in words of two values.
struct PairSizes {
    int64_t queries, key_words, columns;
    int64_t stride;  // of a query's weighted sums and, behind them, sums of weights

    explicit PairSizes(const AttentionTile& tile)
        : queries(tile.queries()), key_words(round_up(divide_up(tile.call->key_size, 2), 4)),
          columns(round_up(tile.call->value_size, 2 * kWidth)), stride(sum_stride(*tile.call)) {}
    static int64_t sum_stride(const AttentionCall& call) {
        return round_up(call.value_size, 2 * kWidth) + kSumLanes;
    }

    int64_t packed_queries() const { return round_up(queries * key_words, 16); }
    int64_t block() const {
        return kBlock * key_words + kPairs * columns + kSharing * (kBlock + 2 * kPairs);
    }
};

// Calls use(q, Number<count>{}) for a tile's queries, as many at a time as share what is loaded, in
// parts as equal as can be: a product alone would wait for its own sums.
template <class Use>
inline void by_shares(int64_t queries, Use use) {
    const int64_t parts = divide_up(queries, kSharing);
    const int64_t count = queries / parts, larger = queries % parts;
    for (int64_t begin = 0, part = 0; part < parts; ++part) {
        const int64_t these = count + (part < larger ? 1 : 0);
        with_number(these, [&](auto number) { use(begin, number); });
        begin += these;
    }
}

// A tile's queries, rounded: those taken together word by word.
inline void pack_pairs(const AttentionTile& tile, float* packed) {
    const PairSizes sizes(tile);
    const int64_t size = tile.call->key_size;
    by_shares(sizes.queries, [&](int64_t begin, auto number) {
        constexpr int64_t kCount = decltype(number)::kValue;
        uint8_t* target = reinterpret_cast<uint8_t*>(packed + begin * sizes.key_words);
        constexpr int64_t kPart = 64;
        for (int64_t i = 0; i < kCount; ++i) {
            for (int64_t start = 0; start < 2 * sizes.key_words; start += kPart) {
                const int64_t here = least(kPart, 2 * sizes.key_words - start);
                uint16_t rounded[kPart] = {};
                round_to_bfloat16(tile.query(begin + i) + start, least(here, size - start),
                                  rounded);
                for (int64_t w = 0; w < here / 2; ++w) {
                    memcpy(target + ((start / 2 + w) * kCount + i) * 4, rounded + 2 * w, 4);
                }
            }
        }
    });
}

// target[w * kBlock + i] = word w of four, of the sixteen rows i that `part` gives 16 bytes each of.
template <class Part>
FIRSTLIGHT_INLINE void transpose_four(Part part, float* target) {
    __m512i lines[4];  // the rows i, 4 + i, 8 + i, 12 + i side by side
    for (int64_t i = 0; i < 4; ++i) {
        const auto row = [&](int64_t r) FIRSTLIGHT_INLINED {
            return _mm_loadu_si128(static_cast<const __m128i*>(part(r)));
        };
        __m512i line = _mm512_castsi128_si512(row(i));
        line = _mm512_inserti32x4(line, row(4 + i), 1);
        line = _mm512_inserti32x4(line, row(8 + i), 2);
        lines[i] = _mm512_inserti32x4(line, row(12 + i), 3);
    }
    const __m512i a = _mm512_maskz_unpacklo_epi32(kAllLanes, lines[0], lines[1]);
    const __m512i b = _mm512_maskz_unpackhi_epi32(kAllLanes, lines[0], lines[1]);
    const __m512i c = _mm512_maskz_unpacklo_epi32(kAllLanes, lines[2], lines[3]);
    const __m512i d = _mm512_maskz_unpackhi_epi32(kAllLanes, lines[2], lines[3]);
    _mm512_storeu_si512(target, _mm512_maskz_unpacklo_epi64(0xFF, a, c));
    _mm512_storeu_si512(target + kBlock, _mm512_maskz_unpackhi_epi64(0xFF, a, c));
    _mm512_storeu_si512(target + 2 * kBlock, _mm512_maskz_unpacklo_epi64(0xFF, b, d));
    _mm512_storeu_si512(target + 3 * kBlock, _mm512_maskz_unpackhi_epi64(0xFF, b, d));
}

// The same of sixteen words, of rows that lie anywhere.
FIRSTLIGHT_APART void transpose_sixteen(const uint8_t* base, const int64_t* offset, float* target) {
    __m512i lines[16];
    for (int i = 0; i < 16; ++i) lines[i] = _mm512_loadu_si512(base + offset[i]);
    transpose16(lines);
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(target + i * kBlock, lines[i]);
}

// panel[w * kBlock + t] = word w of row t, for all rows of a block. Words beyond a row's bytes are 0.
inline void transpose_rows(BlockRows rows, int64_t bytes, float* panel) {
    for (int64_t t = 0; t < kBlock; t += 16) {
        const int64_t* offset = rows.offset + t;
        int64_t byte = 0;
        for (; byte + 64 <= bytes; byte += 64) {
            transpose_sixteen(rows.base + byte, offset, panel + byte / 4 * kBlock + t);
        }
        for (; byte + 16 <= bytes; byte += 16) {
            const auto part = [&](int64_t i) FIRSTLIGHT_INLINED {
                return static_cast<const void*>(rows.base + offset[i] + byte);
            };
            transpose_four(part, panel + byte / 4 * kBlock + t);
        }
        if (byte == bytes) continue;
        uint8_t rest[16][16] = {};
        for (int64_t i = 0; i < 16; ++i) {
            memcpy(rest[i], rows.base + offset[i] + byte, static_cast<size_t>(bytes - byte));
        }
        const auto part = [&](int64_t i) { return static_cast<const void*>(rest[i]); };
        transpose_four(part, panel + byte / 4 * kBlock + t);
    }
}

// panel[pair * columns + ...] = the two values of each column in the rows of a pair, for the pairs
// that touch [begin, end); rows outside count as zeros. Of 32 columns the first four of every eight
// come first (`finish_pairs` puts them in order).
FIRSTLIGHT_APART void pair_rows(BlockRows rows, int64_t begin, int64_t end, int64_t size, int64_t columns,
                      float* panel) {
    const auto put = [&](const uint8_t* even, __mmask32 even_there, const uint8_t* odd,
                         __mmask32 odd_there, float* target) FIRSTLIGHT_INLINED {
        const __m512i a = _mm512_maskz_loadu_epi16(even_there, even);
        const __m512i b = _mm512_maskz_loadu_epi16(odd_there, odd);
        _mm512_storeu_si512(target, _mm512_maskz_unpacklo_epi16(~__mmask32{0}, a, b));
        _mm512_storeu_si512(target + 16, _mm512_maskz_unpackhi_epi16(~__mmask32{0}, a, b));
    };
    for (int64_t t = begin / 2 * 2; t < end; t += 2) {
        float* target = panel + t / 2 * columns;
        const __mmask32 first = t < begin ? 0 : ~__mmask32{0};
        const __mmask32 second = t + 1 < end ? ~__mmask32{0} : 0;
        const uint8_t* even = rows.base + rows.offset[first ? t : t + 1];
        const uint8_t* odd = rows.base + rows.offset[second ? t + 1 : t];
        int64_t c = 0;
        for (; c + 32 <= size; c += 32) put(even + 2 * c, first, odd + 2 * c, second, target + c);
        if (c == columns) continue;
        const __mmask32 rest = (__mmask32{1} << (size - c)) - 1;
        put(even + 2 * c, first & rest, odd + 2 * c, second & rest, target + c);
    }
}

// Whether all values in the rows [begin, end) are finite.
inline bool are_finite(BlockRows rows, int64_t begin, int64_t end, int64_t size) {
    const __m512i exponent = _mm512_set1_epi16(0x7F80);
    __mmask32 special = 0;
    for (int64_t t = begin; t < end; ++t) {
        for (int64_t c = 0; c < size; c += 32) {
            const __mmask32 there =
                size - c >= 32 ? ~__mmask32{0} : (__mmask32{1} << (size - c)) - 1;
            const __m512i values =
                _mm512_maskz_loadu_epi16(there, rows.base + rows.offset[t] + 2 * c);
            special |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(values, exponent), exponent);
        }
    }
    return special == 0;
}

// totals[q][v] += words of queries (or weights) [step, Queries] times lines [step, vectors], a pair
// at a time, for at least one step: a loop that might have none would keep copies of the totals.
template <int Queries, int Vectors>
FIRSTLIGHT_INLINE void add_steps(Vector (&total)[Queries][Vectors], const float* words,
                                 int64_t word_step, int64_t query_step, const float* lines,
                                 int64_t line_step, int64_t steps, Fetch& fetch) {
    do {
        Vector line[Vectors];
        FIRSTLIGHT_UNROLL
        for (int v = 0; v < Vectors; ++v) line[v] = load(lines + v * kWidth);
        FIRSTLIGHT_UNROLL
        for (int q = 0; q < Queries; ++q) {
            const Vector word = repeat_word(words + q * query_step);
            FIRSTLIGHT_UNROLL
            for (int v = 0; v < Vectors; ++v) total[q][v] = add_two(total[q][v], word, line[v]);
        }
        words += word_step;
        lines += line_step;
        fetch.step();
    } while (--steps > 0);
}

// sums[q * stride + ...] += weights of q times the values of so many vectors of columns.
template <int Queries, int Vectors>
FIRSTLIGHT_APART void add_paired_columns(const float* values, int64_t columns, int64_t pairs,
                               const float* weights, float* sums, int64_t stride, Fetch& fetch) {
    Vector total[Queries][Vectors];
    FIRSTLIGHT_UNROLL
    for (int q = 0; q < Queries; ++q) {
        FIRSTLIGHT_UNROLL
        for (int v = 0; v < Vectors; ++v) total[q][v] = load(sums + q * stride + v * kWidth);
    }
    add_steps(total, weights, 1, kPairs, values, columns, pairs, fetch);
    FIRSTLIGHT_UNROLL
    for (int q = 0; q < Queries; ++q) {
        FIRSTLIGHT_UNROLL
        for (int v = 0; v < Vectors; ++v) store(sums + q * stride + v * kWidth, total[q][v]);
    }
}

// The same for all columns and the pairs that touch [begin, end).
template <int Queries>
inline void add_paired(const float* values, int64_t columns, int64_t begin, int64_t end,
                       const float* weights, float* sums, int64_t stride, Fetch& fetch) {
    const int64_t first = begin / 2, pairs = divide_up(end, 2) - first;
    const float* from = values + first * columns;
    weights += first;
    int64_t column = 0;
    for (; column + kTileColumns <= columns; column += kTileColumns) {
        add_paired_columns<Queries, kTileVectors>(from + column, columns, pairs, weights,
                                                  sums + column, stride, fetch);
    }
    for (; column < columns; column += 2 * kWidth) {
        add_paired_columns<Queries, 2>(from + column, columns, pairs, weights, sums + column,
                                       stride, fetch);
    }
}

constexpr int kScoreVectors = kBlock / kWidth;

// Turns a query's scores of one block, in units of log2(e), into rounded weights, with 0 where a bit of
// `visible` is not set. `sums` are its weighted sums of values and, behind those, of weights.
FIRSTLIGHT_INLINE void weigh(Vector (&t)[kScoreVectors], uint64_t visible, float& exponent,
                             float* sums, int64_t stride, float* weights) {
    if (visible != ~uint64_t{0}) {
        FIRSTLIGHT_UNROLL
        for (int v = 0; v < kScoreVectors; ++v) {
            const __mmask16 there = static_cast<__mmask16>(visible >> v * kWidth);
            t[v] = (Vector)_mm512_mask_mov_ps((__m512)broadcast(kNothing), there, (__m512)t[v]);
        }
    }
    const Vector most = at_least(at_least(t[0], t[1]), at_least(t[2], t[3]));
    const __m512 limit = (__m512)broadcast(exponent + kHeadroom);
    if (_mm512_cmp_ps_mask((__m512)most, limit, _CMP_GT_OQ)) {
        const float risen = ceilf(largest(most));
        const Vector kept = power_of_two(broadcast(exponent - risen));
        for (int64_t i = 0; i < stride; i += kWidth) store(sums + i, load(sums + i) * kept);
        exponent = risen;
    }
    // While all scores are minus infinity there is nothing to measure from, and all weights are 0.
    const float base = exponent == kNothing ? 0.0f : exponent;
    FIRSTLIGHT_UNROLL
    for (int v = 0; v < kScoreVectors; ++v) t[v] = power_of_two(t[v] - base);
    float* all = sums + stride - kSumLanes;
    Vector total = load(all);
    const Vector ones = as_float(broadcast_int(0x3F803F80));
    FIRSTLIGHT_UNROLL
    for (int v = 0; v < kScoreVectors; v += 2) {
        const Vector narrowed = narrow(t[v], t[v + 1]);
        store(weights + v * kWidth / 2, narrowed);
        total = add_two(total, narrowed, ones);
    }
    store(all, total);
}

// Scores in units of log2(e), in memory, with their cap.
FIRSTLIGHT_APART void cap_scores(const AttentionCall& call, int64_t count, float* scores) {
    for (int64_t i = 0; i < count; i += kWidth) {
        const Vector capped =
            hyperbolic_tangent(load(scores + i) * call.scale / broadcast(call.soft_cap));
        store(scores + i, capped * (call.soft_cap * kLogarithm));
    }
}

// weights[q] of the positions of one block, from query q . key t. `scores` is memory for so many queries.
template <int Queries>
FIRSTLIGHT_APART void weigh_keys(const AttentionCall& call, const float* keys, int64_t words,
                                 const float* queries, const uint64_t* visible, float* exponents,
                                 float* sums, int64_t stride, float* scores, float* weights,
                                 Fetch& fetch) {
    Vector total[Queries][kScoreVectors];
    FIRSTLIGHT_UNROLL
    for (int q = 0; q < Queries; ++q) {
        FIRSTLIGHT_UNROLL
        for (int v = 0; v < kScoreVectors; ++v) total[q][v] = broadcast(0.0f);
    }
    add_steps(total, queries, Queries, 1, keys, kBlock, words, fetch);
    if (call.soft_cap > 0.0f) {
        FIRSTLIGHT_UNROLL
        for (int q = 0; q < Queries; ++q) {
            FIRSTLIGHT_UNROLL
            for (int v = 0; v < kScoreVectors; ++v) {
                store(scores + q * kBlock + v * kWidth, total[q][v]);
            }
        }
        cap_scores(call, Queries * kBlock, scores);
        for (int q = 0; q < Queries; ++q) {
            Vector capped[kScoreVectors];
            FIRSTLIGHT_UNROLL
            for (int v = 0; v < kScoreVectors; ++v) {
                capped[v] = load(scores + q * kBlock + v * kWidth);
            }
            weigh(capped, visible[q], exponents[q], sums + q * stride, stride,
                  weights + q * kPairs);
        }
        return;
    }
    const float factor = call.scale * kLogarithm;
    FIRSTLIGHT_UNROLL
    for (int q = 0; q < Queries; ++q) {
        FIRSTLIGHT_UNROLL
        for (int v = 0; v < kScoreVectors; ++v) total[q][v] = total[q][v] * factor;
        weigh(total[q], visible[q], exponents[q], sums + q * stride, stride, weights + q * kPairs);
    }
}

// Whether all queries of a tile see all that there is of a block.
inline bool all_see(const AttentionTile& tile, const BlockPlaces& places, int64_t block) {
    return tile.first(tile.rows.end - 1) <= block + places.begin &&
           tile.last(tile.rows.begin) + 1 >= block + places.end;
}

// Takes one block into the tile's partial result, and fetches what the next step will read. A few queries
// at a time are done with the block, so that what is kept of all others may lie in the
// second-level cache.
inline void attend_pairs(const AttentionStep& step, const AttentionStep* next, int64_t block,
                         const float* packed_queries, float* scratch, Partial partial) {
    const AttentionTile& tile = step.tile;
    const AttentionCall& call = *tile.call;
    const BlockPlaces& places = *step.places;
    const PairSizes sizes(tile);
    float* key_panel = scratch;
    float* value_panel = key_panel + kBlock * sizes.key_words;
    float* scores = value_panel + kPairs * sizes.columns;
    float* weights = scores + kSharing * kBlock;
    const int64_t groups = divide_up(sizes.queries, kSharing);
    Fetch key_fetch, value_fetch;
    if (next) {
        const BlockPlaces& to = *next->places;
        key_fetch.plan(next->keys(), to.begin, to.end, call.key_size * 2,
                       groups * sizes.key_words);
        value_fetch.plan(next->values(), to.begin, to.end, call.value_size * 2,
                         groups * kPairs * divide_up(sizes.columns, kTileColumns));
    }
    const BlockRows rows = step.values();
    const bool whole = all_see(tile, places, block);
    // What a query does not see must not even be multiplied by 0: it need not be a number.
    const bool together =
        whole || are_finite(rows, places.begin, places.end, call.value_size);
    transpose_rows(step.keys(), call.key_size * 2, key_panel);
    if (together) {
        pair_rows(rows, places.begin, places.end, call.value_size, sizes.columns, value_panel);
    }
    const Seen all(places);
    const auto seen = [&](int64_t q) { return whole ? all : Seen(tile, places, block, q); };
    const auto add_share = [&](int64_t begin, auto number, const float* its_weights) {
        constexpr int kCount = decltype(number)::kValue;
        float* sums = partial.values + begin * sizes.stride;
        if (together) {
            return add_paired<kCount>(value_panel, sizes.columns, places.begin, places.end,
                                      its_weights, sums, sizes.stride, value_fetch);
        }
        for (int64_t i = 0; i < kCount; ++i) {
            const Seen its = seen(begin + i);
            if (its.from >= its.to) continue;
            pair_rows(rows, its.from, its.to, call.value_size, sizes.columns, value_panel);
            add_paired<1>(value_panel, sizes.columns, its.from, its.to, its_weights + i * kPairs,
                          sums + i * sizes.stride, sizes.stride, value_fetch);
        }
    };
    // Weights take long to be there, so the products of others come before those of their values.
    int64_t before = 0, shares = 0;
    const auto weights_of = [&](int64_t share) { return weights + share % 2 * kSharing * kPairs; };
    const auto add_before = [&](int64_t end) {
        with_number(end - before, [&](auto number) {
            add_share(before, number, weights_of(shares - 1));
        });
        before = end;
    };
    by_shares(sizes.queries, [&](int64_t begin, auto number) {
        constexpr int kCount = decltype(number)::kValue;
        float* sums = partial.values + begin * sizes.stride;
        uint64_t visible[kCount];
        for (int64_t i = 0; i < kCount; ++i) {
            visible[i] = seen(begin + i).bits();
            for (int64_t c = 0; c < sizes.columns; c += kWidth) {
                FIRSTLIGHT_FETCH(sums + i * sizes.stride + c);
            }
        }
        weigh_keys<kCount>(call, key_panel, sizes.key_words,
                           packed_queries + begin * sizes.key_words, visible,
                           partial.maximum + begin, sums, sizes.stride, scores,
                           weights_of(shares), key_fetch);
        if (shares) add_before(begin);
        ++shares;
    });
    add_before(sizes.queries);
}

// Joins the result of a later segment to the total of those before.
inline void join_pairs(Partial total, Partial later, int64_t queries) {
    for (int64_t q = 0; q < queries; ++q) {
        const float a = total.maximum[q], b = later.maximum[q];
        const float risen = b <= a ? a : b;
        const float base = risen == kNothing ? 0.0f : risen;
        const Vector kept = power_of_two(broadcast(a - base));
        const Vector taken = power_of_two(broadcast(b - base));
        total.maximum[q] = risen;
        float* to = total.values + q * total.stride;
        const float* from = later.values + q * total.stride;
        for (int64_t i = 0; i < total.stride; i += kWidth) {
            store(to + i, load(to + i) * kept + load(from + i) * taken);
        }
    }
}

// Divides by the sum of weights, and puts columns in their order.
inline void finish_pairs(const AttentionTile& tile, Partial total) {
    const AttentionCall& call = *tile.call;
    for (int64_t q = 0; q < tile.queries(); ++q) {
        const int64_t head = tile.key_value_head * tile.heads() + q % tile.heads();
        float* out = call.out + (tile.row_of(q) * call.heads + head) * call.value_size;
        fetch_results(out, call.value_size);
        const float* values = total.values + q * total.stride;
        const __m512 all = (__m512)broadcast(sum(load(values + total.stride - kSumLanes)));
        const __m512i order =
            _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        for (int64_t i = 0; i < call.value_size; i += kWidth) {
            const float* pair = values + i / 32 * 32;
            const __m512i half = _mm512_set1_epi32(i % 32 / 2);
            const __m512 mixed = _mm512_maskz_permutex2var_ps(
                kAllLanes, _mm512_loadu_ps(pair), _mm512_add_epi32(order, half),
                _mm512_loadu_ps(pair + kWidth));
            // Adding 0 makes -0 a 0: pairs without weight, which are skipped, would do the same.
            const Vector result = (Vector)_mm512_div_ps(mixed, all) + 0.0f;
            const int64_t left = call.value_size - i;
            const auto there = static_cast<__mmask16>(left >= kWidth ? 0xFFFF : (1 << left) - 1);
            _mm512_mask_storeu_ps(out + i, there, (__m512)result);
        }
    }
}

constexpr AttentionWay kPairsOfBfloat16 = {
    [](const AttentionCall& call) { return PairSizes::sum_stride(call); },
    [](const AttentionTile& tile) { return PairSizes(tile).packed_queries(); },
    [](const AttentionTile& tile) { return PairSizes(tile).block(); },
    pack_pairs, attend_pairs, join_pairs, finish_pairs,
};

inline const AttentionWay& attention_way(const AttentionCall& call) {
    const bool pairs = call.round_to_bfloat16 && call.key_type == StreamType::bfloat16 &&
                       call.value_type == StreamType::bfloat16;
    return pairs ? kPairsOfBfloat16 : kValuesAsStored;
}

#else

inline const AttentionWay& attention_way(const AttentionCall&) { return kValuesAsStored; }

#endif
