// How an attention call is cut into tasks, and their results put together.

struct AttentionWork {
    const AttentionCall* call;
    int64_t segments = 1;        // that any one group sees, at most
    int64_t head_parts = 1;      // parts that the key-value heads are cut into
    int64_t partial_floats = 0;  // of the largest tile
    // [groups, segments, key-value heads, partial_floats], a group's first segment first
    float* partials = nullptr;

    AttentionTile tile(int64_t group, int64_t head) const {
        return {call, call->groups[group], head};
    }
    // The heads of one part.
    int64_t head_begin(int64_t part) const { return call->key_value_heads * part / head_parts; }
    int64_t head_end(int64_t part) const { return head_begin(part + 1); }
    float* partial(int64_t group, int64_t segment, int64_t head) const {
        const int64_t offset = segment - tile(group, head).first() / kSegment;
        const int64_t index = (group * segments + offset) * call->key_value_heads + head;
        return partials + index * partial_floats;
    }
};

// The partial results of one segment for some heads: [heads, partial_floats] at `memory`. The heads
// take turns at each block, whose entries lie side by side in a page.
inline void attend_segment(const AttentionWork& work, int64_t group, int64_t segment,
                           int64_t head_begin, int64_t head_end, float* scratch, float* memory) {
    const AttentionTile any = work.tile(group, head_begin);
    const int64_t queries = any.queries(), value_size = work.call->value_size;
    for (int64_t head = head_begin; head < head_end; ++head) {
        float* partial = memory + (head - head_begin) * work.partial_floats;
        Partial::at(partial, queries, value_size).clear(queries);
    }
    const int64_t segment_end = least((segment + 1) * kSegment, any.last() + 1);
    for (int64_t block = segment * kSegment; block < segment_end; block += kBlock) {
        const int64_t begin = block < any.first() ? any.first() : block;
        const int64_t end = least(block + kBlock, segment_end);
        if (begin >= end) continue;
        for (int64_t head = head_begin; head < head_end; ++head) {
            float* partial = memory + (head - head_begin) * work.partial_floats;
            attend_block(work.tile(group, head), block, begin, end, scratch,
                         Partial::at(partial, queries, value_size));
        }
    }
}

// Scratch memory of a task, with room for `partials` partial results behind it.
inline float* attention_scratch(const AttentionWork& work, const AttentionScratch& sizes,
                                int64_t partials) {
    const int64_t floats = sizes.total() + partials * work.partial_floats;
    return static_cast<float*>(thread_scratch(static_cast<size_t>(floats) * sizeof(float)));
}

// Some heads of a group, their segments one after another.
void attention_task(void* context, int64_t index) {
    const AttentionWork& work = *static_cast<const AttentionWork*>(context);
    const int64_t group = index / work.head_parts, part = index % work.head_parts;
    const int64_t head_begin = work.head_begin(part), heads = work.head_end(part) - head_begin;
    const AttentionTile any = work.tile(group, head_begin);
    const int64_t queries = any.queries(), value_size = work.call->value_size;
    const AttentionScratch sizes(any);
    float* scratch = attention_scratch(work, sizes, 2 * heads);
    float* parts = scratch + sizes.total();
    float* totals = parts + heads * work.partial_floats;
    for (int64_t h = 0; h < heads; ++h) {
        Partial::at(totals + h * work.partial_floats, queries, value_size).clear(queries);
    }
    for (int64_t s = any.first() / kSegment; s <= any.last() / kSegment; ++s) {
        attend_segment(work, group, s, head_begin, head_begin + heads, scratch, parts);
        for (int64_t h = 0; h < heads; ++h) {
            const int64_t offset = h * work.partial_floats;
            join(Partial::at(totals + offset, queries, value_size),
                 Partial::at(parts + offset, queries, value_size), queries, value_size);
        }
    }
    for (int64_t h = 0; h < heads; ++h) {
        finish(work.tile(group, head_begin + h),
               Partial::at(totals + h * work.partial_floats, queries, value_size));
    }
}

// Some heads of one segment of a group.
void attention_segment_task(void* context, int64_t index) {
    const AttentionWork& work = *static_cast<const AttentionWork*>(context);
    const int64_t part = index % work.head_parts;
    const int64_t group = index / work.head_parts / work.segments;
    const int64_t head_begin = work.head_begin(part), head_end = work.head_end(part);
    const AttentionTile any = work.tile(group, head_begin);
    const int64_t segment = any.first() / kSegment + index / work.head_parts % work.segments;
    if (segment > any.last() / kSegment) return;
    float* scratch = attention_scratch(work, AttentionScratch(any), 0);
    attend_segment(work, group, segment, head_begin, head_end, scratch,
                   work.partial(group, segment, head_begin));
}

// The segments of one head of a group, joined in their order.
void attention_join_task(void* context, int64_t index) {
    const AttentionWork& work = *static_cast<const AttentionWork*>(context);
    const int64_t heads = work.call->key_value_heads, group = index / heads, head = index % heads;
    const AttentionTile tile = work.tile(group, head);
    const int64_t queries = tile.queries(), value_size = work.call->value_size;
    const int64_t floats = Partial::floats(queries, value_size);
    float* memory =
        static_cast<float*>(thread_scratch(static_cast<size_t>(floats) * sizeof(float)));
    Partial total = Partial::at(memory, queries, value_size);
    total.clear(queries);
    for (int64_t s = tile.first() / kSegment; s <= tile.last() / kSegment; ++s) {
        join(total, Partial::at(work.partial(group, s, head), queries, value_size), queries,
             value_size);
    }
    finish(tile, total);
}

void attention(ThreadPool& pool, const AttentionCall& call) {
    AttentionWork work;
    work.call = &call;
    int64_t seen = 0;
    for (int64_t g = 0; g < call.group_count; ++g) {
        const AttentionTile tile{&call, call.groups[g], 0};
        const int64_t segments = tile.last() / kSegment - tile.first() / kSegment + 1;
        work.segments = segments > work.segments ? segments : work.segments;
        const int64_t floats = Partial::floats(tile.queries(), call.value_size);
        work.partial_floats = floats > work.partial_floats ? floats : work.partial_floats;
        seen += (tile.last() - tile.first() + 1) * tile.queries();
    }
    // Enough tasks for an even share: first by segments, then by heads.
    const int64_t wanted = 4 * thread_count(pool), groups = call.group_count;
    const bool by_segments = groups < wanted && work.segments > 1;
    const int64_t units = by_segments ? groups * work.segments : groups;
    if (units) work.head_parts = least(divide_up(wanted, units), call.key_value_heads);
    const int64_t amount = seen * call.key_value_heads * (call.key_size + call.value_size);
    if (!by_segments) return share(pool, amount, groups * work.head_parts, attention_task, &work);
    const int64_t partials = units * call.key_value_heads;
    work.partials = new float[static_cast<size_t>(partials * work.partial_floats)];
    try {
        parallel_for(pool, units * work.head_parts, attention_segment_task, &work);
        parallel_for(pool, groups * call.key_value_heads, attention_join_task, &work);
    } catch (...) {
        delete[] work.partials;
        throw;
    }
    delete[] work.partials;
}
