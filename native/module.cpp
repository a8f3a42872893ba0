// firstlight.backends.cpu._native: the kernels, as Python sees them.
//
// Functions here check their arguments and release the interpreter lock while a kernel runs.
// Results are written to arrays that the caller made.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <vector>

#include "arguments.hpp"
#include "kernel_table.hpp"
#include "levels.hpp"
#include "matrix.hpp"
#include "module_blocks.hpp"
#include "module_ceilings.hpp"
#include "module_entries.hpp"
#include "module_experts.hpp"
#include "module_latent.hpp"
#include "paged_rows.hpp"
#include "thread_pool.hpp"

namespace firstlight {

StreamType stream_type(const nb::dlpack::dtype& dtype) {
    if (dtype == nb::dtype<float>()) return StreamType::float32;
    require(dtype == nb::dtype<uint16_t>(), "pages must be float32, or bfloat16 as uint16");
    return StreamType::bfloat16;
}

Activation activation_of(const std::string& name) {
    if (name == "silu") return Activation::silu;
    if (name == "gelu") return Activation::gelu;
    if (name == "gelu_tanh") return Activation::gelu_tanh;
    if (name == "relu") return Activation::relu;
    throw nb::value_error("unknown activation");
}

namespace {

using namespace nb::literals;

struct DeletePool {
    void operator()(ThreadPool* pool) const { delete_thread_pool(pool); }
};

const KernelTable& kernels_of(const std::string& name) {
    for (int i = 0; i < level_count(); ++i) {
        if (name != level(i).name) continue;
        require(runs_here(i), "this processor lacks the instruction level");
        return *level(i).kernels;
    }
    throw nb::value_error("there is no instruction level of that name");
}

// The kernels of one instruction level with a pool of threads.
class Kernels {
public:
    // `exact`: blocks round no activations where a plain product would not.
    Kernels(const std::string& level, int threads, bool exact)
        : table_(kernels_of(level)), pool_(new_thread_pool(threads)), exact_(exact) {}

    void linear(In<float> x, const Matrix& matrix, std::optional<In<float>> bias, Out<float> out,
                bool round_to_bfloat16) const {
        const LinearCall call = linear_call(x, matrix, bias, out, round_to_bfloat16);
        nb::gil_scoped_release release;
        table_.linear(*pool_, &call, 1);
    }

    // A product for each of the groups of rows: x [groups, rows, columns] and out likewise.
    void linear_each(In<float> x, const std::vector<const Matrix*>& matrices,
                     Out<float> out) const {
        require(x.ndim() == 3 && out.ndim() == 3 && extent(x, 0) == extent(out, 0) &&
                    extent(x, 1) == extent(out, 1) &&
                    extent(x, 0) == static_cast<int64_t>(matrices.size()),
                "x and out must be [matrices, rows, columns]");
        std::vector<LinearCall> calls;
        const int64_t count = extent(x, 1);
        for (size_t i = 0; i < matrices.size(); ++i) {
            require(matrices[i], "a matrix is missing");
            const StoredMatrix& weight = matrices[i]->stored();
            require(weight.columns == extent(x, 2) && weight.rows == extent(out, 2),
                    "every matrix must lead from the columns of x to those of out");
            const auto group = static_cast<int64_t>(i);
            calls.push_back({weight, x.data() + group * count * weight.columns, count, nullptr,
                             out.data() + group * count * weight.rows,
                             matrices[i]->tuning(count), false});
        }
        nb::gil_scoped_release release;
        table_.linear(*pool_, calls.data(), static_cast<int>(calls.size()));
    }

