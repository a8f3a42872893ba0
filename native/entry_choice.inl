// The choice of the entries that a row attends to: index scores, and the largest of them.
//
// A score is computed for each entry by itself, its heads one after another, so it is the same in every
// batch; of equal ones the lower entry counts as the larger (ops/select_entries.py).

constexpr int64_t kScoredSegment = 1024;

struct EntryChoiceWork {
    const EntryChoiceCall* call;
    int64_t first, segments;  // the first row of this round, and segments of the longest
    int64_t stride;           // scores of a row
    float* scores;
};

inline const uint8_t* entry_place(const EntryChoiceCall& call, int64_t row, int64_t entry) {
    const int64_t page = call.page_tables[row][entry / call.page_entries];
    const int64_t slot = page * call.page_entries + entry % call.page_entries;
    return call.base + slot * call.size * bytes_per_value(call.type);
}

// The scores of one segment of a row's entries.
void entry_scores_task(void* context, int64_t index) {
    const auto& work = *static_cast<const EntryChoiceWork*>(context);
    const EntryChoiceCall& call = *work.call;
    const int64_t row = work.first + index / work.segments;
    const int64_t start = index % work.segments * kScoredSegment;
    const int64_t stop = least(start + kScoredSegment, call.counts[row]);
    if (call.counts[row] <= call.top_k || start >= stop) return;
    const int64_t widened = WidenedBlock::floats(call.size), products = call.heads * kBlock;
    auto* memory = static_cast<float*>(
        thread_scratch(static_cast<size_t>(widened + products) * sizeof(float)));
    const WidenedBlock block(memory, call.size);
    float* dots = memory + widened;
    float* scores = work.scores + (row - work.first) * work.stride;
    const float* weights = call.weights + row * call.heads;
    for (int64_t entry = start; entry < stop; entry += kBlock) {
        const int64_t count = least(kBlock, stop - entry);
        for (int64_t t = 0; t < count; ++t) {
            block.widen(call.type, t, entry_place(call, row, entry + t));
        }
        block.score(call.queries + row * call.heads * call.size, call.heads, count, dots);
        for (int64_t t = 0; t < count; t += kWidth) {
            Vector total = broadcast(0.0f);
            for (int64_t h = 0; h < call.heads; ++h) {
                const Vector dot = at_least(load(dots + h * kBlock + t), broadcast(0.0f));
                total = multiply_add(broadcast(weights[h]), dot, total);
            }
            // Minus zero becomes zero, which it is equal to. Rows have whole blocks.
            store(scores + entry + t, total + broadcast(0.0f));
        }
    }
}

// A number that rises with the score; NaN is the lowest.
inline uint32_t rank_of(float score) {
    uint32_t bits;
    memcpy(&bits, &score, sizeof bits);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0;
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

// The largest `wanted` of `count` scores, rising. Digit by digit, the rank is found of which so many
// are at least as large.
inline void take_largest(const float* scores, int64_t count, int64_t wanted, int32_t* out) {
    constexpr int kShifts[] = {21, 10, 0}, kBits[] = {11, 11, 10};
    uint32_t least_rank = 0, known = 0;
    int64_t left = wanted;
    for (int digit = 0; digit < 3; ++digit) {
        int32_t found[1 << 11] = {};
        const int shift = kShifts[digit];
        const uint32_t mask = (1u << kBits[digit]) - 1;
        for (int64_t i = 0; i < count; ++i) {
            const uint32_t rank = rank_of(scores[i]);
            if ((rank & known) == least_rank) ++found[rank >> shift & mask];
        }
        uint32_t value = mask;
        for (; left > found[value]; --value) left -= found[value];
        least_rank |= value << shift;
        known |= mask << shift;
    }
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t rank = rank_of(scores[i]);
        if (rank < least_rank || (rank == least_rank && left-- <= 0)) continue;
        *out++ = static_cast<int32_t>(i);
    }
}

void entry_choice_task(void* context, int64_t index) {
    const auto& work = *static_cast<const EntryChoiceWork*>(context);
    const EntryChoiceCall& call = *work.call;
    const int64_t row = work.first + index, count = call.counts[row];
    int32_t* out = call.out + row * call.top_k;
    if (count > call.top_k) return take_largest(work.scores + index * work.stride, count, call.top_k, out);
    for (int64_t i = 0; i < call.top_k; ++i) out[i] = i < count ? static_cast<int32_t>(i) : -1;
}

void choose_entries(ThreadPool& pool, const EntryChoiceCall& call) {
    // Scores that are kept at a time, unless one row has more.
    constexpr int64_t kMostScores = 1 << 22;
    int64_t most = 0;
    for (int64_t row = 0; row < call.rows; ++row) {
        most = call.counts[row] > call.top_k && call.counts[row] > most ? call.counts[row] : most;
    }
    EntryChoiceWork work{&call, 0, divide_up(most, kScoredSegment), round_up(most, kBlock), nullptr};
    int64_t step = work.stride ? kMostScores / work.stride : call.rows;
    step = least(step > 0 ? step : 1, call.rows);
    if (most) {
        work.scores = static_cast<float*>(thread_scratch(
            static_cast<size_t>(step * work.stride) * sizeof(float), Scratch::block));
    }
    for (; work.first < call.rows; work.first += step) {
        const int64_t rows = least(step, call.rows - work.first);
        if (most) {
            share(pool, rows * most * call.heads * call.size, rows * work.segments,
                  entry_scores_task, &work);
        }
        share(pool, rows * (most + 1) * 16, rows, entry_choice_task, &work);
    }
}
