// Attention of each row over a list of entries of its own.
//
// A row's entries are taken in blocks of its list, with an online softmax as in attention.inl, and every
// head by itself: so what else is computed, and by how many threads, changes nothing.

struct ListedAttentionWork {
    const ListedAttentionCall* call;
    int64_t parts;  // that a row's heads are cut into
};

// Divides by the sum of weights.
inline void finish_listed(const ListedAttentionCall& call, int64_t row, int64_t head, float maximum,
                          float sum_of_weights, const float* values) {
    float kept = 1.0f;
    if (call.sinks) kept = add_sink(call.sinks[head], maximum, sum_of_weights);
    float* out = call.out + (row * call.heads + head) * call.value_size;
    for (int64_t i = 0; i < call.value_size; ++i) out[i] = values[i] * kept / sum_of_weights;
}

// Some heads of a row.
void listed_attention_task(void* context, int64_t index) {
    const auto& work = *static_cast<const ListedAttentionWork*>(context);
    const ListedAttentionCall& call = *work.call;
    const int64_t row = index / work.parts, part = index % work.parts;
    const int64_t first = call.heads * part / work.parts;
    const int64_t heads = call.heads * (part + 1) / work.parts - first;
    const int64_t columns = WidenedBlock::columns_of(call.value_size);
    const int64_t widened = WidenedBlock::floats(call.size), scored = heads * kBlock;
    const int64_t floats = widened + scored + Partial::floats(heads, columns);
    auto* memory = static_cast<float*>(thread_scratch(static_cast<size_t>(floats) * sizeof(float)));
    const WidenedBlock block(memory, call.size);
    float* scores = memory + widened;
    Partial partial = Partial::at(scores + scored, heads, columns);
    partial.clear(heads);
    AttentionCall softmax{};
    softmax.scale = call.scale;
    int64_t offsets[kBlock];
    for (int64_t t = 0; t < kBlock; ++t) offsets[t] = t * block.stride * 4;
    const BlockRows rows{reinterpret_cast<const uint8_t*>(block.values), offsets};
    const float* queries = call.queries + (row * call.heads + first) * call.size;
    const int64_t end = call.starts[row + 1];
    for (int64_t entry = call.starts[row]; entry < end; entry += kBlock) {
        const int64_t count = least(kBlock, end - entry);
        for (int64_t t = 0; t < count; ++t) {
            block.widen(call.type, t, call.base + call.offsets[entry + t]);
        }
        block.score(queries, heads, count, scores);
        for (int64_t h = 0; h < heads; ++h) {
            soften(softmax, scores + h * kBlock, 0, count, partial.maximum[h], partial.sum[h],
                   partial.values + h * columns, columns);
        }
        Fetch next;
        if (entry + count < end) {
            next.plan({call.base, call.offsets + entry + count}, 0, least(kBlock, end - entry - count),
                      call.size * bytes_per_value(call.type),
                      count * divide_up(columns, kTileColumns) * divide_up(heads, kSharing));
        }
        for (int64_t h = 0; h < heads; h += kSharing) {
            add_weighted(StreamType::float32, least(kSharing, heads - h), rows, 0, count, columns,
                         scores + h * kBlock, partial.values + h * columns, columns, next);
        }
    }
    for (int64_t h = 0; h < heads; ++h) {
        finish_listed(call, row, first + h, partial.maximum[h], partial.sum[h],
                      partial.values + h * columns);
    }
}

void listed_attention(ThreadPool& pool, const ListedAttentionCall& call) {
    if (call.rows == 0 || call.heads == 0) return;
    // A part widens its entries anew, so it has some heads at least.
    constexpr int64_t kFewHeads = 8;
    const int64_t wanted = 4 * thread_count(pool);
    ListedAttentionWork work{&call, least(divide_up(wanted, call.rows),
                                          divide_up(call.heads, kFewHeads))};
    const int64_t seen = call.starts[call.rows] - call.starts[0];
    share(pool, seen * call.heads * (call.size + call.value_size), call.rows * work.parts,
          listed_attention_task, &work);
}
