// Ops on single values and on rows: norm, gate, sums, caps, rotary embedding, stream writes.

// Values in one task of an op on single values.
constexpr int64_t kSlice = 1 << 14;

// Calls out[i] = function(x[i], y[i]) vector by vector; y may be x.
template <class Function>
inline void map_values(const float* x, const float* y, int64_t size, float* out,
                       Function function) {
    int64_t i = 0;
    for (; i + kWidth <= size; i += kWidth) store(out + i, function(load(x + i), load(y + i)));
    if (i < size) {
        const Vector last = function(load_first(x + i, size - i), load_first(y + i, size - i));
        store_first(out + i, last, size - i);
    }
}

// x + scale * y. A scale of one is left out, so that the sum alone is rounded.
inline void add_values(const float* x, const float* y, float scale, int64_t size, float* out) {
    if (scale == 1.0f) {
        map_values(x, y, size, out, [](Vector a, Vector b) { return a + b; });
    } else {
        map_values(x, y, size, out, [=](Vector a, Vector b) { return a + b * scale; });
    }
}

// out = activation(gate) * up.
inline void gate_values(Activation activation, const float* gate, const float* up, int64_t size,
                        float* out) {
    const auto map = [&](auto function) { map_values(gate, up, size, out, function); };
    switch (activation) {
        case Activation::silu: return map([](Vector a, Vector b) { return silu(a) * b; });
        case Activation::gelu: return map([](Vector a, Vector b) { return gelu(a) * b; });
        case Activation::gelu_tanh: return map([](Vector a, Vector b) { return gelu_tanh(a) * b; });
        case Activation::relu: return map([](Vector a, Vector b) { return relu(a) * b; });
    }
}

void elementwise_task(void* context, int64_t index) {
    const ElementwiseCall& call = *static_cast<const ElementwiseCall*>(context);
    const int64_t begin = index * kSlice, size = least(kSlice, call.size - begin);
    const float* x = call.x + begin;
    const float* y = call.y ? call.y + begin : x;
    float* out = call.out + begin;
    const float parameter = call.parameter;
    const auto map = [&](auto function) { map_values(x, y, size, out, function); };
    switch (call.function) {
        case Elementwise::add: return add_values(x, y, parameter, size, out);
        case Elementwise::scale: return map([=](Vector a, Vector) { return a * parameter; });
        case Elementwise::soft_cap:
            return map([=](Vector a, Vector) {
                return hyperbolic_tangent(a / broadcast(parameter)) * parameter;
            });
        case Elementwise::clamped_gate: {
            const float slope = -call.slope, offset = call.offset;
            return map([=](Vector a, Vector b) {
                const Vector gate = at_most(a, broadcast(parameter));
                const Vector up =
                    at_least(at_most(b, broadcast(parameter)), broadcast(-parameter));
                return gate / (exponential(gate * slope) + 1.0f) * (up + offset);
            });
        }
        case Elementwise::gate: return gate_values(call.activation, x, y, size, out);
    }
}

void elementwise(ThreadPool& pool, const ElementwiseCall& call) {
    ElementwiseCall copy = call;
    share_ranges(pool, 8 * call.size, divide_up(call.size, kSlice), elementwise_task, &copy);
}

// Has the place of a row of results in the first-level cache by the time that they are there: they
// would otherwise wait for it one after another, half of the time of what follows.
template <class T>
inline void fetch_results(const T* out, int64_t size) {
    constexpr int64_t kLine = 64 / sizeof(T), kMost = 4096;
    for (int64_t i = 0; i < least(size, kMost); i += kLine) FIRSTLIGHT_FETCH_OUT(out + i);
}

