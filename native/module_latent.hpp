// A layer's latent attention as Python makes it, once, and calls it.

#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "latent_block.hpp"
#include "module_blocks.hpp"

namespace firstlight {

class LatentBlock {
public:
    // `key_up` and `value_up`: a product for each head, from its plain query to latents and from
    // these to its value.
    LatentBlock(int64_t latent_size, int64_t plain_size, int64_t rope_size, int64_t value_size,
                std::optional<Product> query_down, MaybeNorm query_down_norm, Product query,
                Product latent, MaybeNorm latent_norm, std::vector<Product> key_up,
                std::vector<Product> value_up, Product output, float scale, bool interleaved,
                MaybeNorm pre_norm, MaybeNorm post_norm, float residual_scale);

    // `rounds`: as in AttentionBlock::run, but for the products of heads, which never round.
    void run(const KernelTable& table, ThreadPool& pool, bool rounds, In<float> x, AnyOut entries,
             PagedRows& rows, In<float> cosine_sine, Out<float> out) const;

private:
    int64_t latent_size_, plain_size_, rope_size_, value_size_;
    std::optional<Product> query_down_;
    MaybeNorm query_down_norm_;
    Product query_, latent_;
    MaybeNorm latent_norm_;
    std::vector<Product> key_up_, value_up_;
    Product output_;
    float scale_;
    bool interleaved_;
    MaybeNorm pre_norm_, post_norm_;
    float residual_scale_;
};

void bind_latent(nb::module_& module);

}  // namespace firstlight
