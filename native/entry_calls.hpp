// Arguments of the kernels that work on chosen entries of streams; see kernel_table.hpp, which this is
// a part of. Where an entry lies is told in bytes from `base`.

#pragma once

#include <cstdint>

namespace firstlight {

enum class StreamType : int { float32, bfloat16 };

// Attention of each row over a list of entries of its own, which are keys and whose first value_size
// values are values. queries [rows, heads, size]; row r's entries lie at offsets [starts[r],
// starts[r + 1]); sinks [heads] or null; out [rows, heads, value_size].
struct ListedAttentionCall {
    StreamType type;
    const float* queries;
    int64_t rows, heads, size, value_size;
    const uint8_t* base;
    const int64_t* offsets;
    const int64_t* starts;
    float scale;
    const float* sinks;
    float* out;
};

// The choice of the top_k entries of the largest index scores: of row r among the first counts[r] of
// its sequence, entry s of which lies in page page_tables[r][s / page_entries]. queries
// [rows, heads, size], weights [rows, heads]; out [rows, top_k], rising, then -1.
struct EntryChoiceCall {
    StreamType type;
    const float* queries;
    const float* weights;
    int64_t rows, heads, size;
    const uint8_t* base;
    const int32_t* const* page_tables;
    int64_t page_entries;
    const int64_t* counts;
    int64_t top_k;
    int32_t* out;
};

// One entry of each run of positions: sum_t softmax(gate)_t value_t, value by value. What a position
// brings, [2, size], lies at offsets [starts[r], starts[r + 1]) for run r; out [runs, size].
struct PoolRunsCall {
    StreamType type;
    int64_t runs, size;
    const uint8_t* base;
    const int64_t* offsets;
    const int64_t* starts;
    float* out;
};

}  // namespace firstlight
