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

void elementwise_task(void* context, int64_t index) {
    const ElementwiseCall& call = *static_cast<const ElementwiseCall*>(context);
    const int64_t begin = index * kSlice, size = least(kSlice, call.size - begin);
    const float* x = call.x + begin;
    const float* y = call.y ? call.y + begin : x;
    float* out = call.out + begin;
    const float parameter = call.parameter;
    const auto map = [&](auto function) { map_values(x, y, size, out, function); };
    switch (call.function) {
        case Elementwise::add: return map([](Vector a, Vector b) { return a + b; });
        case Elementwise::add_scaled:
            return map([=](Vector a, Vector b) { return a + b * parameter; });
        case Elementwise::scale: return map([=](Vector a, Vector) { return a * parameter; });
        case Elementwise::soft_cap:
            return map([=](Vector a, Vector) {
                return hyperbolic_tangent(a / broadcast(parameter)) * parameter;
            });
        case Elementwise::gate: break;
    }
    switch (call.activation) {
        case Activation::silu: return map([](Vector a, Vector b) { return silu(a) * b; });
        case Activation::gelu: return map([](Vector a, Vector b) { return gelu(a) * b; });
        case Activation::gelu_tanh: return map([](Vector a, Vector b) { return gelu_tanh(a) * b; });
        case Activation::relu: return map([](Vector a, Vector b) { return relu(a) * b; });
    }
}

void elementwise(ThreadPool& pool, const ElementwiseCall& call) {
    ElementwiseCall copy = call;
    share(pool, 8 * call.size, divide_up(call.size, kSlice), elementwise_task, &copy);
}

// The mean is taken in float64, so that no square overflows.
void norm_task(void* context, int64_t index) {
    const NormCall& call = *static_cast<const NormCall*>(context);
    const float* x = call.x + index * call.columns;
    float* out = call.out + index * call.columns;
    constexpr int kSums = 16;
    double sums[kSums] = {};
    int64_t i = 0;
    for (; i + kSums <= call.columns; i += kSums) {
        for (int j = 0; j < kSums; ++j) {
            const double value = x[i + j];
            sums[j] += value * value;
        }
    }
    for (; i < call.columns; ++i) sums[0] += static_cast<double>(x[i]) * x[i];
    double total = 0;
    for (double one : sums) total += one;
    const double mean = total / static_cast<double>(call.columns);
    const double factor = 1.0 / ::sqrt(mean + call.epsilon);
    if (call.weight) {
        for (i = 0; i < call.columns; ++i) {
            out[i] = static_cast<float>(x[i] * factor) * call.weight[i];
        }
    } else {
        for (i = 0; i < call.columns; ++i) out[i] = static_cast<float>(x[i] * factor);
    }
}

void rms_norm(ThreadPool& pool, const NormCall& call) {
    NormCall copy = call;
    share(pool, 4 * call.rows * call.columns, call.rows, norm_task, &copy);
}

void rotary_task(void* context, int64_t index) {
    const RotaryCall& call = *static_cast<const RotaryCall*>(context);
    const int64_t angles = call.angles;
    const float* cosine = call.cosine_sine + index * 2 * angles;
    const float* sine = cosine + angles;
    for (int64_t head = 0; head < call.heads; ++head) {
        const int64_t offset = (index * call.heads + head) * call.size;
        const float* x = call.x + offset;
        float* out = call.out + offset;
        if (call.interleaved) {
            for (int64_t i = 0; i < angles; ++i) {
                out[2 * i] = x[2 * i] * cosine[i] - x[2 * i + 1] * sine[i];
                out[2 * i + 1] = x[2 * i + 1] * cosine[i] + x[2 * i] * sine[i];
            }
        } else {
            for (int64_t i = 0; i < angles; ++i) {
                out[i] = x[i] * cosine[i] - x[i + angles] * sine[i];
                out[i + angles] = x[i + angles] * cosine[i] + x[i] * sine[i];
            }
        }
        for (int64_t i = 2 * angles; i < call.size; ++i) out[i] = x[i];
    }
}

void rotary(ThreadPool& pool, const RotaryCall& call) {
    RotaryCall copy = call;
    share(pool, 2 * call.rows * call.heads * call.size, call.rows, rotary_task, &copy);
}

void stream_write_task(void* context, int64_t index) {
    const StreamWriteCall& call = *static_cast<const StreamWriteCall*>(context);
    const int64_t size = call.entry_size, offset = call.slots[index] * size;
    const float* values = call.values + index * size;
    if (call.type == StreamType::float32) {
        memcpy(static_cast<float*>(call.pages) + offset, values, size_t(size) * sizeof(float));
        return;
    }
    uint16_t* entry = static_cast<uint16_t*>(call.pages) + offset;
    round_to_bfloat16(values, size, entry);
}

void stream_write(ThreadPool& pool, const StreamWriteCall& call) {
    StreamWriteCall copy = call;
    share(pool, call.rows * call.entry_size, call.rows, stream_write_task, &copy);
}
