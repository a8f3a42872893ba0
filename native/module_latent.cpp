#include "module_latent.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <utility>

#include "thread_pool.hpp"

namespace firstlight {

using namespace nb::literals;

namespace {

NormPart part_of(const MaybeNorm& norm) { return norm ? norm->part() : NormPart{}; }

void require_norm(const MaybeNorm& norm, int64_t columns) {
    require(!norm || norm->part().columns == columns, "a norm does not have its input's columns");
}

void require_each(const std::vector<Product>& products, int64_t rows, int64_t columns) {
    for (const Product& product : products) {
        require(product.rows() == rows && product.columns() == columns,
                "the up-projections must lead from plain queries to latents, and to values");
    }
}

}  // namespace

LatentBlock::LatentBlock(int64_t latent_size, int64_t plain_size, int64_t rope_size,
                         int64_t value_size, std::optional<Product> query_down,
                         MaybeNorm query_down_norm, Product query, Product latent,
                         MaybeNorm latent_norm, std::vector<Product> key_up,
                         std::vector<Product> value_up, Product output, float scale,
                         bool interleaved, MaybeNorm pre_norm, MaybeNorm post_norm,
                         float residual_scale)
    : latent_size_(latent_size), plain_size_(plain_size), rope_size_(rope_size),
      value_size_(value_size), query_down_(std::move(query_down)),
      query_down_norm_(std::move(query_down_norm)), query_(std::move(query)),
      latent_(std::move(latent)), latent_norm_(std::move(latent_norm)),
      key_up_(std::move(key_up)), value_up_(std::move(value_up)), output_(std::move(output)),
      scale_(scale), interleaved_(interleaved), pre_norm_(std::move(pre_norm)),
      post_norm_(std::move(post_norm)), residual_scale_(residual_scale) {
    constexpr int64_t kMost = int64_t{1} << 24;
    const auto heads = static_cast<int64_t>(key_up_.size());
    require(1 <= heads && heads < kMost && value_up_.size() == key_up_.size(),
            "there must be as many products of keys as of values, one for each head");
    for (const int64_t size : {latent_size, plain_size, rope_size, value_size}) {
        require(1 <= size && size < kMost, "every part of a head must have a value");
    }
    require_each(key_up_, latent_size, plain_size);
    require_each(value_up_, value_size, latent_size);
    const int64_t columns = latent_.columns();
    require(latent_.rows() == latent_size + rope_size,
            "the product of latents must have a row for each value of an entry");
    require(!query_down_ || query_down_->columns() == columns,
            "queries and latents must be products of the same columns");
    require(query_.rows() == heads * (plain_size + rope_size) &&
                query_.columns() == (query_down_ ? query_down_->rows() : columns),
            "the product of queries must have a row for each value of a head");
    require(output_.rows() == columns && output_.columns() == heads * value_size,
            "the output product must lead from the heads' values to the stream's");
    require_norm(pre_norm_, columns);
    require_norm(post_norm_, columns);
    require_norm(latent_norm_, latent_size);
    require_norm(query_down_norm_, query_.columns());
    require(query_down_ || !query_down_norm_, "a norm of low-rank queries needs their product");
}

void LatentBlock::run(const KernelTable& table, ThreadPool& pool, bool rounds, In<float> x,
                      AnyOut entries, PagedRows& rows, In<float> cosine_sine,
                      Out<float> out) const {
    const PagedRowsView& view = rows.view();
    const int64_t columns = latent_.columns(), entry = latent_size_ + rope_size_;
    require(x.ndim() == 2 && extent(x, 1) == columns, "x must be [rows, columns]");
    require_same_shape(x, out, "out must have the shape of x");
    const int64_t count = extent(x, 0);
    require(count == view.rows, "x must have a row for each position");
    require(entries.ndim() == 3 && extent(entries, 1) == view.page_tokens &&
                extent(entries, 2) == entry,
            "entries must be [pages, page_tokens, latent_size + rope_size]");
    require(cosine_sine.ndim() == 3 && extent(cosine_sine, 0) == count &&
                extent(cosine_sine, 1) == 2 && extent(cosine_sine, 2) <= rope_size_ / 2,
            "cosine_sine must be [rows, 2, angles], with at most rope_size / 2 angles");
    if (!count) return;
    const int64_t pages = extent(entries, 0);
    LatentBlockCall call{};
    call.x = x.data();
    call.rows = count;
    call.columns = columns;
    call.pre_norm = part_of(pre_norm_);
    call.post_norm = part_of(post_norm_);
    call.query_down_norm = part_of(query_down_norm_);
    call.latent_norm = part_of(latent_norm_);
    if (query_down_) call.query_down = query_down_->part(count, rounds);
    call.query = query_.part(count, rounds);
    call.latent = latent_.part(count, rounds);
    call.output = output_.part(count, rounds);
    for (const Product& product : key_up_) call.key_up.push_back(product.part(count, false));
    for (const Product& product : value_up_) call.value_up.push_back(product.part(count, false));
    call.latent_size = latent_size_;
    call.plain_size = plain_size_;
    call.rope_size = rope_size_;
    call.value_size = value_size_;
    call.cosine_sine = cosine_sine.data();
    call.angles = extent(cosine_sine, 2);
    call.interleaved = interleaved_;
    call.entries = entries.data();
    call.slots = rows.slots(pages);
    call.residual_scale = residual_scale_;
    call.out = out.data();
    AttentionCall& attention = call.attention;
    attention.key_type = attention.value_type = stream_type(entries.dtype());
    attention.keys = attention.values = entries.data();
    attention.positions = view.positions;
    attention.page_table = view.page_table;
    attention.table_width = view.table_width;
    attention.page_tokens = view.page_tokens;
    attention.heads = static_cast<int64_t>(key_up_.size());
    attention.key_value_heads = 1;
    attention.key_size = attention.value_size = entry;
    attention.scale = scale_;
    attention.window = int64_t{1} << 31;
    attention.round_to_bfloat16 = rounds;
    const std::vector<AttentionRows>& groups = rows.groups(attention, pages, thread_count(pool));
    attention.groups = groups.data();
    attention.group_count = static_cast<int64_t>(groups.size());
    nb::gil_scoped_release release;
    latent_block(table, pool, call);
}

void bind_latent(nb::module_& module) {
    nb::class_<LatentBlock>(module, "LatentBlock", "A layer's latent attention.")
        .def(nb::init<int64_t, int64_t, int64_t, int64_t, std::optional<Product>, MaybeNorm, Product,
                      Product, MaybeNorm, std::vector<Product>, std::vector<Product>, Product,
                      float, bool, MaybeNorm, MaybeNorm, float>(),
             "latent_size"_a, "plain_size"_a, "rope_size"_a, "value_size"_a, "query_down"_a.none(),
             "query_down_norm"_a.none(), "query"_a, "latent"_a, "latent_norm"_a.none(), "key_up"_a,
             "value_up"_a, "output"_a, "scale"_a, "interleaved"_a, "pre_norm"_a.none(),
             "post_norm"_a.none(), "residual_scale"_a);
}

}  // namespace firstlight
