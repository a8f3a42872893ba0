// A gated feed-forward network: down^T of activation(gate) * up.
//
// With bfloat16 products and many rows of x, what `gate` and `up` give for a few rows of both is taken
// together and rounded while it lies in the cache: as float32 it would go to memory and back
// twice. Every value is computed as the single ops do it, so its bits are the same.

#if defined(__AVX512BF16__) && !defined(FIRSTLIGHT_TILES)

// Rows of x for which both products are computed before they meet. They and the results stay in the
// second-level cache beside so many bytes of weights.
constexpr int64_t kGatedInputs = 16 * kBfloat16Inputs;
constexpr int64_t kGatedWeightBytes = 3 << 17;

struct GatedTiles {
    const GatedCall* call;
    const uint16_t* x;     // rounded
    uint16_t* hidden;      // [count, stride]
    int64_t stride, tile_rows, row_tiles, block_inputs;
};

// The rows [first, end) of a product with the rows [input, input_end) of x, side by side.
inline void gated_part(const LinearCall& call, const uint16_t* x, int64_t first, int64_t end,
                       int64_t input, int64_t input_end, float* out) {
    LinearCall part = call;
    part.weight.data += first * call.weight.row_bytes;
    part.weight.rows = end - first;
    part.count = input_end - input;
    part.bias = call.bias ? call.bias + first : nullptr;
    part.out = out;
    const uint16_t* from = x + input * rounded_stride(call.weight.columns);
    const LinearTiles tiles{nullptr, &part, from, end - first, 1, part.count, 1, end - first};
    bfloat16_block(tiles, 0, end - first, 0, part.count);
}

void gated_task(void* context, int64_t index) {
    const GatedTiles& tiles = *static_cast<const GatedTiles*>(context);
    const GatedCall& call = *tiles.call;
    const int64_t first = index % tiles.row_tiles * tiles.tile_rows;
    const int64_t end = least(first + tiles.tile_rows, call.gate.weight.rows);
    const int64_t rows = end - first;
    auto* gate = static_cast<float*>(
        thread_scratch(static_cast<size_t>(2 * kGatedInputs * rows) * sizeof(float)));
    float* up = gate + kGatedInputs * rows;
    const bool last = end == call.gate.weight.rows;
    const int64_t block = index / tiles.row_tiles * tiles.block_inputs;
    const int64_t block_end = least(block + tiles.block_inputs, call.gate.count);
    for (int64_t input = block; input < block_end; input += kGatedInputs) {
        const int64_t input_end = least(input + kGatedInputs, block_end);
        for (int64_t x = input; x < input_end; ++x) {
            fetch_results(tiles.hidden + x * tiles.stride + first, rows);
        }
        gated_part(call.gate, tiles.x, first, end, input, input_end, gate);
        gated_part(call.up, tiles.x, first, end, input, input_end, up);
        gate_values(call.activation, gate, up, (input_end - input) * rows, gate);
        for (int64_t x = input; x < input_end; ++x) {
            uint16_t* to = tiles.hidden + x * tiles.stride;
            round_to_bfloat16(gate + (x - input) * rows, rows, to + first);
            if (last) memset(to + end, 0, static_cast<size_t>(tiles.stride - end) * 2);
        }
    }
}

inline void linear_tiles_task(void* context, int64_t index) {
    const LinearTiles& tiles = *static_cast<const LinearTiles*>(context);
    tiles.run(tiles, index);
}

// At most kRoundedRows rows of x.
void gated_linear_part(ThreadPool& pool, const GatedCall& call) {
    const StoredMatrix& weight = call.gate.weight;
    const auto* x = static_cast<const uint16_t*>(bfloat16_inputs(pool, call.gate));
    // Whole groups of rows, and enough tasks for an even share.
    const int threads = thread_count(pool);
    const int64_t wanted = kTasksOfThread * threads;
    const int64_t blocks = bfloat16_blocks(call.gate.count, threads);
    const int64_t fitting = kGatedWeightBytes / (2 * weight.row_bytes + 1);
    const int64_t fair = divide_up(weight.rows * blocks, wanted);
    const int64_t some = divide_up(least(least(fitting, 64), fair), 16) * 16;
    const int64_t tile_rows = some ? some : 16;
    GatedTiles tiles{&call,
                     x,
                     reinterpret_cast<uint16_t*>(call.gate.out),
                     rounded_stride(weight.rows),
                     tile_rows,
                     divide_up(weight.rows, tile_rows),
                     divide_up(call.gate.count, blocks)};
    parallel_ranges(pool, tiles.row_tiles * blocks, gated_task, &tiles);
    LinearTiles down = bfloat16_tiles(call.down, tiles.hidden, threads, wanted);
    parallel_ranges(pool, down.tasks, linear_tiles_task, &down);
}

inline bool gates_together(const GatedCall& call) {
    const LinearCall& gate = call.gate;
    return rounds_to_bfloat16(gate) && rounds_to_bfloat16(call.up) &&
           rounds_to_bfloat16(call.down) && gate.count > kFewBfloat16Inputs &&
           rounded_stride(gate.weight.rows) <= 2 * gate.weight.rows &&
           reinterpret_cast<uintptr_t>(gate.out) % 64 == 0;
}

#else

inline bool gates_together(const GatedCall&) { return false; }
inline void gated_linear_part(ThreadPool&, const GatedCall&) {}

#endif

void gated_linear(ThreadPool& pool, const GatedCall& call) {
    if (!gates_together(call)) {
        const LinearCall products[] = {call.gate, call.up};
        linear(pool, products, 2);
        const int64_t values = call.gate.count * call.gate.weight.rows;
        elementwise(pool, {Elementwise::gate, call.activation, call.gate.out, call.up.out, 0.0f,
                           values, call.gate.out});
        return linear(pool, &call.down, 1);
    }
    for (int64_t row = 0; row < call.gate.count; row += kRoundedRows) {
        GatedCall part = call;
        const int64_t count = least(kRoundedRows, call.gate.count - row);
        part.gate.count = part.up.count = part.down.count = count;
        part.gate.x = part.up.x = call.gate.x + row * call.gate.weight.columns;
        part.down.out += row * call.down.weight.rows;
        gated_linear_part(pool, part);
    }
}
