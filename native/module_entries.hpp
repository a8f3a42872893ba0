// Ops on chosen entries of streams, as Python calls them.

#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <cstdint>
#include <optional>

#include "arguments.hpp"
#include "kernel_table.hpp"
#include "thread_pool.hpp"

namespace firstlight {

// A stream's pages [pages, page_tokens / stride, ...], and the rows of a step in it.
struct PagedStream {
    AnyIn pages;
    In<int32_t> row_starts, positions, page_table;
    int64_t page_tokens;
};

void select_entries(const KernelTable& table, ThreadPool& pool, const In<float>& queries,
                    const In<float>& weights, const PagedStream& keys, int64_t stride,
                    int64_t top_k, const Out<int32_t>& out);

void selected_attention(const KernelTable& table, ThreadPool& pool, const In<float>& queries,
                        const PagedStream& entries, const In<int32_t>& selected, float scale,
                        const Out<float>& out);

void compressed_attention(const KernelTable& table, ThreadPool& pool, const In<float>& queries,
                          const PagedStream& keys, int64_t window, const PagedStream& entries,
                          int64_t stride, const std::optional<In<int32_t>>& chosen, float scale,
                          const In<float>& sinks, const Out<float>& out);

void pool_runs(const KernelTable& table, ThreadPool& pool, const PagedStream& entries,
               int64_t stride, const std::optional<PagedStream>& before, const Out<float>& out);

StreamType stream_type(const nb::dlpack::dtype& dtype);

// The functions above as methods of a class with `table()` and `pool()`.
template <class Kernels>
void bind_entries(nb::module_& module, nb::class_<Kernels>& kernels) {
    using namespace nb::literals;
    nb::class_<PagedStream>(module, "PagedStream", "A stream's pages, and a step's rows in it.")
        .def(nb::new_([](AnyIn pages, In<int32_t> row_starts, In<int32_t> positions,
                         In<int32_t> page_table, int64_t page_tokens) {
                 return PagedStream{pages, row_starts, positions, page_table, page_tokens};
             }),
             "pages"_a.noconvert(), "row_starts"_a.noconvert(), "positions"_a.noconvert(),
             "page_table"_a.noconvert(), "page_tokens"_a);
    kernels
        .def("select_entries",
             [](const Kernels& self, In<float> queries, In<float> weights, const PagedStream& keys,
                int64_t stride, int64_t top_k, Out<int32_t> out) {
                 select_entries(self.table(), self.pool(), queries, weights, keys, stride, top_k,
                                out);
             },
             "queries"_a.noconvert(), "weights"_a.noconvert(), "keys"_a, "stride"_a, "top_k"_a,
             "out"_a.noconvert())
        .def("selected_attention",
             [](const Kernels& self, In<float> queries, const PagedStream& entries,
                In<int32_t> selected, float scale, Out<float> out) {
                 selected_attention(self.table(), self.pool(), queries, entries, selected, scale,
                                    out);
             },
             "queries"_a.noconvert(), "entries"_a, "selected"_a.noconvert(), "scale"_a,
             "out"_a.noconvert())
        .def("compressed_attention",
             [](const Kernels& self, In<float> queries, const PagedStream& keys, int64_t window,
                const PagedStream& entries, int64_t stride, std::optional<In<int32_t>> chosen,
                float scale, In<float> sinks, Out<float> out) {
                 compressed_attention(self.table(), self.pool(), queries, keys, window, entries,
                                      stride, chosen, scale, sinks, out);
             },
             "queries"_a.noconvert(), "keys"_a, "window"_a, "entries"_a, "stride"_a,
             "chosen"_a.noconvert().none(), "scale"_a, "sinks"_a.noconvert(), "out"_a.noconvert())
        .def("pool_runs",
             [](const Kernels& self, const PagedStream& entries, int64_t stride,
                const PagedStream* before, Out<float> out) {
                 pool_runs(self.table(), self.pool(), entries, stride,
                           before ? std::optional(*before) : std::nullopt, out);
             },
             "entries"_a, "stride"_a, "before"_a.none(), "out"_a.noconvert());
}

}  // namespace firstlight
