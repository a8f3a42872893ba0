// How an attention call is cut into tasks, and their results put together.

struct AttentionWork {
    const AttentionCall* call;
    AttentionWay way;
    int64_t segments = 1;        // that any one group sees, at most
    int64_t run = 1;             // consecutive segments of one task
    int64_t head_parts = 1;      // parts that the key-value heads are cut into
    int64_t stride = 0;          // of a query's weighted sum of values, in floats
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

// Memory of a task that attends: packed queries of its heads, and what a block needs.
struct TaskMemory {
    float* queries;
    float* block;
    float* partials;  // as many as asked for
    int64_t packed_queries;  // floats of one head's

    TaskMemory(const AttentionWork& work, const AttentionTile& any, int64_t heads,
               int64_t partials_wanted)
        : packed_queries(work.way.packed_queries(any)) {
        const int64_t packed = heads * packed_queries, needed = work.way.block(any);
        const int64_t floats = packed + needed + partials_wanted * work.partial_floats;
        queries =
            static_cast<float*>(thread_scratch(static_cast<size_t>(floats) * sizeof(float)));
        block = queries + packed;
        partials = block + needed;
    }
    void pack(const AttentionWork& work, int64_t group, int64_t head_begin,
              int64_t head_end) const {
        for (int64_t head = head_begin; head < head_end; ++head) {
            work.way.pack(work.tile(group, head), queries + (head - head_begin) * packed_queries);
        }
    }
};

// The partial results of one segment for some heads: [heads, partial_floats] at `partials`. The
// heads take turns at each block, whose entries lie side by side in a page. The last block fetches
// the next segment's first, if that lies before `run_end`.
inline void attend_segment(const AttentionWork& work, int64_t group, int64_t segment,
                           int64_t run_end, int64_t head_begin, int64_t head_end,
                           const TaskMemory& memory, float* partials) {
    const AttentionTile any = work.tile(group, head_begin);
    const int64_t queries = any.queries();
    const auto partial = [&](int64_t head) {
        return Partial::at(partials + (head - head_begin) * work.partial_floats, queries,
                           work.stride);
    };
    for (int64_t head = head_begin; head < head_end; ++head) partial(head).clear(queries);
    const int64_t stop = least((segment + 1) * kSegment, run_end);
    const int64_t start = segment * kSegment < any.first() ? any.first() : segment * kSegment;
    BlockPlaces places[2];
    const auto find = [&](int64_t block) {
        places[block / kBlock % 2].find(*work.call, any.rows.sequence, block,
                                        block < start ? start : block,
                                        least(block + kBlock, run_end));
        return &places[block / kBlock % 2];
    };
    const int64_t first_block = start / kBlock * kBlock;
    const BlockPlaces* here = find(first_block);
    for (int64_t block = first_block; block < stop; block += kBlock) {
        const BlockPlaces* later = block + kBlock < run_end ? find(block + kBlock) : nullptr;
        for (int64_t head = head_begin; head < head_end; ++head) {
            const bool same_block = head + 1 < head_end;
            const AttentionStep step{work.tile(group, head), here};
            const AttentionStep next{work.tile(group, same_block ? head + 1 : head_begin),
                                     same_block ? here : later};
            work.way.attend(step, next.places ? &next : nullptr, block,
                            memory.queries + (head - head_begin) * memory.packed_queries,
                            memory.block, partial(head));
        }
        here = later;
    }
}

// Some heads of a group, their segments one after another.
void attention_task(void* context, int64_t index) {
    const AttentionWork& work = *static_cast<const AttentionWork*>(context);
    // The last groups of a prompt see the most, so they come first.
    const int64_t group = work.call->group_count - 1 - index / work.head_parts;
    const int64_t part = index % work.head_parts;
    const int64_t head_begin = work.head_begin(part), heads = work.head_end(part) - head_begin;
    const AttentionTile any = work.tile(group, head_begin);
    const int64_t queries = any.queries();
    const TaskMemory memory(work, any, heads, 2 * heads);
    memory.pack(work, group, head_begin, head_begin + heads);
    float* parts = memory.partials;
    const auto total = [&](int64_t head) {
        return Partial::at(parts + (heads + head) * work.partial_floats, queries,
                           work.stride);
    };
    for (int64_t h = 0; h < heads; ++h) total(h).clear(queries);
    for (int64_t s = any.first() / kSegment; s <= any.last() / kSegment; ++s) {
        attend_segment(work, group, s, any.last() + 1, head_begin, head_begin + heads, memory,
                       parts);
        for (int64_t h = 0; h < heads; ++h) {
            work.way.join(total(h),
                          Partial::at(parts + h * work.partial_floats, queries, work.stride),
                          queries);
        }
    }
    for (int64_t h = 0; h < heads; ++h) {
        work.way.finish(work.tile(group, head_begin + h), total(h));
    }
}

// Some heads of a run of segments of a group.
void attention_run_task(void* context, int64_t index) {
    const AttentionWork& work = *static_cast<const AttentionWork*>(context);
    const int64_t part = index % work.head_parts, runs = divide_up(work.segments, work.run);
    const int64_t group = index / work.head_parts / runs;
    const int64_t head_begin = work.head_begin(part), head_end = work.head_end(part);
    const AttentionTile any = work.tile(group, head_begin);
    const int64_t first =
        any.first() / kSegment + index / work.head_parts % runs * work.run;
    const int64_t run_end = least((first + work.run) * kSegment, any.last() + 1);
    if (first * kSegment >= run_end) return;
    const TaskMemory memory(work, any, head_end - head_begin, 0);
    memory.pack(work, group, head_begin, head_end);
    for (int64_t segment = first; segment * kSegment < run_end; ++segment) {
        attend_segment(work, group, segment, run_end, head_begin, head_end, memory,
                       work.partial(group, segment, head_begin));
    }
}

// The segments of one head of a group, joined in their order into the first.
void attention_join_task(void* context, int64_t index) {
    const AttentionWork& work = *static_cast<const AttentionWork*>(context);
    const int64_t heads = work.call->key_value_heads, group = index / heads, head = index % heads;
    const AttentionTile tile = work.tile(group, head);
    const int64_t queries = tile.queries(), first = tile.first() / kSegment;
    const Partial total = Partial::at(work.partial(group, first, head), queries, work.stride);
    for (int64_t s = first + 1; s <= tile.last() / kSegment; ++s) {
        work.way.join(total, Partial::at(work.partial(group, s, head), queries, work.stride),
                      queries);
    }
    work.way.finish(tile, total);
}

void attention(ThreadPool& pool, const AttentionCall& call) {
    AttentionWork work;
    work.call = &call;
    work.way = attention_way(call);
    work.stride = work.way.stride(call);
    int64_t seen = 0;
    bool prompts = false;
    for (int64_t g = 0; g < call.group_count; ++g) {
        const AttentionTile tile{&call, call.groups[g], 0};
        const int64_t segments = tile.last() / kSegment - tile.first() / kSegment + 1;
        work.segments = segments > work.segments ? segments : work.segments;
        const int64_t floats = Partial::floats(tile.queries(), work.stride);
        work.partial_floats = floats > work.partial_floats ? floats : work.partial_floats;
        seen += (tile.last() - tile.first() + 1) * tile.queries();
        prompts |= tile.rows.end - tile.rows.begin > 1;
    }
    // Enough tasks for an even share: first by runs of segments, then by heads.
    const int64_t wanted = 4 * thread_count(pool), groups = call.group_count;
    const bool by_segments = groups < wanted && work.segments > 1;
    if (by_segments) work.run = divide_up(groups * work.segments, wanted);
    const int64_t units = by_segments ? groups * divide_up(work.segments, work.run) : groups;
    // Tiles of a prompt take so long that threads would end far apart.
    const int64_t parts = prompts && !by_segments ? 4 * wanted : wanted;
    if (units) work.head_parts = least(divide_up(parts, units), call.key_value_heads);
    if (call.head_parts) work.head_parts = least(call.head_parts, call.key_value_heads);
    const int64_t amount = seen * call.key_value_heads * (call.key_size + call.value_size);
    if (!by_segments) return share(pool, amount, groups * work.head_parts, attention_task, &work);
    const int64_t partials = groups * work.segments * call.key_value_heads;
    work.partials = new float[static_cast<size_t>(partials * work.partial_floats)];
    try {
        parallel_for(pool, units * work.head_parts, attention_run_task, &work);
        share(pool, partials * work.partial_floats, groups * call.key_value_heads,
              attention_join_task, &work);
    } catch (...) {
        delete[] work.partials;
        throw;
    }
    delete[] work.partials;
}
