#include "module_experts.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cmath>
#include <utility>

#include "thread_pool.hpp"

namespace firstlight {

using namespace nb::literals;

namespace {

constexpr int64_t kAlignedFloats = 16;
#if defined(__linux__)
constexpr int64_t kPageBytes = 4096;  // madvise wants whole pages, of at least this size
#endif

// Experts whose products are tasks of one parallel region, and rows that they are computed for
// together: enough that no thread waits long for the last, few enough that what lies between the
// products stays in the caches.
constexpr int64_t kBatchExperts = 31, kBatchRows = 256;

Score score_of(const std::string& name) {
    if (name == "softmax") return Score::softmax;
    if (name == "sigmoid") return Score::sigmoid;
    if (name == "sqrt_softplus") return Score::sqrt_softplus;
    throw nb::value_error("the kernels do not know this score");
}

LinearCall linear_call(const Product& product, bool rounds, const float* x, int64_t count,
                       float* out) {
    const BlockProduct part = product.part(count, rounds);
    return {part.weight, x, count, part.bias, out, part.tuning, part.round_to_bfloat16};
}

void require_expert(const Product* products, int64_t columns, int64_t width) {
    require(products[0].columns() == columns && products[0].rows() == width &&
                products[1].columns() == columns && products[1].rows() == width,
            "gate and up of every expert must be products of one shape");
    require(products[2].columns() == width && products[2].rows() == columns,
            "down must lead from the width back to the stream's columns");
}

// out += factor * x, rounded twice as the op `add_rows` is.
void add_row(const float* x, float factor, int64_t columns, float* out) {
    for (int64_t i = 0; i < columns; ++i) out[i] += factor * x[i];
}

}  // namespace

// One call's rows, and memory for what lies between them and the result.
struct ExpertsBlock::Step {
    const KernelTable& table;
    ThreadPool& pool;
    bool rounds;
    int64_t rows;
    int64_t capacity;  // rows of a batch
    const float* normed;
    float *weights, *gate, *up, *gathered, *result, *sum;
};

// An expert's rows in a batch: `count` of `rows` from `begin`.
struct ExpertsBlock::Share {
    const Product* products;
    int64_t expert, begin, count;
};

ExpertsBlock::ExpertsBlock(Product router, std::vector<Product> products,
                           std::vector<Product> shared, std::optional<Product> shared_gate,
                           const std::string& activation, int64_t top_k, const std::string& score,
                           int64_t groups, int64_t groups_kept, int64_t group_counted,
                           bool renormalised, double scale, std::optional<In<float>> correction,
                           MaybeNorm pre_norm, MaybeNorm post_norm,
                           std::optional<float> residual_scale,
                           std::optional<Out<int64_t>> use, std::optional<In<int64_t>> places,
                           std::optional<Clamp> clamp)
    : router_(std::move(router)), products_(std::move(products)), shared_(std::move(shared)),
      shared_gate_(std::move(shared_gate)), activation_(activation_of(activation)),
      routing_{top_k, score_of(score), groups, groups_kept, group_counted, renormalised, scale},
      correction_(std::move(correction)), pre_norm_(std::move(pre_norm)),
      post_norm_(std::move(post_norm)), residual_scale_(residual_scale), use_(std::move(use)),
      places_(std::move(places)), clamp_(clamp), columns_(router_.columns()), width_(0), shared_width_(0) {
    const int64_t count = router_.rows();
    require(count >= 1 && products_.size() == 3 * static_cast<size_t>(count),
            "there must be three products for each row of the router");
    require(1 <= top_k && top_k <= count, "a token must go to one expert at least, and to all at "
                                          "most");
    require(1 <= groups && count % groups == 0 && 1 <= groups_kept && groups_kept <= groups &&
                groups_kept * (count / groups) >= top_k,
            "groups must divide the experts, and those kept hold as many as are chosen");
    require(1 <= group_counted && (groups_kept == groups || group_counted <= count / groups),
            "a group has no so many scores");
    width_ = products_[0].rows();
    for (int64_t i = 0; i < count; ++i) require_expert(&products_[3 * i], columns_, width_);
    require(shared_.empty() || shared_.size() == 3, "a shared expert has three products");
    if (!shared_.empty()) {
        shared_width_ = shared_[0].rows();
        require_expert(shared_.data(), columns_, shared_width_);
    }
    require(!shared_gate_ || (!shared_.empty() && shared_gate_->rows() == 1 &&
                              shared_gate_->columns() == columns_),
            "the shared expert's gate must be a product of one row");
    require(!correction_ || (correction_->ndim() == 1 && extent(*correction_, 0) == count),
            "correction must be [experts]");
    require(!use_ || (use_->ndim() == 1 && extent(*use_, 0) == count), "use must be [experts]");
    require(!places_ || (places_->ndim() == 3 && extent(*places_, 0) == count &&
                         extent(*places_, 1) == 3 && extent(*places_, 2) == 2),
            "places must be [experts, 3, 2]");
    require(!pre_norm_ || pre_norm_->part().columns == columns_,
            "a norm does not have the stream's columns");
    require(!post_norm_ || post_norm_->part().columns == columns_,
            "a norm does not have the stream's columns");
}

void ExpertsBlock::run(const KernelTable& table, ThreadPool& pool, bool rounds, In<float> x,
                       std::optional<In<int32_t>> chosen, Out<float> out) const {
    require(x.ndim() == 2 && extent(x, 1) == columns_, "x must be [rows, columns]");
    require_same_shape(x, out, "out must have the shape of x");
    const int64_t rows = extent(x, 0), count = experts();
    if (chosen) {
        require(chosen->ndim() == 2 && extent(*chosen, 0) == rows &&
                    extent(*chosen, 1) == routing_.top_k,
                "chosen must be [rows, top_k]");
        require_indices(*chosen, count, "there is no such expert");
    }
    if (!rows) return;
    const int32_t* given = chosen ? chosen->data() : nullptr;
    nb::gil_scoped_release release;

    const int64_t stream = rows * columns_;
    const int64_t most = std::min(routing_.top_k, count) * rows;
    const int64_t capacity = std::min(most, std::max(rows, kBatchRows));
    const int64_t values = capacity * width_ + rows * shared_width_;
    const int64_t results = (capacity + (shared_.empty() ? 0 : rows)) * columns_;
    const int64_t sizes[] = {stream,  rows * count, values, values, capacity * columns_,
                             results, stream};
    float* pieces[7];
    int64_t total = 0;
    for (const int64_t size : sizes) total += size + kAlignedFloats;
    float* next = static_cast<float*>(
        thread_scratch(static_cast<size_t>(total) * sizeof(float), Scratch::block));
    for (int i = 0; i < 7; ++i) {
        pieces[i] = next;
        next += (sizes[i] + kAlignedFloats - 1) / kAlignedFloats * kAlignedFloats;
    }
    const float* normed = x.data();
    if (pre_norm_) {
        const NormPart norm = pre_norm_->part();
        table.rms_norm(pool, {x.data(), norm.weight, rows, norm.columns, norm.epsilon, pieces[0]});
        normed = pieces[0];
    }
    const Step step{table,     pool,      rounds,    rows,      capacity,  normed,
                    pieces[1], pieces[2], pieces[3], pieces[4], pieces[5], pieces[6]};
    route(step, given);
    std::fill_n(step.sum, stream, 0.0f);
    add_experts(step);
    const NormPart post = post_norm_ ? post_norm_->part() : NormPart{};
    table.join_residual(pool, {residual_scale_ ? x.data() : nullptr, step.sum, post,
                               residual_scale_.value_or(1.0f), rows, columns_, out.data()});
}

// The router's results become weights, where they lie.
void ExpertsBlock::route(const Step& step, const int32_t* chosen) const {
    const int64_t count = experts();
    const LinearCall call =
        linear_call(router_, step.rounds, step.normed, step.rows, step.weights);
    step.table.linear(step.pool, &call, 1);
    RoutingScratch scratch;
    for (int64_t row = 0; row < step.rows; ++row) {
        float* weights = step.weights + row * count;
        route_row(routing_, weights, count, correction_ ? correction_->data() : nullptr,
                  chosen ? chosen + row * routing_.top_k : nullptr, scratch, weights);
        if (use_) {
            for (int64_t i = 0; i < count; ++i) use_->data()[i] += weights[i] != 0.0f;
        }
    }
}

// Has the system read an expert's weights from their file, all at once and nothing else: where it
// only finds out page by page what is needed, it reads too little at a time or far too much.
void ExpertsBlock::read_ahead(int64_t expert) const {
#if defined(__linux__)
    if (!places_) return;
    const int64_t* place = places_->data() + 6 * expert;
    for (int i = 0; i < 3; ++i, place += 2) {
        if (place[1] <= 0) continue;
        const int64_t start = place[0] & ~(kPageBytes - 1);
        madvise(reinterpret_cast<void*>(start), static_cast<size_t>(place[0] + place[1] - start),
                MADV_WILLNEED);
    }
#else
    (void)expert;
#endif
}

// Expert by expert in their order, each with all of its rows, and the shared one last: in batches
// whose products are tasks of common parallel regions.
void ExpertsBlock::add_experts(const Step& step) const {
    std::vector<int64_t> rows, mine;
    std::vector<Share> batch;
    for (int64_t expert = 0; expert < experts(); ++expert) {
        mine.clear();
        for (int64_t row = 0; row < step.rows; ++row) {
            // Not equal to zero: what is not a number counts.
            if (step.weights[row * experts() + expert] != 0.0f) mine.push_back(row);
        }
        if (mine.empty()) continue;
        const auto held = static_cast<int64_t>(rows.size());
        const auto count = static_cast<int64_t>(mine.size());
        if (held + count > step.capacity || batch.size() == kBatchExperts) {
            add_batch(step, batch, rows, false);
            batch.clear();
            rows.clear();
        }
        read_ahead(expert);
        batch.push_back({&products_[static_cast<size_t>(3 * expert)], expert,
                         static_cast<int64_t>(rows.size()), count});
        rows.insert(rows.end(), mine.begin(), mine.end());
    }
    add_batch(step, batch, rows, !shared_.empty());
}

void ExpertsBlock::add_batch(const Step& step, const std::vector<Share>& batch,
                             const std::vector<int64_t>& rows, bool shared) const {
    const auto count = static_cast<int64_t>(rows.size());
    // One row alone is everybody's x as it lies, and is rounded once for all.
    const bool gathers = step.rows > 1;
    for (int64_t i = 0; gathers && i < count; ++i) {
        std::copy_n(step.normed + rows[static_cast<size_t>(i)] * columns_, columns_,
                    step.gathered + i * columns_);
    }
    float* shared_gate = step.gate + count * width_;
    float* shared_up = step.up + count * width_;
    float* shared_result = step.result + count * columns_;
    std::vector<LinearCall> calls;
    for (const Share& each : batch) {
        const float* x = gathers ? step.gathered + each.begin * columns_ : step.normed;
        const int64_t place = each.begin * width_;
        calls.push_back(
            linear_call(each.products[0], step.rounds, x, each.count, step.gate + place));
        calls.push_back(linear_call(each.products[1], step.rounds, x, each.count, step.up + place));
    }
    if (shared) {
        calls.push_back(linear_call(shared_[0], step.rounds, step.normed, step.rows, shared_gate));
        calls.push_back(linear_call(shared_[1], step.rounds, step.normed, step.rows, shared_up));
    }
    if (calls.empty()) return;
    step.table.linear(step.pool, calls.data(), static_cast<int>(calls.size()));
    const int64_t values = count * width_ + (shared ? step.rows * shared_width_ : 0);
    ElementwiseCall joined{Elementwise::gate, activation_, step.gate, step.up, 0.0f, values,
                           step.gate};
    if (clamp_) {
        joined.function = Elementwise::clamped_gate;
        std::tie(joined.parameter, joined.slope, joined.offset) = *clamp_;
    }
    step.table.elementwise(step.pool, joined);
    calls.clear();
    for (const Share& each : batch) {
        calls.push_back(linear_call(each.products[2], step.rounds, step.gate + each.begin * width_,
                                    each.count, step.result + each.begin * columns_));
    }
    if (shared) {
        calls.push_back(linear_call(shared_[2], step.rounds, shared_gate, step.rows, shared_result));
    }
    step.table.linear(step.pool, calls.data(), static_cast<int>(calls.size()));
    for (const Share& each : batch) {
        for (int64_t i = each.begin; i < each.begin + each.count; ++i) {
            const int64_t row = rows[static_cast<size_t>(i)];
            add_row(step.result + i * columns_, step.weights[row * experts() + each.expert],
                    columns_, step.sum + row * columns_);
        }
    }
    if (shared) shared_rows(step, shared_result);
}

void ExpertsBlock::shared_rows(const Step& step, const float* result) const {
    float* gates = step.weights;
    if (shared_gate_) {
        const LinearCall call =
            linear_call(*shared_gate_, step.rounds, step.normed, step.rows, gates);
        step.table.linear(step.pool, &call, 1);
    }
    for (int64_t row = 0; row < step.rows; ++row) {
        float factor = 1.0f;
        if (shared_gate_) {
            factor = static_cast<float>(0.5 * (1.0 + std::tanh(0.5 * double{gates[row]})));
        }
        add_row(result + row * columns_, factor, columns_, step.sum + row * columns_);
    }
}

void bind_experts(nb::module_& module) {
    nb::class_<ExpertsBlock>(module, "ExpertsBlock", "A layer's mixture of experts.")
        .def(nb::init<Product, std::vector<Product>, std::vector<Product>, std::optional<Product>,
                      const std::string&, int64_t, const std::string&, int64_t, int64_t, int64_t,
                      bool, double, std::optional<In<float>>, MaybeNorm, MaybeNorm,
                      std::optional<float>, std::optional<Out<int64_t>>,
                      std::optional<In<int64_t>>, std::optional<Clamp>>(),
             "router"_a, "products"_a, "shared"_a, "shared_gate"_a.none(), "activation"_a,
             "top_k"_a, "score"_a, "groups"_a, "groups_kept"_a, "group_counted"_a,
             "renormalised"_a, "scale"_a, "correction"_a.noconvert().none(), "pre_norm"_a.none(),
             "post_norm"_a.none(), "residual_scale"_a.none(), "use"_a.noconvert().none() = nb::none(),
             "places"_a.noconvert().none() = nb::none(), "clamp"_a.none() = nb::none());
}

}  // namespace firstlight
