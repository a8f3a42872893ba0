#include "module_entries.hpp"

#include <algorithm>
#include <vector>

namespace firstlight {
namespace {

// Entries whose places are listed at a time; the rows of a step may see more.
constexpr size_t kMostListed = 1 << 20;

// A checked stream: `axes` of an entry, and one entry for each run of `stride` positions.
struct Stream {
    PagedRowsView rows;
    StreamType type;
    const uint8_t* base;
    int64_t pages, page_entries, entry_bytes, stride, size;

    Stream(const PagedStream& stream, size_t axes, int64_t stride_)
        : rows(stream.row_starts, stream.positions, stream.page_table, stream.page_tokens),
          type(stream_type(stream.pages.dtype())),
          base(static_cast<const uint8_t*>(stream.pages.data())), pages(0), page_entries(0),
          entry_bytes(type == StreamType::float32 ? 4 : 2), stride(stride_), size(0) {
        require(stream.pages.ndim() == 2 + axes, "pages have another number of axes");
        require(stride >= 1 && stream.page_tokens % stride == 0,
                "a page must hold whole runs of positions");
        pages = extent(stream.pages, 0);
        page_entries = stream.page_tokens / stride;
        require(extent(stream.pages, 1) == page_entries,
                "pages must hold page_tokens / stride entries each");
        size = extent(stream.pages, 1 + axes);
        require(size >= 1, "an entry must have at least one value");
        for (size_t axis = 2; axis < 2 + axes; ++axis) entry_bytes *= extent(stream.pages, axis);
    }

