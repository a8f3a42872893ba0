#include "thread_pool.hpp"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <pthread.h>
#endif
// Android's C library has no call to bind another thread.
#if defined(__linux__) && !defined(__ANDROID__)
#define FIRSTLIGHT_PINS_THREADS
#include <sched.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace firstlight {
namespace {

// How long a thread looks for work, or for the others to finish, before it lets the system run
// something else. The pause between two ops of one step is shorter, so in the middle of a step
// no thread has to be woken.
constexpr std::chrono::microseconds kSpinTime{60};
constexpr int kPausesBetweenClocks = 32;

void pause_briefly() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
    asm volatile("yield");
#endif
}

// Counts the forks that led to this process, so that a pool can tell that its threads are gone.
std::atomic<uint64_t> fork_generation{0};

void watch_forks() {
#if !defined(_WIN32)
    static const int registered = pthread_atfork(
        nullptr, nullptr, [] { fork_generation.fetch_add(1, std::memory_order_relaxed); });
    (void)registered;
#endif
}

// A range of indices of which any thread may take the next. On a cache line of its own: mostly one
// thread takes all of them.
struct alignas(64) Range {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
};

// One call of parallel_for. It lives on the caller's stack, and no helper touches it after the
// last of them has left.
struct Job {
    int64_t count;
    void (*task)(void*, int64_t);
    void* context;
    // One for all threads, or one for each.
    Range* ranges;
    int range_count;
    std::atomic<int> failed{0};  // a word: RISC-V exchanges no bytes without a library
    std::exception_ptr error;

    void set_ranges() {
        for (int i = 0; i < range_count; ++i) {
            ranges[i].next.store(count * i / range_count, std::memory_order_relaxed);
            ranges[i].end = count * (i + 1) / range_count;
        }
    }

    // Thread number `thread` begins with its own range and goes on with the next thread's.
    void work(int thread) {
        try {
            for (int i = 0; i < range_count; ++i) {
                Range& range = ranges[(thread + i) % range_count];
                while (range.next.load(std::memory_order_relaxed) < range.end) {
                    const int64_t index = range.next.fetch_add(1, std::memory_order_relaxed);
                    if (index >= range.end) break;
                    task(context, index);
                }
            }
        } catch (...) {
            for (int i = 0; i < range_count; ++i) {
                ranges[i].next.store(ranges[i].end, std::memory_order_relaxed);
            }
            if (!failed.exchange(1)) error = std::current_exception();
        }
    }
};

// The core for each helper, or none where they are not to be pinned.
//
// They are pinned where the pool has a thread for every core that the process may run on. With fewer
// threads it is the system that knows which cores are free. The calling thread is not ours to pin;
// the core that it runs on now is left to it.
std::vector<int> cores_of_helpers(int helpers) {
    std::vector<int> cores;
#if defined(FIRSTLIGHT_PINS_THREADS)
    const char* asked = std::getenv("FIRSTLIGHT_PIN_THREADS");
    if (asked && std::strcmp(asked, "0") == 0) return cores;
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return cores;
    if (CPU_COUNT(&allowed) != helpers + 1) return cores;
    const int callers = sched_getcpu();
    if (callers < 0 || !CPU_ISSET(callers, &allowed)) return cores;
    for (int core = 0; core < CPU_SETSIZE; ++core) {
        if (CPU_ISSET(core, &allowed) && core != callers) cores.push_back(core);
    }
#else
    (void)helpers;
#endif
    return cores;
}

// Binds a thread to a core. Where the system refuses, it runs anywhere.
void keep_on_core(std::thread& thread, int core) {
#if defined(FIRSTLIGHT_PINS_THREADS)
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(core, &only);
    (void)pthread_setaffinity_np(thread.native_handle(), sizeof only, &only);
#else
    (void)thread;
    (void)core;
#endif
}

// The helpers of one pool in one process.
//
// All that they and the caller agree on is one word, the door: which call this is (upper half),
// whether helpers may still enter, and how many are inside. A helper that comes late, because the
// system ran something else on its core, finds the door shut and is not waited for.
class Helpers {
public:
    explicit Helpers(int count) {
        threads_.reserve(count);
        const std::vector<int> cores = cores_of_helpers(count);
        try {
            for (int i = 1; i <= count; ++i) {
                threads_.emplace_back([this, i] { serve(i); });
                if (!cores.empty()) keep_on_core(threads_.back(), cores[static_cast<size_t>(i - 1)]);
            }
        } catch (...) {
            stop();
            throw;
        }
    }

    ~Helpers() { stop(); }

    void run(Job& job) {
        job_ = &job;
        open_next_door(kOpen);
        job.work(0);
        door_.fetch_and(~kOpen, std::memory_order_relaxed);
        wait_until([this] { return (door_.load(std::memory_order_acquire) & kInside) == 0; }, true);
    }

private:
    static constexpr uint64_t kOpen = uint64_t{1} << 31;
    static constexpr uint64_t kInside = kOpen - 1;

    static uint32_t call_of(uint64_t door) { return static_cast<uint32_t>(door >> 32); }

