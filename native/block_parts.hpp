// What blocks have in common: memory for what lies between their products, and products and norms as
// calls of a level's kernels.

#pragma once

#include <cstddef>

#include "blocks.hpp"
#include "thread_pool.hpp"

namespace firstlight {

// One piece of memory for each size, in float32, one after another and aligned. It is the calling
// thread's and kept between blocks, so that a step allocates nothing once the first of its size has
// run.
template <size_t Pieces>
void share_out(const int64_t (&sizes)[Pieces], float* (&pieces)[Pieces]) {
    constexpr int64_t kAlignedFloats = 16;
    int64_t places[Pieces + 1] = {};
    for (size_t i = 0; i < Pieces; ++i) {
        const int64_t size = (sizes[i] + kAlignedFloats - 1) / kAlignedFloats * kAlignedFloats;
        places[i + 1] = places[i] + size;
    }
    const size_t bytes = static_cast<size_t>(places[Pieces]) * sizeof(float);
    auto* memory = static_cast<float*>(thread_scratch(bytes, Scratch::block));
    for (size_t i = 0; i < Pieces; ++i) pieces[i] = memory + places[i];
}

inline LinearCall linear_call(const BlockProduct& product, const float* x, int64_t rows,
                              float* out) {
    return {product.weight, x,   rows,           product.bias,
            out,            product.tuning, product.round_to_bfloat16};
}

// x normed into `out`; x itself where there is no norm.
inline const float* normed(const KernelTable& table, ThreadPool& pool, const NormPart& norm,
                           const float* x, int64_t rows, float* out) {
    if (!norm.columns) return x;
    table.rms_norm(pool, {x, norm.weight, rows, norm.columns, norm.epsilon, out});
    return out;
}

}  // namespace firstlight