    // Bytes from `base` to an entry; an error if the sequence has no page for it.
    int64_t offset(int64_t sequence, int64_t entry) const {
        const int64_t page = rows.page(sequence, entry * stride, pages);
        return (page * page_entries + entry % page_entries) * entry_bytes;
    }
    // The same of entries [first, end), behind one another in `to`, from another base.
    void list(int64_t sequence, int64_t first, int64_t end, int64_t moved,
              std::vector<int64_t>& to) const {
        while (first < end) {
            const int64_t here = moved + offset(sequence, first);
            const int64_t stop = std::min(end, (first / page_entries + 1) * page_entries);
            for (int64_t i = 0; i < stop - first; ++i) to.push_back(here + i * entry_bytes);
            first = stop;
        }
    }
    // Bytes from the base of another stream to this one's.
    int64_t behind(const Stream& other) const {
        return static_cast<int64_t>(reinterpret_cast<intptr_t>(base) -
                                    reinterpret_cast<intptr_t>(other.base));
    }
    void require_same_rows(const Stream& other) const {
        require(rows.rows == other.rows.rows && rows.sequences == other.rows.sequences &&
                    std::equal(rows.row_starts, rows.row_starts + rows.sequences + 1,
                               other.rows.row_starts) &&
                    std::equal(rows.positions, rows.positions + rows.rows, other.rows.positions),
                "both streams must have the same rows");
        require(type == other.type, "both streams must have one dtype");
    }
};

// Attention of all rows, as many at a time as kMostListed allows. list(row, sequence, offsets) adds
// what the row sees.
template <class List>
void attend_listed(const KernelTable& table, ThreadPool& pool, ListedAttentionCall call,
                   const Stream& stream, int64_t queries_size, List list) {
    std::vector<int64_t> offsets, starts{0};
    int64_t first = 0;
    const auto run = [&] {
        ListedAttentionCall part = call;
        part.rows = static_cast<int64_t>(starts.size()) - 1;
        part.queries += first * call.heads * queries_size;
        part.out += first * call.heads * call.value_size;
        part.offsets = offsets.data();
        part.starts = starts.data();
        {
            nb::gil_scoped_release release;
            table.listed_attention(pool, part);
        }
        first += part.rows;
        offsets.clear();
        starts.assign(1, 0);
    };
    const PagedRowsView& rows = stream.rows;
    for (int64_t s = 0; s < rows.sequences; ++s) {
        for (int64_t row = rows.row_starts[s]; row < rows.row_starts[s + 1]; ++row) {
            list(row, s, offsets);
            starts.push_back(static_cast<int64_t>(offsets.size()));
            if (offsets.size() >= kMostListed) run();
        }
    }
    if (starts.size() > 1) run();
}

void require_queries(const In<float>& queries, const Stream& stream, const Out<float>& out) {
    require(queries.ndim() == 3 && extent(queries, 0) == stream.rows.rows &&
                extent(queries, 2) == stream.size,
            "queries must be [rows, heads, size]");
    require(out.ndim() == 3 && extent(out, 0) == extent(queries, 0) &&
                extent(out, 1) == extent(queries, 1) && extent(out, 2) <= stream.size,
            "out must be [rows, heads, value_size]");
}

// Those of a row of numbers that are at least 0; each must be below `end`.
void list_numbered(const Stream& stream, const In<int32_t>& numbers, int64_t row, int64_t sequence,
                   int64_t end, int64_t moved, std::vector<int64_t>& offsets) {
    const int64_t width = extent(numbers, 1);
    for (int64_t i = 0; i < width; ++i) {
        const int64_t number = numbers.data()[row * width + i];
        if (number < 0) continue;
        if (number >= end) throw nb::index_error("a chosen entry lies past those that are seen");
        offsets.push_back(moved + stream.offset(sequence, number));
    }
}

}  // namespace

void select_entries(const KernelTable& table, ThreadPool& pool, const In<float>& queries,
                    const In<float>& weights, const PagedStream& keys, int64_t stride,
                    int64_t top_k, const Out<int32_t>& out) {
    const Stream stream(keys, 1, stride);
    const PagedRowsView& rows = stream.rows;
    require(queries.ndim() == 3 && extent(queries, 0) == rows.rows &&
                extent(queries, 2) == stream.size,
            "queries must be [rows, heads, size]");
    require(weights.ndim() == 2 && extent(weights, 0) == rows.rows &&
                extent(weights, 1) == extent(queries, 1),
            "weights must be [rows, heads]");
    require(top_k >= 1 && out.ndim() == 2 && extent(out, 0) == rows.rows && extent(out, 1) == top_k,
            "out must be [rows, top_k]");
    std::vector<int64_t> counts;
    std::vector<const int32_t*> tables;
    for (int64_t s = 0; s < rows.sequences; ++s) {
        int64_t most = 0;
        for (int64_t row = rows.row_starts[s]; row < rows.row_starts[s + 1]; ++row) {
            counts.push_back((int64_t{rows.positions[row]} + 1) / stride);
            tables.push_back(rows.page_table + s * rows.table_width);
            if (counts.back() > top_k) most = std::max(most, counts.back());
        }
        for (int64_t entry = 0; entry < most; entry += stream.page_entries) stream.offset(s, entry);
    }
    const EntryChoiceCall call{stream.type,      queries.data(), weights.data(),
                               rows.rows,        extent(queries, 1), stream.size,
                               stream.base,      tables.data(), stream.page_entries,
                               counts.data(),    top_k,         out.data()};
    nb::gil_scoped_release release;
    table.choose_entries(pool, call);
}

void selected_attention(const KernelTable& table, ThreadPool& pool, const In<float>& queries,
                        const PagedStream& entries, const In<int32_t>& selected, float scale,
                        const Out<float>& out) {
    const Stream stream(entries, 1, 1);
    const PagedRowsView& rows = stream.rows;
    require_queries(queries, stream, out);
    require(selected.ndim() == 2 && extent(selected, 0) == rows.rows,
            "selected must be [rows, most]");
    const ListedAttentionCall call{
        stream.type, queries.data(), 0,       extent(queries, 1), stream.size, extent(out, 2),
        stream.base, nullptr,        nullptr, scale,              nullptr,     out.data()};
    attend_listed(table, pool, call, stream, stream.size,
                  [&](int64_t row, int64_t sequence, std::vector<int64_t>& offsets) {
                      const int64_t last = rows.positions[rows.row_starts[sequence + 1] - 1];
                      list_numbered(stream, selected, row, sequence, last + 1, 0, offsets);
                  });
}

void compressed_attention(const KernelTable& table, ThreadPool& pool, const In<float>& queries,
                          const PagedStream& keys, int64_t window, const PagedStream& entries,
                          int64_t stride, const std::optional<In<int32_t>>& chosen, float scale,
                          const In<float>& sinks, const Out<float>& out) {
    const Stream near(keys, 2, 1), far(entries, 1, stride);
    const PagedRowsView& rows = near.rows;
    near.require_same_rows(far);
    require(extent(keys.pages, 2) == 1 && near.size == far.size,
            "keys must be [pages, page_tokens, 1, size], of the size of entries");
    require_queries(queries, near, out);
    require(extent(out, 2) == near.size, "out must be [rows, heads, size]");
    require(window >= 1, "a window must hold at least one position");
    require(sinks.ndim() == 1 && extent(sinks, 0) == extent(queries, 1), "sinks must be [heads]");
    require(!chosen || (chosen->ndim() == 2 && extent(*chosen, 0) == rows.rows),
            "chosen must be [rows, most]");
    const ListedAttentionCall call{
        near.type, queries.data(), 0,       extent(queries, 1), near.size,    near.size,
        near.base, nullptr,        nullptr, scale,              sinks.data(), out.data()};
    const int64_t moved = far.behind(near);
    attend_listed(table, pool, call, near, near.size,
                  [&](int64_t row, int64_t sequence, std::vector<int64_t>& offsets) {
                      const int64_t position = rows.positions[row];
                      const int64_t runs = (position + 1) / stride;
                      near.list(sequence, std::max<int64_t>(0, position - window + 1), position + 1,
                                0, offsets);
                      if (chosen) {
                          list_numbered(far, *chosen, row, sequence, runs, moved, offsets);
                      } else {
                          far.list(sequence, 0, runs, moved, offsets);
                      }
                  });
}

void pool_runs(const KernelTable& table, ThreadPool& pool, const PagedStream& entries,
               int64_t stride, const std::optional<PagedStream>& before, const Out<float>& out) {
    const Stream own(entries, 2, 1);
    const std::optional<Stream> earlier = before ? std::optional<Stream>(std::in_place, *before, 2, 1)
                                                 : std::nullopt;
    require(stride >= 1, "a run must have at least one position");
    require(extent(entries.pages, 2) == 2, "pages must be [pages, page_tokens, 2, size]");
    if (earlier) {
        earlier->require_same_rows(own);
        require(extent(before->pages, 2) == 2 && earlier->size == own.size,
                "both streams must have entries of one shape");
    }
    const int64_t moved = earlier ? earlier->behind(own) : 0;
    std::vector<int64_t> offsets, starts{0};
    const PagedRowsView& rows = own.rows;
    for (int64_t s = 0; s < rows.sequences; ++s) {
        for (int64_t row = rows.row_starts[s]; row < rows.row_starts[s + 1]; ++row) {
            const int64_t end = int64_t{rows.positions[row]} + 1;
            if (end % stride) continue;
            if (earlier && end > stride) {
                earlier->list(s, end - 2 * stride, end - stride, moved, offsets);
            }
            own.list(s, end - stride, end, 0, offsets);
            starts.push_back(static_cast<int64_t>(offsets.size()));
        }
    }
    const auto runs = static_cast<int64_t>(starts.size()) - 1;
    require(out.ndim() == 2 && extent(out, 0) == runs && extent(out, 1) == own.size,
            "out must be [runs that rows complete, size]");
    const PoolRunsCall call{own.type,       runs,          own.size,  own.base,
                            offsets.data(), starts.data(), out.data()};
    nb::gil_scoped_release release;
    table.pool_runs(pool, call);
}

}  // namespace firstlight
