// A layer's mixture of experts as Python makes it, once, and calls it.

#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "module_blocks.hpp"
#include "routing.hpp"

namespace firstlight {

// Limit, slope and offset of a clamped gate, which takes the place of an activation.
using Clamp = std::tuple<float, float, float>;

class ExpertsBlock {
public:
    // `products`: gate, up and down of each expert, one expert's after another's; those of the
    // shared expert, if there is one, in `shared`. `use` [experts], if given, counts the rows that
    // went to each. `places` [experts, 3, 2], if given: address and size of each expert's weights
    // that lie in mapped files and may have to be read; size 0 where they need not.
    ExpertsBlock(Product router, std::vector<Product> products, std::vector<Product> shared,
                 std::optional<Product> shared_gate, const std::string& activation, int64_t top_k,
                 const std::string& score, int64_t groups, int64_t groups_kept,
                 int64_t group_counted, bool renormalised, double scale,
                 std::optional<In<float>> correction, MaybeNorm pre_norm, MaybeNorm post_norm,
                 std::optional<float> residual_scale, std::optional<Out<int64_t>> use,
                 std::optional<In<int64_t>> places, std::optional<Clamp> clamp);

    // chosen [rows, top_k] or none. `rounds`: as FeedForwardBlock's.
    void run(const KernelTable& table, ThreadPool& pool, bool rounds, In<float> x,
             std::optional<In<int32_t>> chosen, Out<float> out) const;

private:
    struct Step;
    struct Share;

    int64_t experts() const { return static_cast<int64_t>(products_.size()) / 3; }
    void route(const Step& step, const int32_t* chosen) const;
    void read_ahead(int64_t expert) const;
    void add_experts(const Step& step) const;
    void add_batch(const Step& step, const std::vector<Share>& batch,
                   const std::vector<int64_t>& rows, bool shared) const;
    void shared_rows(const Step& step, const float* result) const;

    Product router_;
    std::vector<Product> products_, shared_;
    std::optional<Product> shared_gate_;
    Activation activation_;
    Routing routing_;
    std::optional<In<float>> correction_;
    MaybeNorm pre_norm_, post_norm_;
    std::optional<float> residual_scale_;  // none: the result joins nothing
    std::optional<Out<int64_t>> use_;
    std::optional<In<int64_t>> places_;
    std::optional<Clamp> clamp_;
    int64_t columns_, width_, shared_width_;
};

void bind_experts(nb::module_& module);

}  // namespace firstlight
