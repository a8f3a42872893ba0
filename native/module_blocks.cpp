#include "module_blocks.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <utility>

#include "thread_pool.hpp"

namespace firstlight {

using namespace nb::literals;

namespace {

NormPart part_of(const MaybeNorm& norm) { return norm ? norm->part() : NormPart{}; }

void require_norm(const MaybeNorm& norm, int64_t columns) {
    require(!norm || norm->part().columns == columns, "a norm does not have the stream's columns");
}

void require_head_norm(const MaybeNorm& norm, int64_t columns) {
    require(!norm || (norm->part().columns >= 1 && columns % norm->part().columns == 0),
            "a norm of heads must divide their projection");
}

void require_stream(const In<float>& x, const Out<float>& out, int64_t columns) {
    require(x.ndim() == 2 && extent(x, 1) == columns, "x must be [rows, columns]");
    require_same_shape(x, out, "out must have the shape of x");
}

void require_pages(const AnyOut& pages, const PagedRowsView& rows, int64_t heads, int64_t size) {
    require(pages.ndim() == 4 && extent(pages, 1) == rows.page_tokens &&
                extent(pages, 2) == heads && extent(pages, 3) == size,
            "keys and values must be [pages, page_tokens, key_value_heads, head_size]");
}

}  // namespace

Product::Product(nb::object matrix, std::optional<In<float>> bias)
    : owner_(std::move(matrix)), matrix_(nb::cast<const Matrix*>(owner_)), bias_(std::move(bias)) {
    require(!bias_ || (bias_->ndim() == 1 && extent(*bias_, 0) == matrix_->rows()),
            "bias must be [rows]");
}

BlockProduct Product::part(int64_t count, bool round_to_bfloat16) const {
    return {matrix_->stored(), bias_ ? bias_->data() : nullptr, matrix_->tuning(count),
            round_to_bfloat16};
}

Norm::Norm(int64_t columns, double epsilon, std::optional<In<float>> weight)
    : columns_(columns), epsilon_(epsilon), weight_(std::move(weight)) {
    require(columns >= 1, "a norm must have at least one column");
    require(!weight_ || (weight_->ndim() == 1 && extent(*weight_, 0) == columns),
            "weight must be [columns]");
}

NormPart Norm::part() const { return {weight_ ? weight_->data() : nullptr, columns_, epsilon_}; }

AttentionBlock::AttentionBlock(int64_t heads, int64_t key_value_heads, int64_t head_size,
                               Product query, Product key, Product value, Product output,
                               float scale, MaybeNorm pre_norm, MaybeNorm post_norm,
                               MaybeNorm query_norm, MaybeNorm key_norm, int64_t window,
                               float soft_cap, bool interleaved,
                               std::optional<float> residual_scale,
                               std::optional<In<float>> sinks)
    : heads_(heads), key_value_heads_(key_value_heads), head_size_(head_size),
      query_(std::move(query)), key_(std::move(key)), value_(std::move(value)),
      output_(std::move(output)), scale_(scale), pre_norm_(std::move(pre_norm)),
      post_norm_(std::move(post_norm)), query_norm_(std::move(query_norm)),
      key_norm_(std::move(key_norm)), window_(window), soft_cap_(soft_cap),
      interleaved_(interleaved), residual_scale_(residual_scale), sinks_(std::move(sinks)) {
    constexpr int64_t kMost = int64_t{1} << 31;
    require(1 <= key_value_heads && key_value_heads <= heads && heads < kMost &&
                heads % key_value_heads == 0,
            "heads must be a multiple of the key-value heads");
    require(1 <= head_size && head_size < kMost, "heads must have at least one value");
    const int64_t columns = query_.columns(), queries = heads * head_size;
    const int64_t entry = key_value_heads * head_size;
    require(query_.rows() == queries && key_.rows() == entry && value_.rows() == entry,
            "the products of queries, keys and values must have a row for each value of a head");
    require(key_.columns() == columns && value_.columns() == columns,
            "queries, keys and values must be products of the same columns");
    require(output_.rows() == columns && output_.columns() == queries,
            "the output product must lead from the queries' values to the stream's");
    require_norm(pre_norm_, columns);
    require_norm(post_norm_, columns);
    require_head_norm(query_norm_, queries);
    require_head_norm(key_norm_, entry);
    require(window >= 1, "a window must hold at least one position");
    require(soft_cap >= 0.0f, "a soft cap must be positive");
    require(!sinks_ || (sinks_->ndim() == 1 && extent(*sinks_, 0) == heads), "sinks must be [heads]");
}

void AttentionBlock::run(const KernelTable& table, ThreadPool& pool, bool rounds, In<float> x,
                         AnyOut keys, AnyOut values, PagedRows& rows,
                         std::optional<In<float>> cosine_sine, Out<float> out,
                         int64_t tile_queries, int64_t head_parts) const {
    require_attention_tuning(tile_queries, head_parts);
    const PagedRowsView& view = rows.view();
    require_stream(x, out, query_.columns());
    const int64_t count = extent(x, 0), pages = extent(keys, 0);
    require(count == view.rows, "x must have a row for each position");
    require_pages(keys, view, key_value_heads_, head_size_);
    require_pages(values, view, key_value_heads_, head_size_);
    require(extent(values, 0) == pages, "keys and values must have as many pages");
    AttentionBlockCall call{};
    call.x = x.data();
    call.stream = residual_scale_ ? x.data() : nullptr;
    call.rows = count;
    call.columns = query_.columns();
    call.pre_norm = part_of(pre_norm_);
    call.post_norm = part_of(post_norm_);
    call.query_norm = part_of(query_norm_);
    call.key_norm = part_of(key_norm_);
    call.query = query_.part(count, rounds);
    call.key = key_.part(count, rounds);
    call.value = value_.part(count, rounds);
    call.output = output_.part(count, rounds);
    if (cosine_sine) {
        require(cosine_sine->ndim() == 3 && extent(*cosine_sine, 0) == count &&
                    extent(*cosine_sine, 1) == 2,
                "cosine_sine must be [rows, 2, angles]");
        call.cosine_sine = cosine_sine->data();
        call.angles = extent(*cosine_sine, 2);
        require(call.angles <= head_size_ / 2, "there are more angles than pairs of values");
    }
    call.interleaved = interleaved_;
    call.key_pages = keys.data();
    call.value_pages = values.data();
    call.residual_scale = residual_scale_.value_or(1.0f);
    call.out = out.data();
    AttentionCall& attention = call.attention;
    attention.key_type = stream_type(keys.dtype());
    attention.value_type = stream_type(values.dtype());
    attention.keys = keys.data();
    attention.values = values.data();
    attention.positions = view.positions;
    attention.page_table = view.page_table;
    attention.table_width = view.table_width;
    attention.page_tokens = view.page_tokens;
    attention.heads = heads_;
    attention.key_value_heads = key_value_heads_;
    attention.key_size = attention.value_size = head_size_;
    attention.scale = scale_;
    attention.soft_cap = soft_cap_;
    attention.window = window_;
    attention.sinks = sinks_ ? sinks_->data() : nullptr;
    attention.round_to_bfloat16 = rounds && !sinks_;
    attention.tile_queries = tile_queries;
    attention.head_parts = head_parts;
    call.slots = rows.slots(pages);
    const std::vector<AttentionRows>& groups = rows.groups(attention, pages, thread_count(pool));
    attention.groups = groups.data();
    attention.group_count = static_cast<int64_t>(groups.size());
    nb::gil_scoped_release release;
    attention_block(table, pool, call);
}

FeedForwardBlock::FeedForwardBlock(Product gate, Product up, Product down,
                                   const std::string& activation, MaybeNorm pre_norm,
                                   MaybeNorm post_norm, std::optional<float> residual_scale)
    : gate_(std::move(gate)), up_(std::move(up)), down_(std::move(down)),
      activation_(activation_of(activation)), pre_norm_(std::move(pre_norm)),
      post_norm_(std::move(post_norm)), residual_scale_(residual_scale) {
    const int64_t columns = gate_.columns(), width = gate_.rows();
    require(up_.columns() == columns && up_.rows() == width,
            "gate and up must be products of one shape");
    require(down_.columns() == width && down_.rows() == columns,
            "down must lead from the width back to the stream's columns");
    require_norm(pre_norm_, columns);
    require_norm(post_norm_, columns);
}

void FeedForwardBlock::run(const KernelTable& table, ThreadPool& pool, bool rounds, In<float> x,
                           Out<float> out) const {
    require_stream(x, out, gate_.columns());
    const int64_t count = extent(x, 0);
    const FeedForwardBlockCall call{x.data(),
                                    residual_scale_ ? x.data() : nullptr,
                                    count,
                                    gate_.columns(),
                                    part_of(pre_norm_),
                                    part_of(post_norm_),
                                    gate_.part(count, rounds),
                                    up_.part(count, rounds),
                                    down_.part(count, rounds),
                                    activation_,
                                    residual_scale_.value_or(1.0f),
                                    out.data()};
    nb::gil_scoped_release release;
    feed_forward_block(table, pool, call);
}

Head::Head(Product product, MaybeNorm norm, float scale, float soft_cap)
    : product_(std::move(product)), norm_(std::move(norm)), scale_(scale), soft_cap_(soft_cap) {
    require_norm(norm_, product_.columns());
    require(soft_cap >= 0.0f, "a soft cap must be positive");
}

void Head::run(const KernelTable& table, ThreadPool& pool, bool rounds, In<float> x,
               In<int32_t> wanted, Out<float> out) const {
    require(x.ndim() == 2 && extent(x, 1) == product_.columns(), "x must be [rows, columns]");
    require(wanted.ndim() == 1, "wanted must be [count]");
    const int64_t count = extent(wanted, 0);
    require(out.ndim() == 2 && extent(out, 0) == count && extent(out, 1) == product_.rows(),
            "out must be [count, vocabulary]");
    require_indices(wanted, extent(x, 0), "an index lies outside the rows of x");
    const HeadCall call{x.data(),
                        product_.columns(),
                        wanted.data(),
                        count,
                        part_of(norm_),
                        product_.part(count, rounds),
                        scale_,
                        soft_cap_,
                        out.data()};
    nb::gil_scoped_release release;
    head_logits(table, pool, call);
}

void bind_blocks(nb::module_& module) {
    nb::class_<PagedRows>(module, "PagedRows", "The rows of a step, checked once.")
        .def(nb::init<In<int32_t>, In<int32_t>, In<int32_t>, int64_t>(), "row_starts"_a.noconvert(),
             "positions"_a.noconvert(), "page_table"_a.noconvert(), "page_tokens"_a);
    nb::class_<Product>(module, "Product", "A weight and a bias, as parts of a block.")
        .def(nb::init<nb::object, std::optional<In<float>>>(), "matrix"_a,
             "bias"_a.noconvert().none());
    nb::class_<Norm>(module, "Norm", "A norm as a part of a block.")
        .def(nb::init<int64_t, double, std::optional<In<float>>>(), "columns"_a, "epsilon"_a,
             "weight"_a.noconvert().none());
    nb::class_<AttentionBlock>(module, "AttentionBlock", "A layer's attention.")
        .def(nb::init<int64_t, int64_t, int64_t, Product, Product, Product, Product, float,
                      MaybeNorm, MaybeNorm, MaybeNorm, MaybeNorm, int64_t, float, bool,
                      std::optional<float>, std::optional<In<float>>>(),
             "heads"_a, "key_value_heads"_a, "head_size"_a, "query"_a, "key"_a, "value"_a,
             "output"_a, "scale"_a, "pre_norm"_a.none(), "post_norm"_a.none(),
             "query_norm"_a.none(), "key_norm"_a.none(), "window"_a, "soft_cap"_a, "interleaved"_a,
             "residual_scale"_a.none(), "sinks"_a.noconvert().none() = nb::none());
    nb::class_<FeedForwardBlock>(module, "FeedForwardBlock", "A layer's feed-forward network.")
        .def(nb::init<Product, Product, Product, const std::string&, MaybeNorm, MaybeNorm,
                      std::optional<float>>(),
             "gate"_a, "up"_a, "down"_a, "activation"_a, "pre_norm"_a.none(), "post_norm"_a.none(),
             "residual_scale"_a.none());
    nb::class_<Head>(module, "Head", "A model's output head.")
        .def(nb::init<Product, MaybeNorm, float, float>(), "product"_a, "norm"_a.none(), "scale"_a,
             "soft_cap"_a);
}

}  // namespace firstlight
