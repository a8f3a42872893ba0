// `linear` and `embed`: several products of the same x as tasks of one parallel_for, each product by
// the way its weight is laid out; and rows of an embedding table.

// Rows of x that are rounded before the first is used: rounding them all would take memory
// without end.
constexpr int64_t kRoundedRows = 1024;

// The tasks of several products, one product's after another's.
struct LinearGroup {
    LinearTiles stored[kMostProducts];
    PackedTiles packed[kMostProducts];
    int stored_count, packed_count;
};

inline void linear_task(void* context, int64_t index) {
    const LinearGroup& group = *static_cast<const LinearGroup*>(context);
    for (int i = 0; i < group.packed_count; ++i) {
        const PackedTiles& tiles = group.packed[i];
        if (index < tiles.tasks) return packed_task(tiles, index);
        index -= tiles.tasks;
    }
    const LinearTiles* tiles = group.stored;
    for (; index >= tiles->tasks; ++tiles) index -= tiles->tasks;
    tiles->run(*tiles, index);
}

// At most kMostProducts, and as many rows of x as may be rounded at once.
void linear_part(ThreadPool& pool, const LinearCall* calls, int count) {
    LinearGroup group;
    group.stored_count = group.packed_count = 0;
    FixedRows fixed{};
    const void* rounded = nullptr;
    const int threads = thread_count(pool);
    int64_t tasks = 0, work = 0;
    for (int i = 0; i < count; ++i) {
        const LinearCall& call = calls[i];
        work += call.weight.rows * call.weight.columns * call.count;
        if (call.weight.layout == Layout::rows) {
            LinearTiles& tiles = group.stored[group.stored_count++];
            if (kBfloat16Products && call.round_to_bfloat16 &&
                call.weight.format == BlockFormat::bf16) {
                if (!rounded) rounded = bfloat16_inputs(pool, call);
                tiles = bfloat16_tiles(call, rounded, threads);
            } else {
                tiles = stored_tiles(call, threads);
            }
            tasks += tiles.tasks;
        } else {
            if (!fixed.x) fixed = fix_rows(pool, call.x, call.count, call.weight.columns);
            PackedTiles& tiles = group.packed[group.packed_count++];
            tiles = packed_tiles(call, fixed, threads);
            tasks += tiles.tasks;
        }
    }
    share_ranges(pool, work, tasks, linear_task, &group);
}

void linear(ThreadPool& pool, const LinearCall* calls, int count) {
    for (; count > 0; calls += kMostProducts, count -= kMostProducts) {
        const int some = count < kMostProducts ? count : kMostProducts;
        if (calls->count <= kRoundedRows) {
            linear_part(pool, calls, some);
            continue;
        }
        for (int64_t row = 0; row < calls->count; row += kRoundedRows) {
            LinearCall parts[kMostProducts];
            for (int i = 0; i < some; ++i) {
                parts[i] = calls[i];
                parts[i].x += row * calls[i].weight.columns;
                parts[i].out += row * calls[i].weight.rows;
                parts[i].count = least(kRoundedRows, calls[i].count - row);
            }
            linear_part(pool, parts, some);
        }
    }
}

void embed_task(void* context, int64_t index) {
    const EmbedCall& call = *static_cast<const EmbedCall*>(context);
    const StoredMatrix& table = call.table;
    const int64_t token = call.token_ids[index];
    float* out = call.out + index * table.columns;
    if (table.layout == Layout::panels) {
        return with_packed_format(table.format, [&](auto format) {
            unpack_row<typename decltype(format)::type>(table, token, out);
        });
    }
    const uint8_t* row = table.data + token * table.row_bytes;
    with_format(table.format, [&](auto format) {
        decode_to<typename decltype(format)::type>(row, table.columns, out);
    });
}

void embed(ThreadPool& pool, const EmbedCall& call) {
    EmbedCall copy = call;
    share(pool, call.count * call.table.columns, call.count, embed_task, &copy);
}
