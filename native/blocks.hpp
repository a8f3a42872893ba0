// Blocks of a layer, made of the kernels of a level: several products and what lies between them in
// one call. Every value is computed by the same code as in the single ops, so its bits are the same.
//
// As in kernel_table.hpp, whoever fills these structures has checked them.

#pragma once

#include "kernel_table.hpp"

namespace firstlight {

class ThreadPool;

// A product without its input and its result.
struct BlockProduct {
    StoredMatrix weight;
    const float* bias;
    LinearTuning tuning;
    bool round_to_bfloat16;
};

// x and out [rows, columns]; the result joins `stream`, which is x or null: nothing. Of `attention` all
// but queries and out is filled in.
struct AttentionBlockCall {
    const float* x;
    const float* stream;
    int64_t rows, columns;
    NormPart pre_norm, post_norm, query_norm, key_norm;
    BlockProduct query, key, value, output;
    const float* cosine_sine;
    int64_t angles;
    bool interleaved;
    void* key_pages;
    void* value_pages;
    const int64_t* slots;
    AttentionCall attention;
    float residual_scale;
    float* out;
};

// x, stream and out as before.
struct FeedForwardBlockCall {
    const float* x;
    const float* stream;
    int64_t rows, columns;
    NormPart pre_norm, post_norm;
    BlockProduct gate, up, down;
    Activation activation;
    float residual_scale;
    float* out;
};

// x [any, columns]; out [count, vocabulary]; soft_cap 0 means none.
struct HeadCall {
    const float* x;
    int64_t columns;
    const int32_t* wanted;
    int64_t count;
    NormPart norm;
    BlockProduct product;
    float scale, soft_cap;
    float* out;
};

void attention_block(const KernelTable&, ThreadPool&, const AttentionBlockCall&);
void feed_forward_block(const KernelTable&, ThreadPool&, const FeedForwardBlockCall&);
void head_logits(const KernelTable&, ThreadPool&, const HeadCall&);

}  // namespace firstlight
