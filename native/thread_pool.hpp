// The threads that share the work of one op.
//
// Only plain declarations: this header is included by kernels that are compiled for instruction
// sets the machine may lack, and must leave nothing behind there that the linker could merge.

#pragma once

#include <cstddef>
#include <cstdint>

namespace firstlight {

class ThreadPool;

// A pool of `threads` threads, the caller of `parallel_for` being one of them. The others are
// started at the first use.
ThreadPool* new_thread_pool(int threads);
void delete_thread_pool(ThreadPool* pool);
int thread_count(const ThreadPool& pool);

// Calls task(context, i) once for each i in [0, count), on any of the threads and in any order,
// and returns when all are done. Callers from several threads take turns. A task must not call
// parallel_for on the same pool. After fork() the child's pool starts threads of its own.
void parallel_for(ThreadPool& pool, int64_t count, void (*task)(void* context, int64_t index),
                  void* context);

// The same, where indices that lie side by side belong on one thread: each gets an equal range of
// them, in order, and the same range at every call; who has finished takes from the others.
void parallel_ranges(ThreadPool& pool, int64_t count, void (*task)(void* context, int64_t index),
                     void* context);

// What a thread's scratch memory is for: a task's own use, or what the caller of parallel_for made
// ready for all tasks, of one op or between the ops of a block.
enum class Scratch : int { task, bfloat16_rows, float8_rows, fixed16_rows, block };

// Memory of at least `bytes`, aligned to 64, that belongs to the calling thread until it ends or
// asks for the same use again. Throws std::bad_alloc.
void* thread_scratch(size_t bytes, Scratch use = Scratch::task);

}  // namespace firstlight
