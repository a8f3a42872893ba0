// `linear` and `embed`: several products of the same x as tasks of one parallel_for, each product by
// the way its weight is laid out; and rows of an embedding table.

// Products of one parallel_for; a larger group takes several.
constexpr int kMostProducts = 16;

// Rows of x that are rounded before the first is used: rounding them all would take memory
// without end.
constexpr int64_t kRoundedRows = 1024;

// The tasks of one product, by the layout of its weight.
struct ProductTasks {
    int64_t tasks;
    bool packed;
    PackedTiles panels;
    LinearTiles rows;
};

// The tasks of several products, one product's after another's.
struct LinearGroup {
    ProductTasks products[kMostProducts];
};

inline void linear_task(void* context, int64_t index) {
    const ProductTasks* product = static_cast<const LinearGroup*>(context)->products;
    for (; index >= product->tasks; ++product) index -= product->tasks;
    if (product->packed) return packed_task(product->panels, index);
    product->rows.run(product->rows, index);
}

// At most kMostProducts, and as many rows of x as may be rounded at once. Each rounding is done
// once, for all products that want it.
void linear_part(ThreadPool& pool, const LinearCall* calls, int count) {
    LinearGroup group;
    FixedRows fixed{};
    const void* rounded = nullptr;
    const int threads = thread_count(pool);
    int64_t tasks = 0, work = 0;
    bool blocks = false, steps = false;
    for (int i = 0; i < count; ++i) {
        if (calls[i].weight.layout != Layout::panels) continue;
        (by_steps(calls[i].weight.format) ? steps : blocks) = true;
    }
    for (int i = 0; i < count; ++i) {
        const LinearCall& call = calls[i];
        const StoredMatrix& weight = call.weight;
        ProductTasks& product = group.products[i];
        product.packed = weight.layout == Layout::panels;
        if (product.packed) {
            if (!fixed.x) {
                fixed = fix_rows(pool, call.x, call.count, weight.columns, blocks, steps);
            }
            product.panels = packed_tiles(call, fixed, threads);
        } else if (kBfloat16Products && call.round_to_bfloat16 &&
                   weight.format == BlockFormat::bf16) {
            if (!rounded) rounded = bfloat16_inputs(pool, call);
            product.rows = bfloat16_tiles(call, rounded, threads);
        } else {
            product.rows = stored_tiles(call, threads);
        }
        product.tasks = product.packed ? product.panels.tasks : product.rows.tasks;
        tasks += product.tasks;
        work += weight.rows * weight.columns * call.count;
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
