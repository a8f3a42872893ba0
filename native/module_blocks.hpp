// Blocks as Python makes them, once each, and calls them.

#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <optional>
#include <string>

#include "arguments.hpp"
#include "blocks.hpp"
#include "matrix.hpp"
#include "paged_rows.hpp"

namespace firstlight {

StreamType stream_type(const nb::dlpack::dtype& dtype);
Activation activation_of(const std::string& name);

// A product of a block; it keeps its weight and bias alive.
class Product {
public:
    Product(nb::object matrix, std::optional<In<float>> bias);

    int64_t rows() const { return matrix_->rows(); }
    int64_t columns() const { return matrix_->columns(); }
    BlockProduct part(int64_t count, bool round_to_bfloat16) const;

private:
    nb::object owner_;
    const Matrix* matrix_;
    std::optional<In<float>> bias_;
};

// A norm of a block; it keeps its weight alive.
class Norm {
public:
    Norm(int64_t columns, double epsilon, std::optional<In<float>> weight);

    NormPart part() const;

private:
    int64_t columns_;
    double epsilon_;
    std::optional<In<float>> weight_;
};

using MaybeNorm = std::optional<Norm>;

class AttentionBlock {
public:
    AttentionBlock(int64_t heads, int64_t key_value_heads, int64_t head_size, Product query,
                   Product key, Product value, Product output, float scale, MaybeNorm pre_norm,
                   MaybeNorm post_norm, MaybeNorm query_norm, MaybeNorm key_norm, int64_t window,
                   float soft_cap, bool interleaved, std::optional<float> residual_scale,
                   std::optional<In<float>> sinks);

    // `rounds`: products of bfloat16 weights round their activations, as LinearCall says.
    // `tile_queries`, `head_parts`: as AttentionCall has them.
    void run(const KernelTable& table, ThreadPool& pool, bool rounds, In<float> x, AnyOut keys,
             AnyOut values, PagedRows& rows, std::optional<In<float>> cosine_sine,
             Out<float> out, int64_t tile_queries, int64_t head_parts) const;

private:
    int64_t heads_, key_value_heads_, head_size_;
    Product query_, key_, value_, output_;
    float scale_;
    MaybeNorm pre_norm_, post_norm_, query_norm_, key_norm_;
    int64_t window_;
    float soft_cap_;
    bool interleaved_;
    std::optional<float> residual_scale_;  // none: the result joins nothing
    std::optional<In<float>> sinks_;
};

class FeedForwardBlock {
public:
    FeedForwardBlock(Product gate, Product up, Product down, const std::string& activation,
                     MaybeNorm pre_norm, MaybeNorm post_norm, std::optional<float> residual_scale);

    void run(const KernelTable& table, ThreadPool& pool, bool rounds, In<float> x,
             Out<float> out) const;

private:
    Product gate_, up_, down_;
    Activation activation_;
    MaybeNorm pre_norm_, post_norm_;
    std::optional<float> residual_scale_;
};

class Head {
public:
    Head(Product product, MaybeNorm norm, float scale, float soft_cap);

    void run(const KernelTable& table, ThreadPool& pool, bool rounds, In<float> x,
             In<int32_t> wanted, Out<float> out) const;

private:
    Product product_;
    MaybeNorm norm_;
    float scale_, soft_cap_;
};

void bind_blocks(nb::module_& module);

}  // namespace firstlight
