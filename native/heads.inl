// What happens to queries, keys and values between their products and attention: norms of heads, the
// rotary embedding, and the writing of the streams. One pass over each row.

// The row's `count` values in parts of norm.columns, each normed, or as they are where there is no
// norm; then turned. Returns where the result lies: in `out`, or still at `x`.
inline const float* prepare_row(const HeadsCall& call, int64_t row, const float* x, int64_t heads,
                                const NormPart& norm, float* out) {
    const int64_t count = heads * call.size;
    const float* from = x;
    if (norm.columns) {
        for (int64_t i = 0; i < count; i += norm.columns) {
            norm_row(x + i, norm.weight, norm.columns, norm.epsilon, out + i);
        }
        from = out;
    }
    if (!call.cosine_sine) return from;
    const float* cosine_sine = call.cosine_sine + row * 2 * call.angles;
    rotate_row(from, cosine_sine, heads, call.size, call.angles, call.interleaved, out);
    return out;
}

void heads_task(void* context, int64_t row) {
    const HeadsCall& call = *static_cast<const HeadsCall*>(context);
    const int64_t queries = call.heads * call.size, entry = call.key_value_heads * call.size;
    float* scratch = static_cast<float*>(thread_scratch(static_cast<size_t>(entry) * sizeof(float)));
    if (call.query_norm.columns || call.cosine_sine) {
        fetch_results(call.query_out + row * queries, queries);
    }
    prepare_row(call, row, call.query + row * queries, call.heads, call.query_norm,
                call.query_out + row * queries);
    const float* key = prepare_row(call, row, call.key + row * entry, call.key_value_heads,
                                   call.key_norm, scratch);
    write_entry(call.key_type, call.key_pages, call.slots[row], entry, key);
    write_entry(call.value_type, call.value_pages, call.slots[row], entry,
                call.value + row * entry);
}

void prepare_heads(ThreadPool& pool, const HeadsCall& call) {
    HeadsCall copy = call;
    const int64_t values = (call.heads + 2 * call.key_value_heads) * call.size;
    share_ranges(pool, 4 * call.rows * values, call.rows, heads_task, &copy);
}

// x + scale * norm(y), or norm(y), a row at a time.
void residual_task(void* context, int64_t row) {
    const ResidualCall& call = *static_cast<const ResidualCall*>(context);
    const int64_t columns = call.columns;
    const float* y = call.y + row * columns;
    float* out = call.out + row * columns;
    if (!call.x) {
        if (call.norm.columns) {
            return norm_row(y, call.norm.weight, columns, call.norm.epsilon, out);
        }
        memcpy(out, y, static_cast<size_t>(columns) * sizeof(float));
        return;
    }
    const float* x = call.x + row * columns;
    fetch_results(out, columns);
    if (call.norm.columns) {
        float* normed =
            static_cast<float*>(thread_scratch(static_cast<size_t>(columns) * sizeof(float)));
        norm_row(y, call.norm.weight, columns, call.norm.epsilon, normed);
        y = normed;
    }
    add_values(x, y, call.scale, columns, out);
}

void join_residual(ThreadPool& pool, const ResidualCall& call) {
    ResidualCall copy = call;
    share_ranges(pool, 6 * call.rows * call.columns, call.rows, residual_task, &copy);
}
