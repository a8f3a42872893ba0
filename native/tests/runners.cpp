#include "runners.hpp"

#include <algorithm>
#include <stdexcept>

#include "entry_runners.hpp"
#include "formats.hpp"

namespace firstlight::tests {
namespace {

#include "packed_layout.inl"

constexpr int64_t kNoWindow = int64_t{1} << 31;

const float* floats_or_null(const Case& one, const char* name) {
    const Array* array = one.array_or_null(name);
    return array ? array->elements<float>() : nullptr;
}

int64_t integer(const Case& one, const std::string& name) {
    return static_cast<int64_t>(one.number(name));
}

StoredMatrix matrix(const Case& one, const std::string& name) {
    StoredMatrix stored = stored_matrix(one.text(name + ".format"), one.array(name),
                                        integer(one, name + ".columns"));
    if (const Array* scales = one.array_or_null(name + ".scales")) {
        stored.scales = {scales->elements<float>(), scales->extent(1),
                         integer(one, name + ".scales.rows"),
                         integer(one, name + ".scales.columns"),
                         integer(one, name + ".scales.first_row")};
    }
    if (const Array* groups = one.array_or_null(name + ".groups")) {
        const double divisor = one.number(name + ".groups.divisor");
        const bool divides = divisor != 1;
        const double factor = divides ? divisor : one.number(name + ".groups.factor");
        stored.groups = {groups->elements<uint8_t>(), groups->extent(1),
                         static_cast<float>(factor), divides};
    }
    return stored;
}

Array like(const Array& other) { return Array(ElementType::float32, other.shape); }

// The argument as `prepare` laid it out in panels.
StoredMatrix packed_matrix(const Case& one, const std::string& name) {
    StoredMatrix packed = matrix(one, name);
    packed.layout = Layout::panels;
    packed.data = one.array(name + ".packed").memory.data();
    packed.row_bytes = 0;
    return packed;
}

const FormatInfo* known_format(const Case& one, const char* name) {
    const std::string& format = one.text(std::string(name) + ".format");
    // Kernels read whole groups of it only, and blocks of scales whose columns are whole steps or
    // all there are; the rest stays with the definition.
    const int64_t columns = integer(one, std::string(name) + ".columns");
    if (format == "e2m1" && columns % 16) return nullptr;
    if (one.array_or_null(std::string(name) + ".scales")) {
        const int64_t block = integer(one, std::string(name) + ".scales.columns");
        if (block % 32 && block < columns) return nullptr;
    }
    for (const FormatInfo& info : kFormats) {
        if (format == info.name) return &info;
    }
    return nullptr;
}

bool knows_weight(const Case& one) { return known_format(one, "weight"); }
bool knows_table(const Case& one) { return known_format(one, "table"); }

bool comes_in_panels(const Case& one, const char* name) {
    const FormatInfo* info = known_format(one, name);
    return info && panel_shape(info->code).bits > 0;
}

bool packs_weight(const Case& one) { return comes_in_panels(one, "weight"); }
bool packs_table(const Case& one) { return comes_in_panels(one, "table"); }

bool multiplies_bfloat16(const KernelTable& kernels) { return kernels.multiplies_bfloat16; }
bool is_bfloat16(const Case& one) { return one.text("weight.format") == "bf16"; }
bool multiplies_float8(const KernelTable& kernels) { return kernels.multiplies_float8; }
bool is_float8(const Case& one) {
    return one.text("weight.format") == "f8_e4m3" && known_format(one, "weight");
}

// Products with weights -----------------------------------------------------------------------

int64_t rows_of_x(const Case& one) { return one.array("x").extent(0); }

Array linear(const Machine& machine, const Case& one, RowRange rows, const StoredMatrix& weight,
             bool round_to_bfloat16) {
    const Array& x = one.array("x");
    Array out(ElementType::float32, {x.extent(0), weight.rows});
    LinearCall call{weight,
                    x.elements<float>() + rows.begin * weight.columns,
                    rows.end - rows.begin,
                    floats_or_null(one, "bias"),
                    nullptr,
                    machine.tuning,
                    round_to_bfloat16};
    std::vector<Array> outs;
    std::vector<LinearCall> calls;
    for (int i = 0; i < machine.products; ++i) {
        outs.push_back(out);
        call.out = outs.back().elements<float>() + rows.begin * weight.rows;
        calls.push_back(call);
    }
    machine.kernels.linear(machine.pool, calls.data(), machine.products);
    return std::move(outs.back());
}

Array run_linear(const Machine& machine, const Case& one, RowRange rows) {
    return linear(machine, one, rows, matrix(one, "weight"), false);
}

Array run_linear_bfloat16(const Machine& machine, const Case& one, RowRange rows) {
    return linear(machine, one, rows, matrix(one, "weight"), true);
}

Array run_linear_packed(const Machine& machine, const Case& one, RowRange rows) {
    return linear(machine, one, rows, packed_matrix(one, "weight"), false);
}

Array embed(const Machine& machine, const Case& one, const StoredMatrix& table) {
    const Array& ids = one.array("token_ids");
    Array out(ElementType::float32, {ids.size(), table.columns});
    machine.kernels.embed(machine.pool,
                          {table, ids.elements<int32_t>(), ids.size(), out.elements<float>()});
    return out;
}

Array run_embed(const Machine& machine, const Case& one, RowRange) {
    return embed(machine, one, matrix(one, "table"));
}

Array run_embed_packed(const Machine& machine, const Case& one, RowRange) {
    return embed(machine, one, packed_matrix(one, "table"));
}

// Rows and single values ----------------------------------------------------------------------

Array run_rms_norm(const Machine& machine, const Case& one, RowRange) {
    const Array& x = one.array("x");
    Array out = like(x);
    const int64_t columns = x.shape.back(), rows = columns ? x.size() / columns : 0;
    machine.kernels.rms_norm(machine.pool,
                             {x.elements<float>(), floats_or_null(one, "weight"), rows, columns,
                              one.number("epsilon"), out.elements<float>()});
    return out;
}

Array elementwise(const Machine& machine, Elementwise function, Activation activation,
                  const Array& x, const float* y, double parameter) {
    Array out = like(x);
    machine.kernels.elementwise(machine.pool,
                                {function, activation, x.elements<float>(), y,
                                 static_cast<float>(parameter), x.size(), out.elements<float>()});
    return out;
}

Activation activation_of(const std::string& name) {
    if (name == "silu") return Activation::silu;
    if (name == "gelu") return Activation::gelu;
    if (name == "gelu_tanh") return Activation::gelu_tanh;
    if (name == "relu") return Activation::relu;
    throw std::runtime_error("unknown activation " + name);
}

Array run_gate(const Machine& machine, const Case& one, RowRange) {
    return elementwise(machine, Elementwise::gate, activation_of(one.text("activation")),
                       one.array("gate_values"), one.array("up").elements<float>(), 0.0);
}

Array run_clamped_gate(const Machine& machine, const Case& one, RowRange) {
    const Array& x = one.array("gate_values");
    Array out = like(x);
    ElementwiseCall call{Elementwise::clamped_gate, {}, x.elements<float>(),
                         one.array("up").elements<float>(),
                         static_cast<float>(one.number("numbers.limit")), x.size(),
                         out.elements<float>()};
    call.slope = static_cast<float>(one.number("numbers.slope"));
    call.offset = static_cast<float>(one.number("numbers.offset"));
    machine.kernels.elementwise(machine.pool, call);
    return out;
}

Array run_add(const Machine& machine, const Case& one, RowRange) {
    return elementwise(machine, Elementwise::add, {}, one.array("x"),
                       one.array("y").elements<float>(), one.number_or("scale", 1.0));
}

Array run_scale(const Machine& machine, const Case& one, RowRange) {
    return elementwise(machine, Elementwise::scale, {}, one.array("x"), nullptr,
                       one.number("factor"));
}

Array run_soft_cap(const Machine& machine, const Case& one, RowRange) {
    return elementwise(machine, Elementwise::soft_cap, {}, one.array("x"), nullptr,
                       one.number("cap"));
}

Array run_take_rows(const Machine& machine, const Case& one, RowRange) {
    const Array& x = one.array("x");
    const Array& indices = one.array("indices");
    std::vector<int64_t> shape = x.shape;
    shape[0] = indices.size();
    Array out(ElementType::float32, shape);
    const int64_t columns = x.extent(0) ? x.size() / x.extent(0) : 0;
    const StoredMatrix rows{BlockFormat::f32, Layout::rows, x.memory.data(),
                            x.extent(0),      columns,      4 * columns};
    machine.kernels.embed(machine.pool, {rows, indices.elements<int32_t>(), indices.size(),
                                         out.elements<float>()});
    return out;
}

Array run_rotary(const Machine& machine, const Case& one, RowRange) {
    const Array& x = one.array("x");
    const Array& angles = one.array("cosine_sine");
    Array out = like(x);
    machine.kernels.rotary(
        machine.pool, {x.elements<float>(), angles.elements<float>(), x.extent(0), x.extent(1),
                       x.extent(2), angles.extent(2), one.number("interleaved") != 0,
                       out.elements<float>()});
    return out;
}

// State ---------------------------------------------------------------------------------------

StreamType stream_type(const Array& pages) {
    return pages.type == ElementType::bfloat16 ? StreamType::bfloat16 : StreamType::float32;
}

Array run_stream_write(const Machine& machine, const Case& one, RowRange) {
    Array pages = one.array("pages");
    const Array& values = one.array("values");
    const Array& table = one.array("rows.page_table");
    const int32_t* starts = one.array("rows.row_starts").elements<int32_t>();
    const int32_t* positions = one.array("rows.positions").elements<int32_t>();
    const int64_t page_tokens = integer(one, "rows.page_tokens");
    const int64_t rows = values.extent(0);
    std::vector<int64_t> slots(static_cast<size_t>(rows));
    for (int64_t s = 0; s < table.extent(0); ++s) {
        const int32_t* page = table.elements<int32_t>() + s * table.extent(1);
        for (int64_t row = starts[s]; row < starts[s + 1]; ++row) {
            slots[static_cast<size_t>(row)] =
                page[positions[row] / page_tokens] * page_tokens + positions[row] % page_tokens;
        }
    }
    const int64_t entry = pages.size() / (pages.extent(0) * page_tokens);
    machine.kernels.stream_write(machine.pool,
                                 {stream_type(pages), pages.memory.data(),
                                  values.elements<float>(), slots.data(), rows, entry});
    return pages;
}

int64_t rows_of_queries(const Case& one) { return one.array("queries").extent(0); }

Array attention(const Machine& machine, const Case& one, RowRange rows, bool round_to_bfloat16) {
    const Array& queries = one.array("queries");
    const Array& keys = one.array("keys");
    const Array& values = one.array("values");
    const Array& table = one.array("rows.page_table");
    const int32_t* starts = one.array("rows.row_starts").elements<int32_t>();
    AttentionCall call{};
    call.key_type = stream_type(keys);
    call.value_type = stream_type(values);
    call.queries = queries.elements<float>();
    call.keys = keys.memory.data();
    call.values = values.memory.data();
    call.positions = one.array("rows.positions").elements<int32_t>();
    call.page_table = table.elements<int32_t>();
    call.table_width = table.extent(1);
    call.page_tokens = integer(one, "rows.page_tokens");
    call.heads = queries.extent(1);
    call.key_value_heads = keys.extent(2);
    call.key_size = queries.extent(2);
    call.value_size = values.extent(3);
    call.scale = static_cast<float>(one.number("scale"));
    call.soft_cap = static_cast<float>(one.number_or("soft_cap", 0.0));
    call.window = static_cast<int64_t>(one.number_or("window", kNoWindow));
    call.round_to_bfloat16 = round_to_bfloat16;
    call.sinks = floats_or_null(one, "sinks");
    std::vector<AttentionRows> groups;
    const int64_t step =
        std::max<int64_t>(1, machine.tile_queries / (call.heads / call.key_value_heads));
    for (int64_t s = 0; s < table.extent(0); ++s) {
        const int64_t end = std::min<int64_t>(starts[s + 1], rows.end);
        for (int64_t row = std::max<int64_t>(starts[s], rows.begin); row < end; row += step) {
            groups.push_back({s, row, std::min(row + step, end)});
        }
    }
    call.groups = groups.data();
    call.group_count = static_cast<int64_t>(groups.size());
    Array out(ElementType::float32, {queries.extent(0), call.heads, call.value_size});
    call.out = out.elements<float>();
    machine.kernels.attention(machine.pool, call);
    return out;
}

Array run_attention(const Machine& machine, const Case& one, RowRange rows) {
    return attention(machine, one, rows, false);
}

Array run_attention_bfloat16(const Machine& machine, const Case& one, RowRange rows) {
    return attention(machine, one, rows, true);
}

bool keeps_bfloat16(const Case& one) {
    return one.array("keys").type == ElementType::bfloat16 &&
           one.array("values").type == ElementType::bfloat16;
}

}  // namespace

StoredMatrix stored_matrix(const std::string& format, const Array& data, int64_t columns) {
    for (const FormatInfo& info : kFormats) {
        if (format != info.name) continue;
        return {info.code,      Layout::rows, data.elements<uint8_t>(),
                data.extent(0), columns,      data.extent(1)};
    }
    throw std::runtime_error("the kernels do not know the format " + format);
}

namespace {

std::vector<Runner> runners_of_this_file() {
    return {
        {"linear", "stored", "none", nullptr, knows_weight, run_linear, rows_of_x, nullptr},
        {"linear", "bfloat16", "bfloat16", multiplies_bfloat16, is_bfloat16, run_linear_bfloat16,
         rows_of_x, nullptr},
        {"linear", "float8", "bfloat16", multiplies_float8, is_float8, run_linear_bfloat16, rows_of_x,
         nullptr},
        {"linear", "packed", "mixed16", nullptr, packs_weight, run_linear_packed, rows_of_x,
         "weight"},
        {"embed", "stored", "none", nullptr, knows_table, run_embed, nullptr, nullptr},
        {"embed", "packed", "none", nullptr, packs_table, run_embed_packed, nullptr, "table"},
        {"rms_norm", "rows", "none", nullptr, nullptr, run_rms_norm, nullptr, nullptr},
        {"rotary", "rows", "none", nullptr, nullptr, run_rotary, nullptr, nullptr},
        {"stream_write", "paged", "none", nullptr, nullptr, run_stream_write, nullptr, nullptr},
        {"attention", "paged", "none", nullptr, nullptr, run_attention, rows_of_queries, nullptr},
        {"attention", "bfloat16", "bfloat16", multiplies_bfloat16, keeps_bfloat16,
         run_attention_bfloat16, rows_of_queries, nullptr},
        {"attention_with_sinks", "paged", "none", nullptr, nullptr, run_attention, rows_of_queries,
         nullptr},
        {"gate", "vector", "none", nullptr, nullptr, run_gate, nullptr, nullptr},
        {"clamped_gate", "vector", "none", nullptr, nullptr, run_clamped_gate, nullptr, nullptr},
        {"add", "vector", "none", nullptr, nullptr, run_add, nullptr, nullptr},
        {"scale", "vector", "none", nullptr, nullptr, run_scale, nullptr, nullptr},
        {"soft_cap", "vector", "none", nullptr, nullptr, run_soft_cap, nullptr, nullptr},
        {"take_rows", "rows", "none", nullptr, nullptr, run_take_rows, nullptr, nullptr},
    };
}

}  // namespace

const std::vector<Runner>& all_runners() {
    static const std::vector<Runner> runners = [] {
        std::vector<Runner> all = runners_of_this_file();
        all.insert(all.end(), entry_runners().begin(), entry_runners().end());
        return all;
    }();
    return runners;
}

Case prepare(const Runner& runner, const Machine& machine, const Case& one) {
    Case prepared = one;
    if (!runner.packed) return prepared;
    const StoredMatrix from = matrix(one, runner.packed);
    const int64_t bytes = panels_of(from.rows) * panel_shape(from.format).panel_bytes(from.columns);
    Array panels(ElementType::byte, {bytes}, 0);
    machine.kernels.pack(machine.pool, {from.format, from.data, from.rows, from.columns,
                                        from.row_bytes, panels.memory.data()});
    prepared.arrays.emplace(std::string(runner.packed) + ".packed", std::move(panels));
    return prepared;
}

Array run_whole(const Runner& runner, const Machine& machine, const Case& one) {
    return runner.run(machine, one, {0, runner.rows ? runner.rows(one) : 0});
}

}  // namespace firstlight::tests
