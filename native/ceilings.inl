// What the processor can do at best: loops that do nothing else.

// Ways to read memory; which is fastest differs between processors.
//   0: one stream a thread, as the processor foresees it by itself
//   1: one stream, fetched 4 KiB ahead
//   2: four streams a thread, fetched 4 KiB ahead
struct ReadSlices {
    const uint8_t* data;
    int64_t bytes, slices;
    uint64_t* mixed;  // one of each slice, so that no read can be left out
};

template <int Streams, bool Fetch>
inline void read_slice(void* context, int64_t index) {
    const ReadSlices& slices = *static_cast<const ReadSlices*>(context);
    constexpr int64_t kStep = 8 * kWidth * 4, kEach = kStep / Streams, kLine = 64;
    const int64_t steps = slices.bytes / kStep;
    const int64_t begin = steps * index / slices.slices, end = steps * (index + 1) / slices.slices;
    const int64_t stream = (end - begin) * kEach;
    const uint8_t* data = slices.data + begin * kStep;
    Integers mixed[8];
    for (Integers& one : mixed) one = broadcast_int(0);
    for (int64_t step = 0; step < end - begin; ++step) {
        for (int s = 0; s < Streams; ++s) {
            const uint8_t* from = data + s * stream + step * kEach;
            for (int64_t i = 0; Fetch && i < kEach; i += kLine) FIRSTLIGHT_FETCH_FAR(from + 4096 + i);
            for (int i = 0; i < 8 / Streams; ++i) {
                Integers& one = mixed[s * (8 / Streams) + i];
                one = one | as_int(load(from + i * kWidth * 4));
            }
        }
    }
    Integers all = mixed[0];
    for (const Integers& one : mixed) all = all | one;
    int32_t lanes[kWidth];
    memcpy(lanes, &all, sizeof lanes);
    uint64_t result = 0;
    for (int32_t lane : lanes) result += static_cast<uint32_t>(lane);
    slices.mixed[index] = result;
}

uint64_t read_memory(ThreadPool& pool, const void* data, int64_t bytes, int way) {
    constexpr int kMostSlices = 1024;
    constexpr void (*kWays[])(void*, int64_t) = {read_slice<1, false>, read_slice<1, true>,
                                                 read_slice<4, true>};
    uint64_t mixed[kMostSlices] = {};
    const int64_t slices = least(8 * thread_count(pool), kMostSlices);
    ReadSlices work{static_cast<const uint8_t*>(data), bytes, slices, mixed};
    parallel_ranges(pool, slices, kWays[way], &work);
    uint64_t result = 0;
    for (uint64_t one : mixed) result += one;
    return result;
}

struct MultiplyAddRounds {
    int64_t rounds;
    float* results;
};

constexpr int kChains = kWidth == 4 ? 8 : 12;

// A kind of product: a register of sums, and one instruction that adds products to it.
struct Float32Products {
    typedef Vector Sums;
    static constexpr int kOperations = 2 * kWidth;
    Vector factor, term;
    // Read where the compiler cannot see them; the factor keeps values from growing.
    explicit Float32Products(volatile float* seen)
        : factor(broadcast(seen[0])), term(broadcast(seen[1])) {}
    Sums start() const { return term; }
    Sums add(Sums sums) const { return multiply_add(sums, factor, term); }
    static float one_of(Sums sums) { return sum(sums); }
};

#if defined(__AVX512BF16__)
struct Bfloat16Pairs {
    typedef __m512 Sums;
    static constexpr int kOperations = 64;
    __m512i factor, term;
    explicit Bfloat16Pairs(volatile float* seen)
        : factor(_mm512_castps_si512((__m512)broadcast(seen[0]))),
          term(_mm512_castps_si512((__m512)broadcast(seen[1]))) {}
    Sums start() const { return _mm512_setzero_ps(); }
    Sums add(Sums sums) const { return add_pairs(sums, factor, term); }
    static float one_of(Sums sums) { return sum((Vector)sums); }
};
#endif

#if defined(__AVX512VNNI__)
struct ByteQuads {
    typedef __m512i Sums;
    static constexpr int kOperations = 128;
    __m512i factor, term;
    explicit ByteQuads(volatile float* seen)
        : factor(_mm512_castps_si512((__m512)broadcast(seen[0]))),
          term(_mm512_castps_si512((__m512)broadcast(seen[1]))) {}
    Sums start() const { return _mm512_setzero_si512(); }
    Sums add(Sums sums) const { return _mm512_dpbusd_epi32(sums, factor, term); }
    static float one_of(Sums sums) { return sum(to_float((Integers)sums)); }
};
#elif defined(__AVXVNNI__)
struct ByteQuads {
    typedef __m256i Sums;
    static constexpr int kOperations = 64;
    __m256i factor, term;
    explicit ByteQuads(volatile float* seen)
        : factor((__m256i)broadcast(seen[0])), term((__m256i)broadcast(seen[1])) {}
    Sums start() const { return _mm256_setzero_si256(); }
    Sums add(Sums sums) const { return _mm256_dpbusd_avx_epi32(sums, factor, term); }
    static float one_of(Sums sums) { return sum(to_float((Integers)sums)); }
};
#endif

template <class Products>
inline void multiply_add_task(void* context, int64_t index) {
    const MultiplyAddRounds& work = *static_cast<const MultiplyAddRounds*>(context);
    volatile float seen[2] = {0.999f, 0.001f};
    const Products products(seen);
    typename Products::Sums chain[kChains];
    for (auto& one : chain) one = products.start();
    for (int64_t round = 0; round < work.rounds; ++round) {
        for (auto& one : chain) one = products.add(one);
    }
    float all = 0.0f;
    for (const auto& one : chain) all += Products::one_of(one);
    work.results[index] = all;
}

// Runs `task` on every thread.
inline int64_t on_every_thread(ThreadPool& pool, void (*task)(void*, int64_t), int64_t rounds) {
    constexpr int kMostThreads = 1024;
    float results[kMostThreads] = {};
    const int64_t threads = least(thread_count(pool), kMostThreads);
    MultiplyAddRounds work{rounds, results};
    parallel_ranges(pool, threads, task, &work);
    return threads;
}

template <class Products>
double multiply_add(ThreadPool& pool, int64_t rounds) {
    const int64_t threads = on_every_thread(pool, multiply_add_task<Products>, rounds);
    return static_cast<double>(rounds * threads) * kChains * Products::kOperations;
}

typedef double (*MultiplyAdd)(ThreadPool&, int64_t);
constexpr MultiplyAdd multiply_add_f32 = multiply_add<Float32Products>;
#if defined(__AVX512BF16__)
constexpr MultiplyAdd multiply_add_bf16 = multiply_add<Bfloat16Pairs>;
#else
constexpr MultiplyAdd multiply_add_bf16 = nullptr;
#endif
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr MultiplyAdd multiply_add_int8 = multiply_add<ByteQuads>;
#else
constexpr MultiplyAdd multiply_add_int8 = nullptr;
#endif
