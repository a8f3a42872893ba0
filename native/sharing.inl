// Small helpers that all kernels use: whole-number arithmetic, and when to share work.

// Work of fewer operations than this is done before another thread would have woken up.
constexpr int64_t kWorthSharing = 1 << 17;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// parallel_for, or the same in the calling thread if the operations are few.
inline void share(ThreadPool& pool, int64_t operations, int64_t count,
                  void (*task)(void*, int64_t), void* context) {
    if (operations >= kWorthSharing) return parallel_for(pool, count, task, context);
    for (int64_t i = 0; i < count; ++i) task(context, i);
}

// Likewise with parallel_ranges: a thread finds in its cache the rows that it wrote in the op before.
inline void share_ranges(ThreadPool& pool, int64_t operations, int64_t count,
                         void (*task)(void*, int64_t), void* context) {
    if (operations >= kWorthSharing) return parallel_ranges(pool, count, task, context);
    for (int64_t i = 0; i < count; ++i) task(context, i);
}
