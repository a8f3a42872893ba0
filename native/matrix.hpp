// A weight as Python hands it over: checked once, and kept alive as long as it is in use.

#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "kernel_table.hpp"

namespace firstlight {

namespace {
#include "packed_layout.inl"
}  // namespace

// Bytes of a matrix in panels, or -1 where its format is used in place. The sizes are those of a
// matrix that exists.
inline int64_t packed_bytes(BlockFormat format, int64_t rows, int64_t columns) {
    const PanelShape shape = panel_shape(format);
    return shape.bits ? panels_of(rows) * shape.panel_bytes(columns) : -1;
}

// Whether `bytes` are `rows` rows of `row_units` units. Compared by division: a product could
// overflow.
inline bool holds(int64_t bytes, int64_t unit_bytes, int64_t rows, int64_t row_units) {
    if (rows == 0 || row_units == 0) return bytes == 0;
    const int64_t units = bytes / unit_bytes;
    return bytes % unit_bytes == 0 && units % rows == 0 && units / rows == row_units;
}

// `bytes` at `data` as a matrix, or an error if they cannot be one.
inline StoredMatrix checked_matrix(const std::string& format, const uint8_t* data, size_t size,
                                   int64_t rows, int64_t columns, bool packed) {
    const FormatInfo& info = format_info(format);
    require(rows >= 0 && columns >= 0 && columns % info.block_values == 0,
            "columns must fill whole blocks of the format");
    const auto bytes = static_cast<int64_t>(size);
    if (packed) {
        const PanelShape shape = panel_shape(info.code);
        require(shape.bits, "the kernels do not pack this storage format");
        const int64_t units = columns / (kGroupColumns * shape.groups);
        require(holds(bytes, shape.unit_bytes(), panels_of(rows), units),
                "packed data does not hold `rows` rows of `columns` values of the format");
        require(reinterpret_cast<uintptr_t>(data) % 64 == 0 || bytes == 0,
                "packed data must be aligned to 64 bytes");
        return {info.code, Layout::panels, data, rows, columns, 0};
    }
    const int64_t blocks = columns / info.block_values;
    require(holds(bytes, info.block_bytes, rows, blocks),
            "weight data does not hold `rows` rows of `columns` values of the format");
    return {info.code, Layout::rows, data, rows, columns, bytes ? blocks * info.block_bytes : 0};
}

// Scales for blocks of so many rows and columns, as those of a matrix whose first row is `first_row`
// of theirs, or an error if they cannot be.
inline BlockScales checked_scales(const StoredMatrix& matrix, const In<float>& scales, int64_t rows,
                                  int64_t columns, int64_t first_row) {
    require(matrix.format == BlockFormat::f8_e4m3 && matrix.layout == Layout::rows,
            "only fp8 has scales of blocks");
    require(scales.ndim() == 2 && rows >= 1 && columns >= 1 && first_row >= 0,
            "scales must be [row blocks, column blocks] of blocks that hold something");
    require(columns % 32 == 0 || columns >= matrix.columns,
            "a block must have a multiple of 32 columns, or all");
    const int64_t across = matrix.columns / columns + (matrix.columns % columns != 0);
    const int64_t last = matrix.rows ? (first_row + matrix.rows - 1) / rows : 0;
    require(first_row < int64_t{1} << 60 && extent(scales, 1) == across &&
                (matrix.rows == 0 || last < extent(scales, 0)),
            "there must be a scale for each block");
    return {scales.data(), across, rows, columns, first_row};
}

// The same of groups of 16 columns.
inline GroupScales checked_groups(const StoredMatrix& matrix, const In<uint8_t>& scales,
                                  float factor, bool divides) {
    require(matrix.format == BlockFormat::e2m1 && matrix.layout == Layout::rows,
            "only e2m1 has scales of groups");
    require(scales.ndim() == 2 && extent(scales, 0) == matrix.rows &&
                extent(scales, 1) == matrix.columns / 16,
            "there must be a scale for each 16 columns");
    return {scales.data(), extent(scales, 1), factor, divides};
}

class Matrix {
public:
    Matrix(const std::string& format, In<uint8_t> data, int64_t rows, int64_t columns, bool packed,
           std::optional<In<float>> scales, int64_t scale_rows, int64_t scale_columns,
           int64_t scale_first_row)
        : data_(std::move(data)), scales_(std::move(scales)), name_(format),
          stored_(checked_matrix(format, data_.data(), data_.size(), rows, columns, packed)) {
        if (scales_) {
            stored_.scales =
                checked_scales(stored_, *scales_, scale_rows, scale_columns, scale_first_row);
        }
    }

    // From now on the scales of groups of columns.
    void scale_groups(In<uint8_t> scales, float factor, bool divides) {
        stored_.groups = checked_groups(stored_, scales, factor, divides);
        groups_ = std::move(scales);
    }

    const StoredMatrix& stored() const { return stored_; }
    const std::string& format() const { return name_; }
    int64_t rows() const { return stored_.rows; }
    int64_t columns() const { return stored_.columns; }
    bool packed() const { return stored_.layout == Layout::panels; }

    // From now on products with `least` to `most` rows of x are done so.
    void tune(int64_t least, int64_t most, int32_t block_rows, int32_t panels,
              int32_t fetch_ahead) {
        require(1 <= least && least <= most, "the range of rows must be rising and positive");
        require(block_rows >= 0 && panels >= 0 && fetch_ahead >= 0,
                "a tuning must not be negative");
        const auto same = [&](const Range& range) {
            return range.least == least && range.most == most;
        };
        ranges_.erase(std::remove_if(ranges_.begin(), ranges_.end(), same), ranges_.end());
        ranges_.push_back({least, most, {block_rows, panels, fetch_ahead}});
    }

    // The latest that was set for this many rows, or none.
    LinearTuning tuning(int64_t count) const {
        for (auto range = ranges_.rbegin(); range != ranges_.rend(); ++range) {
            if (range->least <= count && count <= range->most) return range->tuning;
        }
        return {};
    }

private:
    struct Range {
        int64_t least, most;
        LinearTuning tuning;
    };

    In<uint8_t> data_;
    std::optional<In<float>> scales_;
    std::optional<In<uint8_t>> groups_;
    std::string name_;
    StoredMatrix stored_;
    std::vector<Range> ranges_;
};

}  // namespace firstlight
