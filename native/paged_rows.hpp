// The rows of a step as Python hands them over: checked once, for all layers that use them.

#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <vector>

#include "arguments.hpp"
#include "kernel_table.hpp"

namespace firstlight {

// Queries of one attention tile: enough to share what is read of the state, few enough that
// their partial results stay in the first-level cache.
inline constexpr int64_t kTileQueries = 48;

// The same over bfloat16 state, where laying out a block's keys and values costs as much as multiplying
// them by eight queries: partial results in the second-level cache cost less, up to so many values. As
// long as each thread has so many tiles, so that threads end together.
inline constexpr int64_t kPairTileQueries = 256;
inline constexpr int64_t kPairTileValues = 1 << 14;
inline constexpr int64_t kTilesOfThread = 8;

// Rows of one group.
inline int64_t tile_rows(int64_t rows, const AttentionCall& call, int threads) {
    const int64_t queries = call.heads / call.key_value_heads;
    int64_t tile = call.tile_queries;
    if (tile == 0) {
        const bool pairs = call.round_to_bfloat16 && call.key_type == StreamType::bfloat16 &&
                           call.value_type == StreamType::bfloat16;
        const int64_t most = std::min(kPairTileQueries, kPairTileValues / call.value_size);
        const int64_t fair = std::min(rows * call.heads / (kTilesOfThread * threads), most);
        tile = pairs ? std::max(fair, kTileQueries) : kTileQueries;
    }
    return std::max<int64_t>(1, tile / queries);
}

inline void require_attention_tuning(int64_t tile_queries, int64_t head_parts) {
    require(tile_queries >= 0 && tile_queries <= 1 << 16 && head_parts >= 0,
            "tile_queries must be in [0, 65536] and head_parts at least 0");
}

// The rows in groups of one sequence each; every page that they will read is checked here.
inline std::vector<AttentionRows> attention_groups(const PagedRowsView& rows,
                                                   const AttentionCall& call, int64_t pages,
                                                   int threads) {
    const int64_t step = tile_rows(rows.rows, call, threads);
    std::vector<AttentionRows> groups;
    for (int64_t s = 0; s < rows.sequences; ++s) {
        const int64_t begin = rows.row_starts[s], end = rows.row_starts[s + 1];
        if (begin == end) continue;
        for (int64_t row = begin + 1; row < end; ++row) {
            require(rows.positions[row] == rows.positions[row - 1] + 1,
                    "positions of a sequence must rise by one");
        }
        const int64_t first = std::max<int64_t>(0, rows.positions[begin] - call.window + 1);
        const int64_t last = rows.positions[end - 1];
        for (int64_t k = first / rows.page_tokens; k <= last / rows.page_tokens; ++k) {
            rows.page(s, k * rows.page_tokens, pages);
        }
        for (int64_t row = begin; row < end; row += step) {
            groups.push_back({s, row, std::min(row + step, end)});
        }
    }
    return groups;
}

// Where each row's entry lies: page * page_tokens + place in the page; every page is checked.
inline std::vector<int64_t> entry_slots(const PagedRowsView& rows, int64_t pages) {
    std::vector<int64_t> slots(static_cast<size_t>(rows.rows));
    for (int64_t s = 0; s < rows.sequences; ++s) {
        for (int64_t row = rows.row_starts[s]; row < rows.row_starts[s + 1]; ++row) {
            const int64_t position = rows.positions[row];
            const int64_t page = rows.page(s, position, pages);
            slots[static_cast<size_t>(row)] =
                page * rows.page_tokens + position % rows.page_tokens;
        }
    }
    return slots;
}

// Holds copies, so that nothing which was checked can change. Used with the interpreter lock held;
// what it returns stays where it is.
class PagedRows {
public:
    PagedRows(In<int32_t> starts, In<int32_t> positions, In<int32_t> table, int64_t page_tokens)
        : view_(starts, positions, table, page_tokens),
          starts_(starts.data(), starts.data() + starts.size()),
          positions_(positions.data(), positions.data() + positions.size()),
          table_(table.data(), table.data() + table.size()) {
        view_.row_starts = starts_.data();
        view_.positions = positions_.data();
        view_.page_table = table_.data();
    }
    PagedRows(const PagedRows&) = delete;
    PagedRows& operator=(const PagedRows&) = delete;

    const PagedRowsView& view() const { return view_; }

    const int64_t* slots(int64_t pages) {
        for (const Slots& known : slots_) {
            if (known.pages == pages) return known.slots.data();
        }
        return slots_.emplace_back(pages, entry_slots(view_, pages)).slots.data();
    }

    const std::vector<AttentionRows>& groups(const AttentionCall& call, int64_t pages,
                                             int threads) {
        const int64_t step = tile_rows(view_.rows, call, threads);
        for (const Groups& known : groups_) {
            if (known.pages == pages && known.window == call.window && known.step == step) {
                return known.groups;
            }
        }
        auto groups = attention_groups(view_, call, pages, threads);
        return groups_.emplace_back(pages, call.window, step, std::move(groups)).groups;
    }

private:
    struct Slots {
        int64_t pages;
        std::vector<int64_t> slots;
        Slots(int64_t pages_, std::vector<int64_t> slots_)
            : pages(pages_), slots(std::move(slots_)) {}
    };
    struct Groups {
        int64_t pages, window, step;
        std::vector<AttentionRows> groups;
        Groups(int64_t pages_, int64_t window_, int64_t step_, std::vector<AttentionRows> groups_)
            : pages(pages_), window(window_), step(step_), groups(std::move(groups_)) {}
    };

    PagedRowsView view_;
    std::vector<int32_t> starts_, positions_, table_;
    std::deque<Slots> slots_;
    std::deque<Groups> groups_;
};

}  // namespace firstlight