    void open_next_door(uint64_t open) {
        {
            // Held so that no helper can fall asleep between looking and waiting.
            std::lock_guard<std::mutex> lock(mutex_);
            const uint32_t call = call_of(door_.load(std::memory_order_relaxed)) + 1;
            door_.store(uint64_t{call} << 32 | open, std::memory_order_release);
            if (sleepers_ == 0) return;
        }
        wake_.notify_all();
    }

    template <class Condition>
    static bool wait_until(Condition condition, bool for_ever) {
        const auto start = std::chrono::steady_clock::now();
        for (;;) {
            for (int i = 0; i < kPausesBetweenClocks; ++i) {
                if (condition()) return true;
                pause_briefly();
            }
            if (std::chrono::steady_clock::now() - start < kSpinTime) continue;
            if (!for_ever) return false;
            std::this_thread::yield();
        }
    }

    void serve(int thread) {
        uint32_t served = 0;
        for (;;) {
            const auto called = [&] {
                return call_of(door_.load(std::memory_order_acquire)) != served;
            };
            if (!wait_until(called, false)) {
                std::unique_lock<std::mutex> lock(mutex_);
                ++sleepers_;
                wake_.wait(lock, called);
                --sleepers_;
            }
            if (stopping_.load(std::memory_order_relaxed)) return;
            uint64_t door = door_.load(std::memory_order_acquire);
            served = call_of(door);
            bool entered = false;
            while (call_of(door) == served && (door & kOpen) && !entered) {
                entered = door_.compare_exchange_weak(door, door + 1, std::memory_order_acquire);
            }
            if (!entered) continue;
            job_->work(thread);
            door_.fetch_sub(1, std::memory_order_release);
        }
    }

    void stop() {
        stopping_.store(true, std::memory_order_relaxed);
        open_next_door(0);
        for (std::thread& thread : threads_) thread.join();
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    int sleepers_ = 0;
    std::atomic<uint64_t> door_{0};
    std::atomic<bool> stopping_{false};
    Job* job_ = nullptr;
    std::vector<std::thread> threads_;
};

// What a fork invalidates. The child never touches the parent's, which may have been copied with
// its mutex held; it is left behind there, unreachable.
struct State {
    std::mutex turn;
    std::unique_ptr<Range[]> ranges;
    std::unique_ptr<Helpers> helpers;
    uint64_t generation = fork_generation.load(std::memory_order_relaxed);
};

}  // namespace

class ThreadPool {
public:
    explicit ThreadPool(int threads) : threads_(threads < 1 ? 1 : threads) { watch_forks(); }

    ~ThreadPool() {
        State* state = state_.load();
        if (state->generation == fork_generation.load(std::memory_order_relaxed)) delete state;
    }

    int threads() const { return threads_; }

    // Calls task(context, i) for each i, with one range for all threads or with one for each.
    void run(int64_t count, void (*task)(void*, int64_t), void* context, bool range_each) {
        if (threads_ == 1 || count <= 1) {
            for (int64_t i = 0; i < count; ++i) task(context, i);
            return;
        }
        State& state = current_state();
        std::lock_guard<std::mutex> lock(state.turn);
        if (!state.helpers) {
            state.ranges = std::make_unique<Range[]>(static_cast<size_t>(threads_));
            state.helpers = std::make_unique<Helpers>(threads_ - 1);
        }
        Job job{count, task, context, state.ranges.get(), range_each ? threads_ : 1, {}, {}};
        job.set_ranges();
        state.helpers->run(job);
        if (job.error) std::rethrow_exception(job.error);
    }

private:
    State& current_state() {
        State* state = state_.load(std::memory_order_acquire);
        const uint64_t generation = fork_generation.load(std::memory_order_relaxed);
        if (state->generation != generation) {
            auto* fresh = new State;
            // Several threads of the child may get here at once; one wins.
            if (state_.compare_exchange_strong(state, fresh)) return *fresh;
            delete fresh;
        }
        return *state;
    }

    const int threads_;
    std::atomic<State*> state_{new State};
};

ThreadPool* new_thread_pool(int threads) { return new ThreadPool(threads); }

void delete_thread_pool(ThreadPool* pool) { delete pool; }

int thread_count(const ThreadPool& pool) { return pool.threads(); }

void parallel_for(ThreadPool& pool, int64_t count, void (*task)(void*, int64_t), void* context) {
    pool.run(count, task, context, false);
}

void parallel_ranges(ThreadPool& pool, int64_t count, void (*task)(void*, int64_t),
                     void* context) {
    pool.run(count, task, context, true);
}

namespace {

constexpr std::align_val_t kScratchAlignment{64};

struct ScratchMemory {
    void* memory = nullptr;
    size_t bytes = 0;

    ~ScratchMemory() { ::operator delete(memory, kScratchAlignment); }

    void grow(size_t wanted) {
        ::operator delete(memory, kScratchAlignment);
        memory = nullptr;
        bytes = 0;
        memory = ::operator new(wanted, kScratchAlignment);
        bytes = wanted;
    }
};

thread_local ScratchMemory scratch_memory[5];

}  // namespace

void* thread_scratch(size_t bytes, Scratch use) {
    ScratchMemory& scratch = scratch_memory[static_cast<int>(use)];
    if (bytes > scratch.bytes) scratch.grow(bytes);
    return scratch.memory;
}

}  // namespace firstlight
