// Exponential, hyperbolic tangent and the activations, on vectors.
//
// Polynomials and argument reduction are those of the Cephes library's expf and tanhf (S. Moshier,
// netlib.org/cephes), which err by less than two units in the last place. NaN gives NaN.

// exp(x). Below the smallest normal float32 it gives 0, above the largest about 2.4e38.
inline Vector exponential(Vector x) {
    const Integers vanishes = less(x, broadcast(-87.33f));
    x = at_most(at_least(x, broadcast(-87.33f)), broadcast(88.37f));
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
    const Vector magic = broadcast(12582912.0f);
    const Vector shifted = x * 1.44269504088896341f + magic;
    const Integers exponent = as_int(shifted) - as_int(magic);
    const Vector whole = shifted - magic;
    Vector rest = multiply_add(whole, broadcast(-0.693359375f), x);
    rest = multiply_add(whole, broadcast(2.12194440e-4f), rest);
    Vector series = broadcast(1.9875691500e-4f);
    series = multiply_add(series, rest, broadcast(1.3981999507e-3f));
    series = multiply_add(series, rest, broadcast(8.3334519073e-3f));
    series = multiply_add(series, rest, broadcast(4.1665795894e-2f));
    series = multiply_add(series, rest, broadcast(1.6666665459e-1f));
    series = multiply_add(series, rest, broadcast(5.0000001201e-1f));
    const Vector power = multiply_add(series, rest * rest, rest + 1.0f);
    const Vector result = power * as_float((exponent + 127) << 23);
    return as_float(as_int(result) & ~vanishes);
}

inline Vector hyperbolic_tangent(Vector x) {
    const Integers sign = as_int(x) & broadcast_int(INT32_MIN);
    const Vector magnitude = as_float(as_int(x) & broadcast_int(INT32_MAX));
    // Near zero 1 - 2 / (...) would lose all its digits.
    const Vector square = x * x;
    Vector series = broadcast(-5.70498872745e-3f);
    series = multiply_add(series, square, broadcast(2.06390887954e-2f));
    series = multiply_add(series, square, broadcast(-5.37397155531e-2f));
    series = multiply_add(series, square, broadcast(1.33314422036e-1f));
    series = multiply_add(series, square, broadcast(-3.33332819422e-1f));
    const Vector near_zero = multiply_add(series * square, x, x);
    const Vector far = 1.0f - 2.0f / (exponential(magnitude * 2.0f) + 1.0f);
    const Vector signed_far = as_float(as_int(far) | sign);
    return select(less(magnitude, broadcast(0.625f)), near_zero, signed_far);
}

inline Vector silu(Vector x) { return x / (exponential(0.0f - x) + 1.0f); }

// 0.5 (1 + tanh(u)) is the logistic function of 2u.
inline Vector gelu_tanh(Vector x) {
    const Vector cubic = x * x * 0.044715f * x + x;
    return x / (exponential(cubic * -1.5957691216057308f) + 1.0f);
}

inline Vector gelu(Vector x) {
    float lanes[kWidth];
    store(lanes, x);
    for (float& lane : lanes) lane = 0.5f * lane * (1.0f + ::erff(lane * 0.70710678f));
    return load(lanes);
}

inline Vector relu(Vector x) { return at_least(x, broadcast(0.0f)); }
