// Checks of what Python passes in. A wrong argument raises; nothing is read out of bounds.

#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <string>

#include "formats.hpp"
#include "kernel_table.hpp"

namespace firstlight {

namespace nb = nanobind;

// Arrays on the host, C-contiguous, of exactly this dtype (no argument is converted).
template <class T>
using In = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
template <class T>
using Out = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
using AnyIn = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using AnyOut = nb::ndarray<nb::c_contig, nb::device::cpu>;

inline void require(bool condition, const char* message) {
    if (!condition) throw nb::value_error(message);
}

template <class Array>
inline int64_t extent(const Array& array, size_t axis) {
    return static_cast<int64_t>(array.shape(axis));
}

template <class A, class B>
inline void require_same_shape(const A& a, const B& b, const char* message) {
    bool same = a.ndim() == b.ndim();
    for (size_t i = 0; same && i < a.ndim(); ++i) same = a.shape(i) == b.shape(i);
    require(same, message);
}

inline void require_indices(const In<int32_t>& indices, int64_t end, const char* message) {
    for (size_t i = 0; i < indices.size(); ++i) {
        const int32_t index = indices.data()[i];
        if (index < 0 || index >= end) throw nb::index_error(message);
    }
}

inline const FormatInfo& format_info(const std::string& name) {
    for (const FormatInfo& info : kFormats) {
        if (name == info.name) return info;
    }
    throw nb::value_error("the kernels do not know this storage format");
}

// The rows of a step, checked against one another and against a number of pages.
struct PagedRowsView {
    const int32_t* row_starts;
    const int32_t* positions;
    const int32_t* page_table;
    int64_t sequences, rows, table_width, page_tokens;

    PagedRowsView(const In<int32_t>& starts, const In<int32_t>& positions_,
                  const In<int32_t>& table, int64_t tokens)
        : row_starts(starts.data()), positions(positions_.data()), page_table(table.data()),
          sequences(0), rows(0), table_width(0), page_tokens(tokens) {
        require(starts.ndim() == 1 && extent(starts, 0) >= 1, "row_starts must be [sequences + 1]");
        require(positions_.ndim() == 1, "positions must be [rows]");
        require(table.ndim() == 2, "page_table must be [sequences, pages]");
        require(tokens >= 1, "a page must hold at least one position");
        sequences = extent(starts, 0) - 1;
        rows = extent(positions_, 0);
        table_width = extent(table, 1);
        require(extent(table, 0) == sequences, "page_table must have a row for each sequence");
        require(row_starts[0] == 0 && row_starts[sequences] == rows,
                "row_starts must begin with 0 and end with the number of rows");
        for (int64_t s = 0; s < sequences; ++s) {
            require(row_starts[s] <= row_starts[s + 1], "row_starts must not fall");
        }
        for (int64_t i = 0; i < rows; ++i) require(positions[i] >= 0, "a position is negative");
    }

    // The page that holds `position` of a sequence, or an error if there is none.
    int64_t page(int64_t sequence, int64_t position, int64_t pages) const {
        const int64_t index = position / page_tokens;
        if (index >= table_width) {
            throw nb::index_error("a position lies past the end of the page table");
        }
        const int64_t page = page_table[sequence * table_width + index];
        if (page < 0) throw nb::index_error("a position lies in a page that the sequence lacks");
        if (page >= pages) throw nb::index_error("the page table names a page that is not there");
        return page;
    }
};

}  // namespace firstlight
