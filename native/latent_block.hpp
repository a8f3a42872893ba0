// A layer's multi-head latent attention, made of the kernels of a level as blocks.hpp's are.

#pragma once

#include <vector>

#include "blocks.hpp"

namespace firstlight {

// x and out [rows, columns]; query_down without a weight's rows where there is none. An up-projection
// has a product for each head. Of `attention`, whose one head of keys is also that of values, all but
// queries and out is filled in.
struct LatentBlockCall {
    const float* x;
    int64_t rows, columns;
    NormPart pre_norm, post_norm, query_down_norm, latent_norm;
    BlockProduct query_down, query, latent, output;
    std::vector<BlockProduct> key_up, value_up;
    int64_t latent_size, plain_size, rope_size, value_size;
    const float* cosine_sine;
    int64_t angles;
    bool interleaved;
    void* entries;
    const int64_t* slots;
    AttentionCall attention;
    float residual_scale;
    float* out;
};

void latent_block(const KernelTable&, ThreadPool&, const LatentBlockCall&);

}  // namespace firstlight
