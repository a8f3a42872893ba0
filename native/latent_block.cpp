#include "latent_block.hpp"

#include <cstring>

#include "block_parts.hpp"

namespace firstlight {
namespace {

// Fewer values than this are moved by the calling thread alone.
constexpr int64_t kWorthSharing = 1 << 16;

int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Values of rows and heads, as they move from one arrangement into another.
struct Move {
    const float* from;
    int64_t from_row, from_head;
    float* to;
    int64_t to_row, to_head;
    int64_t heads, size;
};

void move_row(void* context, int64_t row) {
    const Move& move = *static_cast<const Move*>(context);
    const float* from = move.from + row * move.from_row;
    float* to = move.to + row * move.to_row;
    for (int64_t head = 0; head < move.heads; ++head) {
        std::memcpy(to, from, static_cast<size_t>(move.size) * sizeof(float));
        from += move.from_head;
        to += move.to_head;
    }
}

void move_rows(ThreadPool& pool, int64_t rows, Move move) {
    if (rows * move.heads * move.size >= kWorthSharing) {
        return parallel_for(pool, rows, move_row, &move);
    }
    for (int64_t row = 0; row < rows; ++row) move_row(&move, row);
}

// A product for each head, of its rows of x [heads, rows, ...] to those of out.
void raise_heads(const KernelTable& table, ThreadPool& pool,
                 const std::vector<BlockProduct>& products, const float* x, int64_t rows,
                 float* out) {
    std::vector<LinearCall> calls;
    calls.reserve(products.size());
    for (const BlockProduct& product : products) {
        calls.push_back(linear_call(product, x, rows, out));
        x += rows * product.weight.columns;
        out += rows * product.weight.rows;
    }
    table.linear(pool, calls.data(), static_cast<int>(calls.size()));
}

}  // namespace

void latent_block(const KernelTable& table, ThreadPool& pool, const LatentBlockCall& call) {
    AttentionCall attention = call.attention;
    const int64_t rows = call.rows, heads = attention.heads;
    const int64_t latent = call.latent_size, plain = call.plain_size, rope = call.rope_size;
    const int64_t entry = latent + rope, query = plain + rope, value = call.value_size;
    const int64_t low = call.query_down.weight.rows, each = rows * heads;
    float* pieces[9];
    share_out({rows * call.columns, rows * low, each * query, rows * entry, each * rope,
               each * larger(plain, value), each * latent, each * larger(entry, value), each * entry},
              pieces);
    // Results take the place of what is no longer needed.
    float* stream = pieces[0];
    float* lowered = pieces[1];
    float* queries = pieces[2];
    float* entries = pieces[3];
    float* turned = pieces[4];
    float* narrow = pieces[5];
    float* wide = pieces[6];
    float* absorbed = pieces[7];
    float* found = pieces[8];

    const float* input = normed(table, pool, call.pre_norm, call.x, rows, stream);
    const LinearCall first[] = {
        low ? linear_call(call.query_down, input, rows, lowered)
            : linear_call(call.query, input, rows, queries),
        linear_call(call.latent, input, rows, entries)};
    table.linear(pool, first, 2);
    if (low) {
        const float* ready = normed(table, pool, call.query_down_norm, lowered, rows, lowered);
        const LinearCall second = linear_call(call.query, ready, rows, queries);
        table.linear(pool, &second, 1);
    }

    // The rows' entries of the stream: what is normed and what is turned lie apart meanwhile.
    float* latents = wide;
    float* key = found;
    move_rows(pool, rows, {entries, entry, 0, latents, latent, 0, 1, latent});
    move_rows(pool, rows, {entries + latent, entry, 0, turned, rope, 0, 1, rope});
    const float* compressed = normed(table, pool, call.latent_norm, latents, rows, latents);
    table.rotary(pool, {turned, call.cosine_sine, rows, 1, rope, call.angles, call.interleaved,
                        key});
    move_rows(pool, rows, {compressed, latent, 0, entries, entry, 0, 1, latent});
    move_rows(pool, rows, {key, rope, 0, entries + latent, entry, 0, 1, rope});
    table.stream_write(pool, {attention.key_type, call.entries, entries, call.slots, rows, entry});

    // The queries as they meet entries.
    move_rows(pool, rows, {queries + plain, heads * query, query, turned, heads * rope, rope, heads,
                           rope});
    table.rotary(pool, {turned, call.cosine_sine, rows, heads, rope, call.angles, call.interleaved,
                        found});
    move_rows(pool, rows, {found, heads * rope, rope, absorbed + latent, heads * entry, entry, heads,
                           rope});
    move_rows(pool, rows, {queries, heads * query, query, narrow, plain, rows * plain, heads, plain});
    raise_heads(table, pool, call.key_up, narrow, rows, wide);
    move_rows(pool, rows, {wide, latent, rows * latent, absorbed, heads * entry, entry, heads,
                           latent});

    attention.queries = absorbed;
    attention.out = found;
    table.attention(pool, attention);

    move_rows(pool, rows, {found, heads * entry, entry, wide, latent, rows * latent, heads, latent});
    raise_heads(table, pool, call.value_up, wide, rows, narrow);
    move_rows(pool, rows, {narrow, value, rows * value, absorbed, heads * value, value, heads,
                           value});
    const LinearCall output = linear_call(call.output, absorbed, rows, stream);
    table.linear(pool, &output, 1);
    table.join_residual(pool, {call.x, stream, call.post_norm, call.residual_scale, rows,
                               call.columns, call.out});
}

}  // namespace firstlight