    // Several products of the same x in one go.
    void linear_group(In<float> x, const std::vector<const Matrix*>& matrices,
                      const std::vector<std::optional<In<float>>>& biases,
                      const std::vector<Out<float>>& outs, bool round_to_bfloat16) const {
        require(matrices.size() == biases.size() && matrices.size() == outs.size(),
                "there must be as many biases and outs as matrices");
        std::vector<LinearCall> calls;
        for (size_t i = 0; i < matrices.size(); ++i) {
            require(matrices[i], "a matrix is missing");
            calls.push_back(
                linear_call(x, *matrices[i], biases[i], outs[i], round_to_bfloat16));
        }
        nb::gil_scoped_release release;
        table_.linear(*pool_, calls.data(), static_cast<int>(calls.size()));
    }

    void embed(const Matrix& matrix, In<int32_t> token_ids, Out<float> out) const {
        EmbedCall call{matrix.stored(), token_ids.data(), 0, out.data()};
        require(token_ids.ndim() == 1, "token_ids must be [count]");
        call.count = extent(token_ids, 0);
        require(out.ndim() == 2 && extent(out, 0) == call.count &&
                    extent(out, 1) == call.table.columns,
                "out must be [count, columns]");
        require_indices(token_ids, call.table.rows, "a token id lies outside the vocabulary");
        run(table_.embed, call);
    }

    void pack(const std::string& format, In<uint8_t> data, int64_t rows, int64_t columns,
              Out<uint8_t> out) const {
        const StoredMatrix from =
            checked_matrix(format, data.data(), data.size(), rows, columns, false);
        checked_matrix(format, out.data(), out.size(), rows, columns, true);
        run(table_.pack, PackCall{from.format, from.data, rows, columns, from.row_bytes,
                                  out.data()});
    }

    void rms_norm(In<float> x, std::optional<In<float>> weight, double epsilon,
                  Out<float> out) const {
        require(x.ndim() >= 1, "x must have at least one axis");
        require_same_shape(x, out, "out must have the shape of x");
        NormCall call{x.data(), nullptr, 0, extent(x, x.ndim() - 1), epsilon, out.data()};
        if (call.columns) call.rows = static_cast<int64_t>(x.size()) / call.columns;
        if (weight) {
            require(weight->ndim() == 1 && extent(*weight, 0) == call.columns,
                    "weight must be [columns]");
            call.weight = weight->data();
        }
        run(table_.rms_norm, call);
    }

    void gate(In<float> gate_values, In<float> up, const std::string& activation,
              Out<float> out) const {
        elementwise(Elementwise::gate, activation_of(activation), gate_values, &up, 0.0f, out);
    }

    void clamped_gate(In<float> gate_values, In<float> up, float limit, float slope, float offset,
                      Out<float> out) const {
        elementwise(Elementwise::clamped_gate, {}, gate_values, &up, limit, out, slope, offset);
    }

    void add(In<float> x, In<float> y, float scale, Out<float> out) const {
        elementwise(Elementwise::add, {}, x, &y, scale, out);
    }

    void scale(In<float> x, float factor, Out<float> out) const {
        elementwise(Elementwise::scale, {}, x, nullptr, factor, out);
    }

    void soft_cap(In<float> x, float cap, Out<float> out) const {
        elementwise(Elementwise::soft_cap, {}, x, nullptr, cap, out);
    }

    // Rows are found as an embedding finds them, in a table of float32.
    void take_rows(In<float> x, In<int32_t> indices, Out<float> out) const {
        require(x.ndim() >= 1 && out.ndim() == x.ndim(), "out must have as many axes as x");
        require(indices.ndim() == 1, "indices must be [count]");
        int64_t columns = 1;
        for (size_t i = 1; i < x.ndim(); ++i) {
            require(x.shape(i) == out.shape(i), "rows of out must be as those of x");
            columns *= extent(x, i);
        }
        const int64_t count = extent(indices, 0);
        require(extent(out, 0) == count, "out must have a row for each index");
        require_indices(indices, extent(x, 0), "an index lies outside the rows of x");
        const auto* data = reinterpret_cast<const uint8_t*>(x.data());
        const StoredMatrix rows{BlockFormat::f32, Layout::rows, data,
                                extent(x, 0),     columns,      4 * columns};
        run(table_.embed, EmbedCall{rows, indices.data(), count, out.data()});
    }

