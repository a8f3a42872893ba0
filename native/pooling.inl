// Entries of runs: of each value a softmax of its gates over the positions, and a sum of products.

// kWidth values of one run, or fewer.
inline void pool_values(const PoolRunsCall& call, int64_t run, int64_t column, int64_t count) {
    const int64_t bytes = bytes_per_value(call.type);
    const auto at = [&](int64_t position, int64_t which) {
        const uint8_t* from =
            call.base + call.offsets[position] + (which * call.size + column) * bytes;
        return count == kWidth ? load_values(call.type, from)
                               : load_first_values(call.type, from, count);
    };
    const int64_t begin = call.starts[run], end = call.starts[run + 1];
    Vector most = broadcast(kNothing);
    for (int64_t i = begin; i < end; ++i) most = at_least(at(i, 1), most);
    Vector weights = broadcast(0.0f), values = broadcast(0.0f);
    for (int64_t i = begin; i < end; ++i) {
        const Vector weight = exponential(at(i, 1) - most);
        weights = weights + weight;
        values = multiply_add(weight, at(i, 0), values);
    }
    float* out = call.out + run * call.size + column;
    if (count == kWidth) return store(out, values / weights);
    store_first(out, values / weights, count);
}

void pool_runs_task(void* context, int64_t run) {
    const PoolRunsCall& call = *static_cast<const PoolRunsCall*>(context);
    for (int64_t column = 0; column < call.size; column += kWidth) {
        pool_values(call, run, column, least(kWidth, call.size - column));
    }
}

void pool_runs(ThreadPool& pool, const PoolRunsCall& call) {
    PoolRunsCall copy = call;
    const int64_t positions = call.runs ? call.starts[call.runs] - call.starts[0] : 0;
    share(pool, positions * call.size * 16, call.runs, pool_runs_task, &copy);
}
