// A weight as Python hands it over: checked once, and kept alive as long as it is in use.

#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "kernel_table.hpp"

namespace firstlight {

class Matrix {
public:
    Matrix(const std::string& format, In<uint8_t> data, int64_t rows, int64_t columns, bool packed)
        : data_(std::move(data)), name_(format), stored_{} {
        const FormatInfo& info = format_info(format);
        require(rows >= 0 && columns >= 0 && columns % info.block_values == 0,
                "columns must fill whole blocks of the format");
        require(!packed, "the kernels do not pack this storage format");
        const auto bytes = static_cast<int64_t>(data_.size());
        const int64_t row_blocks = columns / info.block_values;
        // Compared by division: a product could overflow.
        const int64_t blocks = bytes / info.block_bytes;
        const bool empty = rows == 0 || row_blocks == 0;
        require(bytes % info.block_bytes == 0 &&
                    (empty ? bytes == 0 : blocks % rows == 0 && blocks / rows == row_blocks),
                "weight data does not hold `rows` rows of `columns` values of the format");
        const int64_t row_bytes = empty ? 0 : row_blocks * info.block_bytes;
        stored_ = {info.code, Layout::rows, data_.data(), rows, columns, row_bytes};
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
    std::string name_;
    StoredMatrix stored_;
    std::vector<Range> ranges_;
};

}  // namespace firstlight