    void rotary(In<float> x, In<float> cosine_sine, bool interleaved, Out<float> out) const {
        require(x.ndim() == 3, "x must be [rows, heads, size]");
        require_same_shape(x, out, "out must have the shape of x");
        require(cosine_sine.ndim() == 3 && extent(cosine_sine, 0) == extent(x, 0) &&
                    extent(cosine_sine, 1) == 2,
                "cosine_sine must be [rows, 2, angles]");
        const RotaryCall call{x.data(),     cosine_sine.data(), extent(x, 0),
                              extent(x, 1), extent(x, 2),       extent(cosine_sine, 2),
                              interleaved,  out.data()};
        require(call.angles <= call.size / 2, "there are more angles than pairs of values");
        run(table_.rotary, call);
    }

    void stream_write(AnyOut pages, In<float> values, In<int32_t> row_starts,
                      In<int32_t> positions, In<int32_t> page_table, int64_t page_tokens) const {
        const PagedRowsView rows(row_starts, positions, page_table, page_tokens);
        require(pages.ndim() >= 2 && extent(pages, 1) == page_tokens,
                "pages must be [pages, page_tokens, *entry]");
        require(values.ndim() + 1 == pages.ndim() && extent(values, 0) == rows.rows,
                "values must be [rows, *entry]");
        int64_t entry_size = 1;
        for (size_t i = 1; i < values.ndim(); ++i) {
            require(values.shape(i) == pages.shape(i + 1), "an entry of values must fit the pages");
            entry_size *= extent(values, i);
        }
        const std::vector<int64_t> slots = entry_slots(rows, extent(pages, 0));
        run(table_.stream_write, StreamWriteCall{stream_type(pages.dtype()), pages.data(),
                                                 values.data(), slots.data(), rows.rows,
                                                 entry_size});
    }

    void attention(In<float> queries, AnyIn keys, AnyIn values, In<int32_t> row_starts,
                   In<int32_t> positions, In<int32_t> page_table, int64_t page_tokens, float scale,
                   int64_t window, float soft_cap, Out<float> out, bool round_to_bfloat16,
                   int64_t tile_queries, int64_t head_parts,
                   std::optional<In<float>> sinks) const {
        const PagedRowsView rows(row_starts, positions, page_table, page_tokens);
        require(queries.ndim() == 3 && extent(queries, 0) == rows.rows,
                "queries must be [rows, heads, key_size]");
        require(keys.ndim() == 4 && values.ndim() == 4 && extent(keys, 1) == page_tokens &&
                    extent(values, 1) == page_tokens && extent(keys, 0) == extent(values, 0) &&
                    extent(keys, 2) == extent(values, 2),
                "keys and values must be [pages, page_tokens, key_value_heads, size]");
        AttentionCall call{};
        call.key_type = stream_type(keys.dtype());
        call.value_type = stream_type(values.dtype());
        call.queries = queries.data();
        call.keys = keys.data();
        call.values = values.data();
        call.positions = rows.positions;
        call.page_table = rows.page_table;
        call.table_width = rows.table_width;
        call.page_tokens = page_tokens;
        call.heads = extent(queries, 1);
        call.key_value_heads = extent(keys, 2);
        call.key_size = extent(queries, 2);
        call.value_size = extent(values, 3);
        call.scale = scale;
        call.soft_cap = soft_cap;
        call.window = window;
        call.out = out.data();
        call.round_to_bfloat16 = round_to_bfloat16;
        call.tile_queries = tile_queries;
        call.head_parts = head_parts;
        require_attention_tuning(tile_queries, head_parts);
        if (sinks) {
            require(sinks->ndim() == 1 && extent(*sinks, 0) == call.heads && !round_to_bfloat16,
                    "sinks must be [heads], and nothing is rounded beside them");
            call.sinks = sinks->data();
        }
        require(extent(keys, 3) == call.key_size, "queries and keys differ in size");
        require(call.key_value_heads >= 1 && call.heads % call.key_value_heads == 0,
                "heads must be a multiple of the key-value heads");
        require(out.ndim() == 3 && extent(out, 0) == rows.rows &&
                    extent(out, 1) == call.heads && extent(out, 2) == call.value_size,
                "out must be [rows, heads, value_size]");
        require(call.key_size >= 1, "keys must have at least one value");
        require(window >= 1, "a window must hold at least one position");
        require(soft_cap >= 0.0f, "a soft cap must be positive");
        if (call.heads == 0 || call.value_size == 0) return;
        const std::vector<AttentionRows> groups =
            attention_groups(rows, call, extent(keys, 0), thread_count(*pool_));
        call.groups = groups.data();
        call.group_count = static_cast<int64_t>(groups.size());
        run(table_.attention, call);
    }

