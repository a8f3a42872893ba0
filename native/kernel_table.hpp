// What one instruction level offers: a table of kernels, and the arguments they take.
//
// Plain data only, for the reason given in thread_pool.hpp. Whoever fills these structures has
// checked shapes, token ids and pages; a kernel trusts them. All pointers to float or integers are
// aligned to their type, except weights, which lie in a file at any byte.

#pragma once

#include <cstdint>

#include "entry_calls.hpp"

// Blocks are read where they lie, and every storage format puts the lowest byte first.
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "The kernels need a processor that puts the lowest byte of a number first"
#endif

namespace firstlight {

class ThreadPool;

// The storage formats that the kernels decode, as `formats/` defines them.
enum class BlockFormat : int {
    f32, f16, bf16, f8_e4m3, e2m1,
    q4_0, q4_1, q5_0, q5_1, q8_0,
    q2_k, q3_k, q4_k, q5_k, q6_k,
    iq4_nl, iq4_xs, mxfp4, nvfp4,
};

// Where a matrix's values lie: row by row as its format defines them, or in panels of sixteen rows,
// laid out for the products.
enum class Layout : int { rows, panels };

// Factors of the values of a matrix of fp8, one for each block of `rows` by `columns`, `stride` of them
// for each row of blocks. Columns are a multiple of 32 or all that the matrix has.
struct BlockScales {
    const float* values;  // null: there are none
    int64_t stride, rows, columns;
    int64_t first_row;  // of the matrix among the rows that they are for
};

// Scales in E4M3 of each 16 columns of a matrix of e2m1, `stride` of them a row, each multiplied or
// divided by `factor`.
struct GroupScales {
    const uint8_t* values;  // null: there are none
    int64_t stride;
    float factor;
    bool divides;
};

// A matrix [rows, columns] in a storage format. With Layout::rows, row r starts at
// data + r * row_bytes; panels are aligned to 64 bytes and row_bytes is 0.
struct StoredMatrix {
    BlockFormat format;
    Layout layout;
    const uint8_t* data;
    int64_t rows, columns, row_bytes;
    BlockScales scales = {};
    GroupScales groups = {};
};

// How a product walks through its work; results do not depend on it. 0: the kernel chooses.
struct LinearTuning {
    int32_t block_rows;   // rows of x that are taken through the weight together
    int32_t panels;       // panels of one task
    int32_t fetch_ahead;  // how far ahead weights are fetched, in bytes
};

// out [count, rows] = x [count, columns] times the weight's transpose, plus bias [rows] or null.
struct LinearCall {
    StoredMatrix weight;
    const float* x;
    int64_t count;
    const float* bias;
    float* out;
    LinearTuning tuning;
    // Whether activations may be rounded to bfloat16 for a weight that is, or that is fp8, where the
    // level has products of the two.
    bool round_to_bfloat16;
};

enum class Activation : int { silu, gelu, gelu_tanh, relu };

// down's product with activation(gate) * up, both products of the same x. gate.out and up.out are
// memory for that, of which nothing is defined afterwards; down.x is gate.out.
struct GatedCall {
    LinearCall gate, up, down;
    Activation activation;
};

// out [count, columns] = the rows token_ids [count] of the table.
struct EmbedCall {
    StoredMatrix table;
    const int32_t* token_ids;
    int64_t count;
    float* out;
};

// A matrix from rows of blocks, row r at data + r * row_bytes, into panels at `out`.
struct PackCall {
    BlockFormat format;
    const uint8_t* data;
    int64_t rows, columns, row_bytes;
    uint8_t* out;
};

// x and out [rows, columns]; weight [columns] or null.
struct NormCall {
    const float* x;
    const float* weight;
    int64_t rows, columns;
    double epsilon;
    float* out;
};

enum class Elementwise : int { gate, clamped_gate, add, scale, soft_cap };

// size values each; y is null where the function has one argument only.
struct ElementwiseCall {
    Elementwise function;
    Activation activation;
    const float* x;
    const float* y;
    float parameter;
    int64_t size;
    float* out;
    // Of clamped_gate, beside the limit, which is the parameter.
    float slope = 1.0f, offset = 0.0f;
};

// x and out [rows, heads, size]; cosine_sine [rows, 2, angles].
struct RotaryCall {
    const float* x;
    const float* cosine_sine;
    int64_t rows, heads, size, angles;
    bool interleaved;
    float* out;
};

// Row r of values [rows, entry_size] becomes entry slots[r] of the pages.
struct StreamWriteCall {
    StreamType type;
    void* pages;
    const float* values;
    const int64_t* slots;
    int64_t rows, entry_size;
};

// Consecutive rows of one sequence.
struct AttentionRows {
    int64_t sequence, begin, end;
};

// queries [rows, heads, key_size]; keys [pages, page_tokens, key_value_heads, key_size] and values
// likewise; out [rows, heads, value_size]. window is at least 1; soft_cap 0 means none.
struct AttentionCall {
    StreamType key_type, value_type;
    const float* queries;
    const void* keys;
    const void* values;
    const int32_t* positions;
    const int32_t* page_table;
    int64_t table_width, page_tokens;
    int64_t heads, key_value_heads, key_size, value_size;
    const AttentionRows* groups;
    int64_t group_count;
    float scale, soft_cap;
    int64_t window;
    float* out;
    // Whether queries, and weights of the softmax, may be rounded to bfloat16 where keys and values
    // are, and the level multiplies bfloat16.
    bool round_to_bfloat16;
    // What a tuner may choose; 0 is the default. No result depends on it.
    int64_t tile_queries;  // queries of one key-value head in a group
    int64_t head_parts;    // tasks that the key-value heads of a group are cut into
    // [heads] or null: the score of a key whose value is zero, for each head. Not where anything is
    // rounded to bfloat16.
    const float* sinks;
};

// How memory is read when its bandwidth is measured; the index is the way.
inline constexpr const char* kReadWays[] = {"one stream a thread", "one stream fetched ahead",
                                            "four streams fetched ahead"};

// A norm over `columns` values, with weight [columns] or null; no norm where columns is 0.
struct NormPart {
    const float* weight;
    int64_t columns;
    double epsilon;
};

// query [rows, heads, size], key and value [rows, key_value_heads, size] as their products gave them.
// Queries and keys are normed and turned (cosine_sine [rows, 2, angles] or null); query_out, which
// must not be `query`, takes the queries where either happens. Keys and values become entry
// slots[row] of their pages.
struct HeadsCall {
    const float* query;
    const float* key;
    const float* value;
    int64_t rows, heads, key_value_heads, size;
    NormPart query_norm, key_norm;
    const float* cosine_sine;
    int64_t angles;
    bool interleaved;
    StreamType key_type, value_type;
    void* key_pages;
    void* value_pages;
    const int64_t* slots;
    float* query_out;
};

// out = x + scale * norm(y), all [rows, columns]; norm(y) alone where x is null.
struct ResidualCall {
    const float* x;
    const float* y;
    NormPart norm;
    float scale;
    int64_t rows, columns;
    float* out;
};

struct KernelTable {
    // Whether the level multiplies bfloat16 by bfloat16, in products with weights and in attention.
    bool multiplies_bfloat16;
    // Whether it multiplies fp8 weights by activations rounded to bfloat16.
    bool multiplies_float8;
    // Several products at once, `count` of them. Those that have x and its rows in common, and
    // follow one another, share what is made of x.
    void (*linear)(ThreadPool&, const LinearCall* calls, int count);
    void (*gated_linear)(ThreadPool&, const GatedCall&);
    void (*embed)(ThreadPool&, const EmbedCall&);
    void (*pack)(ThreadPool&, const PackCall&);
    void (*rms_norm)(ThreadPool&, const NormCall&);
    void (*elementwise)(ThreadPool&, const ElementwiseCall&);
    void (*rotary)(ThreadPool&, const RotaryCall&);
    void (*stream_write)(ThreadPool&, const StreamWriteCall&);
    void (*attention)(ThreadPool&, const AttentionCall&);
    void (*listed_attention)(ThreadPool&, const ListedAttentionCall&);
    void (*choose_entries)(ThreadPool&, const EntryChoiceCall&);
    void (*pool_runs)(ThreadPool&, const PoolRunsCall&);
    void (*prepare_heads)(ThreadPool&, const HeadsCall&);
    void (*join_residual)(ThreadPool&, const ResidualCall&);
    // Reads `bytes` at `data` once, with all threads, in one of kReadWays ways (ceilings.inl).
    uint64_t (*read_memory)(ThreadPool&, const void* data, int64_t bytes, int way);
    // Runs `rounds` rounds of multiply-adds in registers on every thread; returns how many
    // operations that were.
    double (*multiply_add_f32)(ThreadPool&, int64_t rounds);
    // The same with products of bfloat16 and of 8-bit integers; null where the level has none.
    double (*multiply_add_bf16)(ThreadPool&, int64_t rounds);
    double (*multiply_add_int8)(ThreadPool&, int64_t rounds);
};

}  // namespace firstlight
