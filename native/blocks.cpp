#include "blocks.hpp"

#include "block_parts.hpp"

namespace firstlight {
namespace {

void map_in_place(const KernelTable& table, ThreadPool& pool, Elementwise function, float parameter,
                  int64_t size, float* values) {
    table.elementwise(pool, {function, {}, values, nullptr, parameter, size, values});
}

}  // namespace

void attention_block(const KernelTable& table, ThreadPool& pool, const AttentionBlockCall& call) {
    AttentionCall attention = call.attention;
    const int64_t rows = call.rows, size = attention.key_size;
    const int64_t queries = rows * attention.heads * size;
    const int64_t entries = rows * attention.key_value_heads * size;
    float* pieces[5];
    share_out({rows * call.columns, queries, queries, entries, entries}, pieces);
    // Results take the place of what is no longer needed.
    float* stream = pieces[0];
    float* query = pieces[1];
    float* prepared = pieces[2];
    float* key = pieces[3];
    float* value = pieces[4];

    const float* input = normed(table, pool, call.pre_norm, call.x, rows, stream);
    const LinearCall products[] = {linear_call(call.query, input, rows, query),
                                   linear_call(call.key, input, rows, key),
                                   linear_call(call.value, input, rows, value)};
    table.linear(pool, products, 3);
    table.prepare_heads(
        pool, {query, key, value, rows, attention.heads, attention.key_value_heads, size,
               call.query_norm, call.key_norm, call.cosine_sine, call.angles, call.interleaved,
               attention.key_type, attention.value_type, call.key_pages, call.value_pages,
               call.slots, prepared});
    const bool changed = call.query_norm.columns || call.cosine_sine;
    attention.queries = changed ? prepared : query;
    attention.out = changed ? query : prepared;
    table.attention(pool, attention);
    const LinearCall output = linear_call(call.output, attention.out, rows, stream);
    table.linear(pool, &output, 1);
    table.join_residual(pool, {call.stream, stream, call.post_norm, call.residual_scale, rows,
                               call.columns, call.out});
}

void feed_forward_block(const KernelTable& table, ThreadPool& pool,
                        const FeedForwardBlockCall& call) {
    const int64_t rows = call.rows, values = rows * call.gate.weight.rows;
    float* pieces[3];
    share_out({rows * call.columns, values, values}, pieces);
    float* stream = pieces[0];
    float* gate = pieces[1];
    float* up = pieces[2];

    const float* input = normed(table, pool, call.pre_norm, call.x, rows, stream);
    table.gated_linear(pool, {linear_call(call.gate, input, rows, gate),
                              linear_call(call.up, input, rows, up),
                              linear_call(call.down, gate, rows, stream), call.activation});
    table.join_residual(pool, {call.stream, stream, call.post_norm, call.residual_scale, rows,
                               call.columns, call.out});
}

void head_logits(const KernelTable& table, ThreadPool& pool, const HeadCall& call) {
    const int64_t values = call.count * call.columns;
    float* pieces[2];
    share_out({values, values}, pieces);
    // Rows are found as an embedding finds them, in a table of float32. The indices were checked, so
    // how many rows x has is not needed.
    const auto* data = reinterpret_cast<const uint8_t*>(call.x);
    const StoredMatrix rows{BlockFormat::f32, Layout::rows, data,
                            0,                call.columns, 4 * call.columns};
    table.embed(pool, {rows, call.wanted, call.count, pieces[0]});
    const float* input = normed(table, pool, call.norm, pieces[0], call.count, pieces[1]);
    const LinearCall product = linear_call(call.product, input, call.count, call.out);
    table.linear(pool, &product, 1);
    const int64_t logits = call.count * call.product.weight.rows;
    if (call.scale != 1.0f) {
        map_in_place(table, pool, Elementwise::scale, call.scale, logits, call.out);
    }
    if (call.soft_cap > 0.0f) {
        map_in_place(table, pool, Elementwise::soft_cap, call.soft_cap, logits, call.out);
    }
}

}  // namespace firstlight