    bool multiplies_bfloat16() const { return table_.multiplies_bfloat16; }
    bool multiplies_float8() const { return table_.multiplies_float8; }
    const KernelTable& table() const { return table_; }
    ThreadPool& pool() const { return *pool_; }
    bool rounds() const { return table_.multiplies_bfloat16 && !exact_; }

private:
    static LinearCall linear_call(const In<float>& x, const Matrix& matrix,
                                  const std::optional<In<float>>& bias, const Out<float>& out,
                                  bool round_to_bfloat16) {
        const StoredMatrix& weight = matrix.stored();
        require(x.ndim() == 2 && extent(x, 1) == weight.columns, "x must be [count, columns]");
        const int64_t count = extent(x, 0);
        require(out.ndim() == 2 && extent(out, 0) == count && extent(out, 1) == weight.rows,
                "out must be [count, rows]");
        require(!bias || (bias->ndim() == 1 && extent(*bias, 0) == weight.rows),
                "bias must be [rows]");
        return {weight, x.data(), count, bias ? bias->data() : nullptr, out.data(),
                matrix.tuning(count), round_to_bfloat16};
    }

    template <class Call>
    void run(void (*kernel)(ThreadPool&, const Call&), const Call& call) const {
        nb::gil_scoped_release release;
        kernel(*pool_, call);
    }

    void elementwise(Elementwise function, Activation activation, const In<float>& x,
                     const In<float>* y, float parameter, Out<float>& out, float slope = 1.0f,
                     float offset = 0.0f) const {
        require_same_shape(x, out, "out must have the shape of x");
        if (y) require_same_shape(x, *y, "both arguments must have the same shape");
        const auto size = static_cast<int64_t>(x.size());
        run(table_.elementwise, ElementwiseCall{function, activation, x.data(),
                                                y ? y->data() : nullptr, parameter, size,
                                                out.data(), slope, offset});
    }

