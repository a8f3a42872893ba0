// `linear` and `embed`: several products as tasks of one parallel_for, each product by the way its
// weight is laid out; and rows of an embedding table.

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

// The tasks of several products, one product's after another's; where all of them cut x into the same
// blocks, those of the first block first.
struct LinearGroup {
    ProductTasks products[kMostProducts];
    int64_t blocks = 1, block_tasks = 0;

    void set_blocks(int count, int64_t tasks) {
        blocks = products[0].packed ? 1 : products[0].rows.blocks;
        for (int i = 0; i < count; ++i) {
            if (products[i].packed || products[i].rows.blocks != blocks) blocks = 1;
        }
        block_tasks = tasks / blocks;
    }
};

// What is made of the x of products with panels: once for those that follow one another with the
// same x.
struct FixedInputs {
    FixedRows fixed[kMostProducts];
    int used[kMostProducts];  // by each product

    void fix(ThreadPool& pool, const LinearCall* calls, int count) {
        int distinct = 0;
        bool blocks[kMostProducts], steps[kMostProducts];
        for (int i = 0; i < count; ++i) {
            const LinearCall& call = calls[i];
            if (call.weight.layout != Layout::panels) continue;
            const int last = distinct - 1;
            if (!distinct || fixed[last].x != call.x || fixed[last].count != call.count ||
                fixed[last].columns != call.weight.columns) {
                fixed[distinct] = {call.x, call.count, call.weight.columns, nullptr, nullptr,
                                   nullptr};
                blocks[distinct] = steps[distinct] = false;
                ++distinct;
            }
            used[i] = distinct - 1;
            (by_steps(call.weight.format) ? steps : blocks)[distinct - 1] = true;
        }
        if (!distinct) return;
        int64_t bytes = 0;
        for (int i = 0; i < distinct; ++i) bytes += fixed_bytes(fixed[i], blocks[i], steps[i]);
        auto* memory = static_cast<uint8_t*>(
            thread_scratch(static_cast<size_t>(bytes), Scratch::fixed16_rows));
        for (int i = 0; i < distinct; ++i) {
            place_fixed(fixed[i], blocks[i], steps[i], memory);
            memory += fixed_bytes(fixed[i], blocks[i], steps[i]);
        }
        fix_rows(pool, fixed, distinct);
    }
};

inline bool rounds_to_bfloat16(const LinearCall& call) {
    return kBfloat16Products && call.round_to_bfloat16 &&
           call.weight.layout != Layout::panels && call.weight.format == BlockFormat::bf16;
}

inline void linear_task(void* context, int64_t index) {
    const LinearGroup& group = *static_cast<const LinearGroup*>(context);
    const int64_t block = index / group.block_tasks;
    index %= group.block_tasks;
    const ProductTasks* product = group.products;
    for (; index >= product->tasks / group.blocks; ++product) {
        index -= product->tasks / group.blocks;
    }
    index += block * (product->tasks / group.blocks);
    if (product->packed) return packed_task(product->panels, index);
    product->rows.run(product->rows, index);
}

// At most kMostProducts, as many rows of each x as may be rounded at once, and one x alone that is
// rounded to bfloat16.
void linear_part(ThreadPool& pool, const LinearCall* calls, int count) {
    LinearGroup group;
    FixedInputs inputs;
    inputs.fix(pool, calls, count);
    Float8Inputs float8;
    float8.round(pool, calls, count);
    const void* rounded = nullptr;
    const int threads = thread_count(pool);
    // A product of a tenth of the rows is a tenth of the tasks.
    int64_t rows = 0;
    for (int i = 0; i < count; ++i) rows += calls[i].weight.rows;
    int64_t tasks = 0, work = 0;
    for (int i = 0; i < count; ++i) {
        const LinearCall& call = calls[i];
        const StoredMatrix& weight = call.weight;
        ProductTasks& product = group.products[i];
        product.packed = weight.layout == Layout::panels;
        if (product.packed) {
            product.panels = packed_tiles(call, inputs.fixed[inputs.used[i]], threads);
        } else if (rounds_to_bfloat16(call)) {
            if (!rounded) rounded = bfloat16_inputs(pool, call);
            const int64_t wanted = divide_up(kTasksOfThread * threads * weight.rows, rows + 1);
            product.rows = bfloat16_tiles(call, rounded, threads, wanted);
        } else if (rounds_for_float8(call)) {
            product.rows = float8_tiles(call, float8.of(i), threads);
        } else {
            product.rows = stored_tiles(call, threads);
        }
        product.tasks = product.packed ? product.panels.tasks : product.rows.tasks;
        tasks += product.tasks;
        work += weight.rows * weight.columns * call.count;
    }
    group.set_blocks(count, tasks);
    share_ranges(pool, work, tasks, linear_task, &group);
}

// One product of more rows than are rounded at once.
void linear_of_many_rows(ThreadPool& pool, const LinearCall& call) {
    for (int64_t row = 0; row < call.count; row += kRoundedRows) {
        LinearCall part = call;
        part.x += row * call.weight.columns;
        part.out += row * call.weight.rows;
        part.count = least(kRoundedRows, call.count - row);
        linear_part(pool, &part, 1);
    }
}

void linear(ThreadPool& pool, const LinearCall* calls, int count) {
    while (count > 0) {
        if (calls->count > kRoundedRows) {
            linear_of_many_rows(pool, *calls++);
            --count;
            continue;
        }
        int some = 0;
        const float* rounded = nullptr;
        int64_t rows = 0;
        for (; some < count && some < kMostProducts; ++some) {
            const LinearCall& call = calls[some];
            rows += some && call.x == calls[some - 1].x ? 0 : call.count;
            if (rows > kRoundedRows) break;
            if (!rounds_to_bfloat16(call)) continue;
            if (rounded && rounded != call.x) break;
            rounded = call.x;
        }
        linear_part(pool, calls, some);
        calls += some;
        count -= some;
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
        using Format = typename decltype(format)::type;
        if constexpr (kHasScales<Format>) {
            decode_scaled(table, token, 0, table.columns, out, Type<Format>{});
        } else {
            decode_to<Format>(row, table.columns, out);
        }
    });
}

void embed(ThreadPool& pool, const EmbedCall& call) {
    EmbedCall copy = call;
    share(pool, call.count * call.table.columns, call.count, embed_task, &copy);
}
