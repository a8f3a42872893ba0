// What the processor can do at best: loops that do nothing else.

struct ReadSlices {
    const uint8_t* data;
    int64_t bytes, slices;
    uint64_t* mixed;  // one of each slice, so that no read can be left out
};

void read_task(void* context, int64_t index) {
    const ReadSlices& slices = *static_cast<const ReadSlices*>(context);
    constexpr int64_t kStep = 8 * kWidth * 4;
    const int64_t steps = slices.bytes / kStep;
    const int64_t begin = steps * index / slices.slices, end = steps * (index + 1) / slices.slices;
    Integers mixed[8];
    for (Integers& one : mixed) one = broadcast_int(0);
    for (int64_t step = begin; step < end; ++step) {
        const uint8_t* from = slices.data + step * kStep;
        for (int i = 0; i < 8; ++i) mixed[i] = mixed[i] | as_int(load(from + i * kWidth * 4));
    }
    Integers all = mixed[0];
    for (const Integers& one : mixed) all = all | one;
    int32_t lanes[kWidth];
    memcpy(lanes, &all, sizeof lanes);
    uint64_t result = 0;
    for (int32_t lane : lanes) result += static_cast<uint32_t>(lane);
    slices.mixed[index] = result;
}

uint64_t read_memory(ThreadPool& pool, const void* data, int64_t bytes) {
    constexpr int kMostSlices = 1024;
    uint64_t mixed[kMostSlices] = {};
    const int64_t slices = least(8 * thread_count(pool), kMostSlices);
    ReadSlices work{static_cast<const uint8_t*>(data), bytes, slices, mixed};
    parallel_for(pool, slices, read_task, &work);
    uint64_t result = 0;
    for (uint64_t one : mixed) result += one;
    return result;
}

struct MultiplyAddRounds {
    int64_t rounds;
    float* results;
};

constexpr int kChains = kWidth == 4 ? 8 : 12;

void multiply_add_task(void* context, int64_t index) {
    const MultiplyAddRounds& work = *static_cast<const MultiplyAddRounds*>(context);
    // Read where the compiler cannot see them; the factor keeps values from growing.
    volatile float start = 1.0f, factor = 0.999f, term = 0.001f;
    const Vector a = broadcast(factor), b = broadcast(term);
    Vector chain[kChains];
    for (Vector& one : chain) one = broadcast(start);
    for (int64_t round = 0; round < work.rounds; ++round) {
        for (Vector& one : chain) one = multiply_add(one, a, b);
    }
    Vector all = chain[0];
    for (const Vector& one : chain) all = all + one;
    work.results[index] = sum(all);
}

double multiply_add_f32(ThreadPool& pool, int64_t rounds) {
    constexpr int kMostThreads = 1024;
    float results[kMostThreads] = {};
    const int64_t threads = least(thread_count(pool), kMostThreads);
    MultiplyAddRounds work{rounds, results};
    parallel_for(pool, threads, multiply_add_task, &work);
    return 2.0 * static_cast<double>(rounds * threads) * kChains * kWidth;
}