    const KernelTable& table_;
    std::unique_ptr<ThreadPool, DeletePool> pool_;
    bool exact_;
};

}  // namespace

NB_MODULE(_native, module) {
    // A model that is still held when the interpreter ends is no fault of the user's.
    nb::set_leak_warnings(false);
    module.doc() = "Kernels of the cpu backend; see native/ in the sources.";

    module.def(
        "levels",
        [] {
            nb::list names;
            for (int i = 0; i < level_count(); ++i) {
                if (runs_here(i)) names.append(level(i).name);
            }
            return names;
        },
        "Names of the instruction levels that run here, the highest last.");

    module.def("processor_name", processor_name,
               "What the processor calls itself; empty where it does not say.");

    module.def(
        "formats",
        [] {
            nb::dict formats;
            for (const FormatInfo& info : kFormats) {
                formats[info.name] = nb::make_tuple(info.block_values, info.block_bytes);
            }
            return formats;
        },
        "Storage formats that the kernels decode: name -> (values, bytes) of a block.");

    module.def(
        "packed_bytes",
        [](const std::string& format, int64_t rows, int64_t columns) -> std::optional<int64_t> {
            require(0 <= rows && rows < 1 << 30 && 0 <= columns && columns < 1 << 30,
                    "no matrix is so large");
            const int64_t bytes = packed_bytes(format_info(format).code, rows, columns);
            return bytes < 0 ? std::nullopt : std::optional(bytes);
        },
        "format"_a, "rows"_a, "columns"_a,
        "Bytes of a matrix in panels; None where the format is used in place.");

    // An argument of another dtype or layout raises instead of being copied.
    nb::class_<Matrix>(module, "Matrix", "A weight in place or packed, and how it is tuned.")
        .def(nb::init<const std::string&, In<uint8_t>, int64_t, int64_t, bool,
                      std::optional<In<float>>, int64_t, int64_t, int64_t>(),
             "format"_a, "data"_a.noconvert(), "rows"_a, "columns"_a, "packed"_a,
             "scales"_a.noconvert().none() = nb::none(), "scale_rows"_a = 1,
             "scale_columns"_a = 1, "scale_first_row"_a = 0)
        .def("scale_groups", &Matrix::scale_groups, "scales"_a.noconvert(), "factor"_a,
             "divides"_a)
        .def_prop_ro("format", &Matrix::format)
        .def_prop_ro("rows", &Matrix::rows)
        .def_prop_ro("columns", &Matrix::columns)
        .def_prop_ro("packed", &Matrix::packed)
        .def("tune", &Matrix::tune, "least_count"_a, "most_count"_a, "block_rows"_a = 0,
             "panels"_a = 0, "fetch_ahead"_a = 0);

    bind_blocks(module);
    bind_experts(module);
    bind_latent(module);

    nb::class_<Kernels> kernels(module, "Kernels",
                                "The kernels of one level, with a pool of threads.");
    bind_entries(module, kernels);
    kernels.def(nb::init<const std::string&, int, bool>(), "level"_a, "threads"_a,
             "exact"_a = false)
        .def("linear", &Kernels::linear, "x"_a.noconvert(), "matrix"_a,
             "bias"_a.noconvert().none(), "out"_a.noconvert(), "round_to_bfloat16"_a = false)
        .def("linear_each", &Kernels::linear_each, "x"_a.noconvert(), "matrices"_a,
             "out"_a.noconvert())
        .def("linear_group", &Kernels::linear_group, "x"_a.noconvert(), "matrices"_a,
             "biases"_a.noconvert(), "outs"_a.noconvert(),
             "round_to_bfloat16"_a = false)
        .def("embed", &Kernels::embed, "matrix"_a, "token_ids"_a.noconvert(),
             "out"_a.noconvert())
        .def("pack", &Kernels::pack, "format"_a, "data"_a.noconvert(), "rows"_a, "columns"_a,
             "out"_a.noconvert())
        .def("rms_norm", &Kernels::rms_norm, "x"_a.noconvert(), "weight"_a.noconvert().none(),
             "epsilon"_a, "out"_a.noconvert())
        .def("gate", &Kernels::gate, "gate_values"_a.noconvert(), "up"_a.noconvert(),
             "activation"_a, "out"_a.noconvert())
        .def("clamped_gate", &Kernels::clamped_gate, "gate_values"_a.noconvert(),
             "up"_a.noconvert(), "limit"_a, "slope"_a, "offset"_a, "out"_a.noconvert())
        .def("add", &Kernels::add, "x"_a.noconvert(), "y"_a.noconvert(), "scale"_a,
             "out"_a.noconvert())
        .def("scale", &Kernels::scale, "x"_a.noconvert(), "factor"_a, "out"_a.noconvert())
        .def("soft_cap", &Kernels::soft_cap, "x"_a.noconvert(), "cap"_a, "out"_a.noconvert())
        .def("take_rows", &Kernels::take_rows, "x"_a.noconvert(), "indices"_a.noconvert(),
             "out"_a.noconvert())
        .def("rotary", &Kernels::rotary, "x"_a.noconvert(), "cosine_sine"_a.noconvert(),
             "interleaved"_a, "out"_a.noconvert())
        .def("stream_write", &Kernels::stream_write, "pages"_a.noconvert(),
             "values"_a.noconvert(), "row_starts"_a.noconvert(), "positions"_a.noconvert(),
             "page_table"_a.noconvert(), "page_tokens"_a)
        .def("attention", &Kernels::attention, "queries"_a.noconvert(), "keys"_a.noconvert(),
             "values"_a.noconvert(), "row_starts"_a.noconvert(), "positions"_a.noconvert(),
             "page_table"_a.noconvert(), "page_tokens"_a, "scale"_a, "window"_a, "soft_cap"_a,
             "out"_a.noconvert(), "round_to_bfloat16"_a = false, "tile_queries"_a = 0,
             "head_parts"_a = 0, "sinks"_a.noconvert().none() = nb::none())
        .def("attention_block",
             [](const Kernels& kernels, const AttentionBlock& block, In<float> x, AnyOut keys,
                AnyOut values, PagedRows& rows, std::optional<In<float>> cosine_sine,
                Out<float> out, int64_t tile_queries, int64_t head_parts) {
                 block.run(kernels.table(), kernels.pool(), kernels.rounds(), x, keys, values,
                           rows, cosine_sine, out, tile_queries, head_parts);
             },
             "block"_a, "x"_a.noconvert(), "keys"_a.noconvert(), "values"_a.noconvert(), "rows"_a,
             "cosine_sine"_a.noconvert().none(), "out"_a.noconvert(), "tile_queries"_a = 0,
             "head_parts"_a = 0)
        .def("feed_forward_block",
             [](const Kernels& kernels, const FeedForwardBlock& block, In<float> x,
                Out<float> out) { block.run(kernels.table(), kernels.pool(), kernels.rounds(), x, out); },
             "block"_a, "x"_a.noconvert(), "out"_a.noconvert())
        .def("experts_block",
             [](const Kernels& kernels, const ExpertsBlock& block, In<float> x,
                std::optional<In<int32_t>> chosen, Out<float> out) {
                 block.run(kernels.table(), kernels.pool(), kernels.rounds(), x, chosen, out);
             },
             "block"_a, "x"_a.noconvert(), "chosen"_a.noconvert().none(), "out"_a.noconvert())
        .def("latent_block",
             [](const Kernels& kernels, const LatentBlock& block, In<float> x, AnyOut entries,
                PagedRows& rows, In<float> cosine_sine, Out<float> out) {
                 block.run(kernels.table(), kernels.pool(), kernels.rounds(), x, entries, rows,
                           cosine_sine, out);
             },
             "block"_a, "x"_a.noconvert(), "entries"_a.noconvert(), "rows"_a,
             "cosine_sine"_a.noconvert(), "out"_a.noconvert())
        .def("logits",
             [](const Kernels& kernels, const Head& head, In<float> x, In<int32_t> wanted,
                Out<float> out) { head.run(kernels.table(), kernels.pool(), kernels.rounds(), x, wanted, out); },
             "head"_a, "x"_a.noconvert(), "wanted"_a.noconvert(), "out"_a.noconvert())
        .def("measure_bandwidth",
             [](const Kernels& kernels, int64_t bytes) {
                 return measure_bandwidth(kernels.table(), kernels.pool(), bytes);
             },
             "bytes"_a)
        .def("multiply_add_types",
             [](const Kernels& kernels) { return multiply_add_types(kernels.table()); })
        .def("measure_multiply_add",
             [](const Kernels& kernels, const std::string& type, double seconds) {
                 return measure_multiply_add(kernels.table(), kernels.pool(), type, seconds);
             },
             "type"_a, "seconds"_a)
        .def_prop_ro("multiplies_bfloat16", &Kernels::multiplies_bfloat16)
        .def_prop_ro("multiplies_float8", &Kernels::multiplies_float8);
}

}  // namespace firstlight
