#include "entry_runners.hpp"

#include <algorithm>
#include <optional>

namespace firstlight::tests {
namespace {

int64_t integer(const Case& one, const std::string& name) {
    return static_cast<int64_t>(one.number(name));
}

StreamType stream_type(const Array& pages) {
    return pages.type == ElementType::bfloat16 ? StreamType::bfloat16 : StreamType::float32;
}

// A stream of a case and the rows in it, with one entry for each run of `stride` positions.
struct Stream {
    const Array& pages;
    const Array& table;
    const int32_t* starts;
    const int32_t* positions;
    int64_t page_entries, entry_bytes;

    Stream(const Case& one, const char* name, const std::string& rows, int64_t stride)
        : pages(one.array(name)), table(one.array(rows + ".page_table")),
          starts(one.array(rows + ".row_starts").elements<int32_t>()),
          positions(one.array(rows + ".positions").elements<int32_t>()),
          page_entries(integer(one, rows + ".page_tokens") / stride),
          entry_bytes(static_cast<int64_t>(bytes_of(pages.type))) {
        for (size_t axis = 2; axis < pages.shape.size(); ++axis) entry_bytes *= pages.extent(axis);
    }
    int64_t sequences() const { return table.extent(0); }
    int64_t sequence_of(int64_t row) const {
        int64_t sequence = 0;
        while (starts[sequence + 1] <= row) ++sequence;
        return sequence;
    }
    const int32_t* page_table(int64_t sequence) const {
        return table.elements<int32_t>() + sequence * table.extent(1);
    }
    // The address of an entry, from another stream's base.
    int64_t offset(int64_t sequence, int64_t entry, const Stream& from) const {
        const int64_t page = page_table(sequence)[entry / page_entries];
        const uint8_t* at =
            pages.memory.data() + (page * page_entries + entry % page_entries) * entry_bytes;
        return static_cast<int64_t>(reinterpret_cast<intptr_t>(at) -
                                    reinterpret_cast<intptr_t>(from.pages.memory.data()));
    }
};

int64_t rows_of_queries(const Case& one) { return one.array("queries").extent(0); }

// Attention of some rows over what list(row, offsets) adds for each.
template <class List>
Array attend(const Machine& machine, const Case& one, RowRange rows, const Stream& stream,
             int64_t value_size, const float* sinks, List list) {
    const Array& queries = one.array("queries");
    const int64_t heads = queries.extent(1), size = queries.extent(2);
    Array out(ElementType::float32, {queries.extent(0), heads, value_size});
    std::vector<int64_t> offsets, starts{0};
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        list(row, offsets);
        starts.push_back(static_cast<int64_t>(offsets.size()));
    }
    machine.kernels.listed_attention(
        machine.pool, {stream_type(stream.pages), queries.elements<float>() + rows.begin * heads * size,
                       rows.end - rows.begin, heads, size, value_size, stream.pages.memory.data(),
                       offsets.data(), starts.data(), static_cast<float>(one.number("scale")), sinks,
                       out.elements<float>() + rows.begin * heads * value_size});
    return out;
}

void add_numbered(const Stream& stream, const Stream& from, const Array& numbers, int64_t row,
                  std::vector<int64_t>& offsets) {
    const int64_t width = numbers.extent(1), sequence = stream.sequence_of(row);
    for (int64_t i = 0; i < width; ++i) {
        const int32_t number = numbers.elements<int32_t>()[row * width + i];
        if (number >= 0) offsets.push_back(stream.offset(sequence, number, from));
    }
}

Array run_selected(const Machine& machine, const Case& one, RowRange rows) {
    const Stream entries(one, "entries", "rows", 1);
    return attend(machine, one, rows, entries, integer(one, "value_size"), nullptr,
                  [&](int64_t row, std::vector<int64_t>& offsets) {
                      add_numbered(entries, entries, one.array("selected"), row, offsets);
                  });
}

Array run_compressed(const Machine& machine, const Case& one, RowRange rows) {
    const int64_t stride = integer(one, "stride"), window = integer(one, "window");
    const Stream near(one, "keys", "rows", 1), far(one, "entries", "entry_rows", stride);
    const Array* chosen = one.array_or_null("chosen");
    return attend(machine, one, rows, near, one.array("queries").extent(2),
                  one.array("sinks").elements<float>(),
                  [&](int64_t row, std::vector<int64_t>& offsets) {
                      const int64_t position = near.positions[row], sequence = near.sequence_of(row);
                      const int64_t first = std::max<int64_t>(0, position - window + 1);
                      for (int64_t p = first; p <= position; ++p) {
                          offsets.push_back(near.offset(sequence, p, near));
                      }
                      if (chosen) return add_numbered(far, near, *chosen, row, offsets);
                      for (int64_t run = 0; run < (position + 1) / stride; ++run) {
                          offsets.push_back(far.offset(sequence, run, near));
                      }
                  });
}

Array run_choice(const Machine& machine, const Case& one, RowRange rows) {
    const int64_t stride = integer(one, "stride"), top_k = integer(one, "top_k");
    const Stream keys(one, "keys", "rows", stride);
    const Array& queries = one.array("queries");
    const int64_t heads = queries.extent(1), size = queries.extent(2);
    Array out(ElementType::int32, {queries.extent(0), top_k});
    std::vector<const int32_t*> tables;
    std::vector<int64_t> counts;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        tables.push_back(keys.page_table(keys.sequence_of(row)));
        counts.push_back((keys.positions[row] + 1) / stride);
    }
    machine.kernels.choose_entries(
        machine.pool,
        {stream_type(keys.pages), queries.elements<float>() + rows.begin * heads * size,
         one.array("weights").elements<float>() + rows.begin * heads, rows.end - rows.begin, heads,
         size, keys.pages.memory.data(), tables.data(), keys.page_entries, counts.data(), top_k,
         out.elements<int32_t>() + rows.begin * top_k});
    return out;
}