// The mean is taken in float64, so that no square overflows.
inline void norm_row(const float* x, const float* weight, int64_t columns, double epsilon,
                     float* out) {
    fetch_results(out, columns);
    constexpr int kSums = 16;
    double sums[kSums] = {};
    int64_t i = 0;
    for (; i + kSums <= columns; i += kSums) {
        for (int j = 0; j < kSums; ++j) {
            const double value = x[i + j];
            sums[j] += value * value;
        }
    }
    for (; i < columns; ++i) sums[0] += static_cast<double>(x[i]) * x[i];
    double total = 0;
    for (double one : sums) total += one;
    const double mean = total / static_cast<double>(columns);
    const double factor = 1.0 / ::sqrt(mean + epsilon);
    if (weight) {
        for (i = 0; i < columns; ++i) out[i] = static_cast<float>(x[i] * factor) * weight[i];
    } else {
        for (i = 0; i < columns; ++i) out[i] = static_cast<float>(x[i] * factor);
    }
}

void norm_task(void* context, int64_t index) {
    const NormCall& call = *static_cast<const NormCall*>(context);
    norm_row(call.x + index * call.columns, call.weight, call.columns, call.epsilon,
             call.out + index * call.columns);
}

void rms_norm(ThreadPool& pool, const NormCall& call) {
    NormCall copy = call;
    share_ranges(pool, 4 * call.rows * call.columns, call.rows, norm_task, &copy);
}

// Turns the heads of one row; `out` may be x.
inline void rotate_row(const float* x, const float* cosine_sine, int64_t heads, int64_t size,
                       int64_t angles, bool interleaved, float* out) {
    const float* cosine = cosine_sine;
    const float* sine = cosine_sine + angles;
    for (int64_t head = 0; head < heads; ++head, x += size, out += size) {
        int64_t i = 0;
        if (interleaved) {
            for (; i < angles; ++i) {
                const float first = x[2 * i], second = x[2 * i + 1];
                out[2 * i] = first * cosine[i] - second * sine[i];
                out[2 * i + 1] = second * cosine[i] + first * sine[i];
            }
        } else {
            for (; i + kWidth <= angles; i += kWidth) {
                const Vector first = load(x + i), second = load(x + i + angles);
                const Vector c = load(cosine + i), s = load(sine + i);
                store(out + i, first * c - second * s);
                store(out + i + angles, second * c + first * s);
            }
            for (; i < angles; ++i) {
                const float first = x[i], second = x[i + angles];
                out[i] = first * cosine[i] - second * sine[i];
                out[i + angles] = second * cosine[i] + first * sine[i];
            }
        }
        if (x == out) continue;
        for (i = 2 * angles; i < size; ++i) out[i] = x[i];
    }
}

void rotary_task(void* context, int64_t index) {
    const RotaryCall& call = *static_cast<const RotaryCall*>(context);
    const int64_t offset = index * call.heads * call.size;
    rotate_row(call.x + offset, call.cosine_sine + index * 2 * call.angles, call.heads, call.size,
               call.angles, call.interleaved, call.out + offset);
}

void rotary(ThreadPool& pool, const RotaryCall& call) {
    RotaryCall copy = call;
    share_ranges(pool, 2 * call.rows * call.heads * call.size, call.rows, rotary_task, &copy);
}

inline void write_entry(StreamType type, void* pages, int64_t slot, int64_t size,
                        const float* values) {
    if (type == StreamType::float32) {
        memcpy(static_cast<float*>(pages) + slot * size, values, size_t(size) * sizeof(float));
        return;
    }
    round_to_bfloat16(values, size, static_cast<uint16_t*>(pages) + slot * size);
}

void stream_write_task(void* context, int64_t index) {
    const StreamWriteCall& call = *static_cast<const StreamWriteCall*>(context);
    write_entry(call.type, call.pages, call.slots[index], call.entry_size,
                call.values + index * call.entry_size);
}

void stream_write(ThreadPool& pool, const StreamWriteCall& call) {
    StreamWriteCall copy = call;
    share_ranges(pool, call.rows * call.entry_size, call.rows, stream_write_task, &copy);
}
