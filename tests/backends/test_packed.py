"""Weights in panels: their values are kept, and products with them are the same everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from firstlight.errors import FormatError
from firstlight.formats.base import Weight
from firstlight.formats.registry import get_format, known_formats
from firstlight.ops.linear import linear
from firstlight.ops.rounding import FIXED16_LIMIT, round_activations
from firstlight.verify.random_weights import random_weight

backend_module = pytest.importorskip("firstlight.backends.cpu.backend")
packed = pytest.importorskip("firstlight.backends.cpu.packed")
CpuBackend = backend_module.CpuBackend
stored_matrix = pytest.importorskip("firstlight.backends.cpu.matrices").stored_matrix
LEVELS = backend_module.available_levels()
FORMATS = sorted(
    name for name in known_formats() if packed.packed_bytes(get_format(name), 1, 256) is not None
)


def _random_bytes(name: str, rows: int, columns: int) -> Weight:
    """Blocks whatever: scales of every size, infinite ones and NaN too."""
    format = get_format(name)
    generator = np.random.default_rng(1)
    data = generator.integers(0, 256, (rows, format.row_bytes(columns)), dtype=np.uint8)
    return Weight(format, (rows, columns), data, "some.weight")


def _weight(name: str, rows: int, columns: int) -> Weight:
    return random_weight(get_format(name), rows, columns, np.random.default_rng(2))


def _floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape, dtype=np.float32)


def _same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.shape == right.shape and left.tobytes() == right.tobytes()


def test_the_formats_in_panels() -> None:
    legacy, k_quants = "q4_0 q4_1 q5_0 q5_1 q8_0", "q2_k q3_k q4_k q5_k q6_k"
    tables = "iq4_nl iq4_xs mxfp4 nvfp4"
    assert set(FORMATS) == {*legacy.split(), *k_quants.split(), *tables.split()}
    for name in FORMATS:
        stored = 16 * get_format(name).row_bytes(512)
        assert stored <= packed.packed_bytes(get_format(name), 16, 512) <= 1.04 * stored
        assert packed.packed_bytes(get_format(name), 0, 512) == 0


@pytest.mark.parametrize("rows", [1, 15, 16, 37])
@pytest.mark.parametrize("name", FORMATS)
def test_packing_keeps_every_value(name: str, rows: int) -> None:
    weight = _random_bytes(name, rows, 768)
    matrix = packed.pack(weight)
    assert matrix.shape == weight.shape and matrix.name == weight.name
    with np.errstate(all="ignore"):
        expected = np.array(weight.values())
    unpacked = matrix.unpack()
    assert unpacked.name == weight.name
    values = unpacked.values()
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(values), ~number)
    np.testing.assert_array_equal(values.view(np.uint32)[number], expected.view(np.uint32)[number])


def _all_scales(name: str, level: str) -> tuple[np.ndarray, np.ndarray]:
    """Each of 256 scales with each of 16 codes: (values in panels, values by definition)."""
    scale, format = np.arange(256, dtype=np.uint8)[:, None], get_format(name)
    codes = np.broadcast_to(np.arange(16, dtype=np.uint8) * 17, (256, 16))
    blocks = [scale, codes] if name == "mxfp4" else [np.repeat(scale, 4, 1), codes, codes]
    weight = Weight(format, (256, format.block_values), np.concatenate(blocks, axis=1))
    backend = CpuBackend(level=level, threads=1)
    return backend.embed(backend.pack(weight), np.arange(256, dtype=np.int32)), weight.values()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_scales_of_eight_bits_are_exact(name: str, level: str) -> None:
    """Every one there is: E8M0's lowest two are halved to subnormal numbers, E4M3's lowest eight
    were subnormal, and one means NaN."""
    values, expected = _all_scales(name, level)
    assert not np.isnan(expected).any() and _same_bits(values, expected)
    least = np.abs(expected[expected != 0]).min()
    assert least == np.float32(2.0**-128 if name == "mxfp4" else 2.0**-10)


@pytest.mark.parametrize("name", FORMATS)
def test_every_level_packs_to_the_same_bytes_and_finds_the_same_rows(name: str) -> None:
    weight = _weight(name, 41, 512)
    expected = packed.pack(weight).data
    ids = np.array([40, 0, 17, 17], np.int32)
    for level in LEVELS:
        backend = CpuBackend(level=level, threads=2)
        matrix = backend.pack(weight)
        assert isinstance(matrix, packed.PackedMatrix)
        assert _same_bits(matrix.data, expected)
        assert _same_bits(backend.embed(matrix, ids), weight.values()[ids])


@pytest.mark.parametrize("name", FORMATS)
def test_products_are_the_same_at_every_level_and_in_every_batch(name: str) -> None:
    weight, bias, x = _weight(name, 67, 1280), _floats(67), _floats(23, 1280)
    expected = linear(round_activations(x, "mixed16"), weight, bias)
    results = []
    for level in LEVELS:
        backend = CpuBackend(level=level, threads=2)
        matrix = backend.pack(weight)
        result = backend.linear(x, matrix, bias)
        assert ("linear", "packed") in backend.usage()
        for count in (1, 2, 3, 7, 15, 17):
            assert _same_bits(backend.linear(x[-count:], matrix, bias), result[-count:])
        results.append(result)
    assert all(_same_bits(result, results[0]) for result in results)
    np.testing.assert_allclose(results[0], expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["q8_0", "q2_k"])
def test_neither_threads_nor_tuning_change_results(name: str) -> None:
    weight, x = _weight(name, 200, 512), _floats(70, 512)
    matrix = packed.pack(weight)
    expected = CpuBackend(threads=1).linear(x, matrix)
    for threads in (2, 5):
        assert _same_bits(CpuBackend(threads=threads).linear(x, matrix), expected)
    for tuning in ({"block_rows": 1}, {"block_rows": 24, "panels": 3}, {"fetch_ahead": 1 << 30}):
        matrix.matrix.tune(1, 100, **tuning)
        assert _same_bits(CpuBackend(threads=2).linear(x, matrix), expected)
        assert _same_bits(CpuBackend(threads=2).linear(x[:1], matrix), expected[:1])


def test_more_rows_than_are_rounded_at_once() -> None:
    backend = CpuBackend(threads=2)
    matrix, x = backend.pack(_weight("q4_0", 18, 64)), _floats(2500, 64)
    together = backend.linear(x, matrix)
    for row in (0, 1023, 1024, 2047, 2048, 2499):
        assert _same_bits(backend.linear(x[row : row + 1], matrix), together[row : row + 1])


def test_packed_and_stored_weights_in_one_group() -> None:
    backend = CpuBackend(threads=2)
    x, matrices, expected = _floats(9, 256), [], []
    for name in ("q4_k", "bf16", "q6_k", "q8_0", "f32"):
        weight = backend.pack(_weight(name, 35, 256))
        stored = stored_matrix(weight) if isinstance(weight, Weight) else None
        matrices.append(stored or weight.matrix)
        expected.append(backend.linear(x, weight))
    outs = [np.empty((9, 35), np.float32) for _ in matrices]
    rounds = backend.native.multiplies_bfloat16
    backend.native.linear_group(x, matrices, [None] * 5, outs, rounds)
    assert all(_same_bits(out, alone) for out, alone in zip(outs, expected, strict=True))


def _columns_one_by_one(columns: int) -> Weight:
    """The identity: row c of the product is what column c of x was rounded to."""
    blocks = np.zeros((columns, columns // 32, 34), np.uint8)
    blocks[:, :, :2] = np.float16(1).reshape(1).view(np.uint8)
    rows = np.arange(columns)
    blocks[rows, rows // 32, 2 + rows % 32] = 1
    return Weight(get_format("q8_0"), (columns, columns), blocks.reshape(columns, -1))


@pytest.mark.parametrize("level", LEVELS)
def test_activations_are_rounded_to_the_bit(level: str) -> None:
    x = _floats(12, 64)
    x[0] = 0
    x[1] *= np.float32(2.0**-99)
    x[2] *= np.float32(2.0**-110)
    x[3] *= np.float32(1e38 / np.abs(x[3]).max())
    # Ties: the step is one, and these lie half-way between two of them.
    x[4] = np.arange(64) - 31.5
    x[4, 0] = FIXED16_LIMIT
    x[5, 63] = -np.abs(x[5]).max() * 2
    x[6, 1] = np.float32(1e-45)
    x[7, 5], x[8, 6], x[9, 7] = np.nan, np.inf, -np.inf
    with np.errstate(all="ignore"):
        expected = round_activations(x, "mixed16")
    backend = CpuBackend(level=level, threads=2)
    result = backend.linear(x, backend.pack(_columns_one_by_one(64)))
    np.testing.assert_array_equal(result, expected)
    assert np.isnan(result[7:10]).all() and np.isfinite(result[10:]).all()


def test_an_exact_backend_packs_nothing() -> None:
    weight = _weight("q8_0", 5, 64)
    backend = CpuBackend(exact=True)
    assert backend.pack(weight) is weight
    assert not [kernel for kernel in backend.kernels() if kernel.name == "packed"]


@pytest.mark.parametrize("name", ["f32", "bf16", "iq3_s"])
def test_formats_that_are_used_in_place(name: str) -> None:
    weight = _weight(name, 5, 256)
    assert packed.packed_bytes(weight.format, 5, 256) is None
    assert packed.pack(weight) is None
    assert CpuBackend().pack(weight) is weight


def test_a_fallback_sees_the_values() -> None:
    backend = CpuBackend()
    weight, x = _weight("q5_k", 19, 256), _floats(3, 256)
    matrix = backend.pack(weight)
    backend.leave_out("linear", "packed")
    backend.leave_out("embed", "packed")
    assert _same_bits(backend.linear(x, matrix), linear(x, weight))
    ids = np.array([18, 2], np.int32)
    assert _same_bits(backend.embed(matrix, ids), weight.values()[ids])


def test_wrong_packed_data_is_refused() -> None:
    format = get_format("q4_0")
    size = packed.packed_bytes(format, 20, 64)
    good = packed.aligned_bytes(size + 64)
    assert packed.PackedMatrix(format, (20, 64), good[:size]).nbytes == size
    for data, shape in (
        (good[: size - 1], (20, 64)),
        (good[1 : size + 1], (20, 64)),
        (good[:size], (33, 64)),
        (good[:size], (20, 96)),
        (good[:size], (20, 65)),
        (good[:size], (1 << 62, 64)),
        (good[:size].view(np.int8), (20, 64)),
    ):
        with pytest.raises(FormatError, match="panels"):
            packed.PackedMatrix(format, shape, data)
    with pytest.raises(FormatError, match="do not pack"):
        packed.PackedMatrix(get_format("f32"), (4, 4), good[:64])


def test_packing_into_the_wrong_place_is_refused() -> None:
    weight = _weight("q4_0", 20, 64)
    size = packed.packed_bytes(weight.format, 20, 64)
    out = packed.aligned_bytes(size + 64)
    with pytest.raises(ValueError, match="packed data"):
        packed.pack_into(weight, out)
    with pytest.raises(ValueError, match="aligned"):
        packed.pack_into(weight, out[1 : size + 1])
    with pytest.raises(ValueError, match="do not pack"):
        packed.pack_into(_weight("f32", 20, 64), out)


@pytest.mark.parametrize("token", [-1, 20])
def test_token_ids_outside_a_packed_table(token: int) -> None:
    backend = CpuBackend()
    matrix: Any = backend.pack(_weight("q4_0", 20, 64))
    with pytest.raises(IndexError, match="vocabulary"):
        backend.embed(matrix, np.array([token], np.int32))