Array run_pool_runs(const Machine& machine, const Case& one, RowRange) {
    const int64_t stride = integer(one, "stride");
    const Stream own(one, "entries", "rows", 1);
    std::optional<Stream> before;
    if (one.array_or_null("before")) before.emplace(one, "before", "before_rows", 1);
    std::vector<int64_t> offsets, starts{0};
    for (int64_t s = 0; s < own.sequences(); ++s) {
        for (int64_t row = own.starts[s]; row < own.starts[s + 1]; ++row) {
            const int64_t end = own.positions[row] + 1;
            if (end % stride) continue;
            for (int64_t p = end - 2 * stride; p < end; ++p) {
                if (p >= end - stride) {
                    offsets.push_back(own.offset(s, p, own));
                } else if (p >= 0 && before) {
                    offsets.push_back(before->offset(s, p, own));
                }
            }
            starts.push_back(static_cast<int64_t>(offsets.size()));
        }
    }
    const int64_t runs = static_cast<int64_t>(starts.size()) - 1, size = own.pages.shape.back();
    Array out(ElementType::float32, {runs, size});
    machine.kernels.pool_runs(machine.pool,
                              {stream_type(own.pages), runs, size, own.pages.memory.data(),
                               offsets.data(), starts.data(), out.elements<float>()});
    return out;
}

}  // namespace

const std::vector<Runner>& entry_runners() {
    static const std::vector<Runner> runners = {
        {"selected_latent_attention", "listed", "none", nullptr, nullptr, run_selected,
         rows_of_queries, nullptr},
        {"compressed_attention", "listed", "none", nullptr, nullptr, run_compressed,
         rows_of_queries, nullptr},
        {"select_entries", "paged", "none", nullptr, nullptr, run_choice, rows_of_queries, nullptr},
        {"pool_runs", "paged", "none", nullptr, nullptr, run_pool_runs, nullptr, nullptr},
    };
    return runners;
}

}  // namespace firstlight::tests
