"""Products of bfloat16 weights with activations rounded to bfloat16."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from firstlight.backends.cpu import _native
from firstlight.backends.cpu.backend import CpuBackend, available_levels
from firstlight.formats.base import Weight
from firstlight.formats.registry import get_format
from firstlight.ops.linear import linear
from firstlight.ops.rounding import round_activations
from firstlight.verify.conformance import check_kernels
from firstlight.verify.random_weights import random_weight

BF16 = get_format("bf16")
LEVELS = [level for level in available_levels() if _native.Kernels(level, 1).multiplies_bfloat16]
of_levels = pytest.mark.parametrize("level", LEVELS)


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a.view(np.uint32), b.view(np.uint32)))


def _kernels(backend: CpuBackend) -> list[str]:
    return [kernel.name for kernel in backend.kernels() if kernel.op == "linear"]


@of_levels
def test_agrees_with_the_definition_on_rounded_activations(level: str) -> None:
    reports = [
        report
        for report in check_kernels(CpuBackend(level, threads=2), ops=frozenset({"linear"}))
        if report.kernel == "bfloat16"
    ]
    assert len(reports) > 5
    assert not [str(report) for report in reports if not report.passed]


@of_levels
def test_differs_from_products_without_rounding(level: str) -> None:
    """So that the agreement above says something about the rounding."""
    generator = np.random.default_rng(1)
    weight = random_weight(BF16, 32, 256, generator)
    x = generator.standard_normal((3, 256), dtype=np.float32)
    backend = CpuBackend(level, threads=1)
    rounded = linear(round_activations(x, "bfloat16"), weight)
    whole = linear(x, weight)
    found = backend.linear(x, weight)
    assert np.abs(found - rounded).max() * 20 < np.abs(found - whole).max()


@of_levels
def test_a_row_has_the_same_bits_in_every_batch(level: str) -> None:
    generator = np.random.default_rng(2)
    backends = [CpuBackend(level, threads=threads) for threads in (1, 2)]
    for rows, columns in ((37, 45), (130, 1536), (67, 3100), (9, 8960), (5, 1), (70, 2048)):
        weight = random_weight(BF16, rows, columns, generator)
        bias = generator.standard_normal(rows, dtype=np.float32)
        x = generator.standard_normal((131, columns), dtype=np.float32)
        together = backends[0].linear(x, weight, bias)
        for _ in range(6):
            begin = int(generator.integers(0, 130))
            end = int(generator.integers(begin + 1, min(131, begin + 40) + 1))
            for backend in backends:
                part = backend.linear(np.ascontiguousarray(x[begin:end]), weight, bias)
                assert _same_bits(part, together[begin:end])


@of_levels
def test_tuning_does_not_change_a_bit(level: str) -> None:
    generator = np.random.default_rng(3)
    native = _native.Kernels(level, 2)
    weight = random_weight(BF16, 150, 1700, generator)
    for count in (1, 7, 90):
        x = generator.standard_normal((count, 1700), dtype=np.float32)
        results = []
        for tuning in ((0, 0, 0), (6, 1, 0), (17, 3, 512), (90, 40, 4096)):
            matrix = _native.Matrix("bf16", weight.data, 150, 1700, False)
            matrix.tune(1, 1000, *tuning)
            out = np.empty((count, 150), np.float32)
            native.linear(x, matrix, None, out, round_to_bfloat16=True)
            results.append(out)
        assert all(_same_bits(result, results[0]) for result in results)


@of_levels
def test_a_group_is_as_its_members(level: str) -> None:
    generator = np.random.default_rng(4)
    native = _native.Kernels(level, 2)
    x = generator.standard_normal((5, 320), dtype=np.float32)
    names = ("bf16", "f32", "bf16", "q8_0", "f16")
    weights = [
        random_weight(get_format(name), 40 + i, 320, generator) for i, name in enumerate(names)
    ]
    matrices = [
        _native.Matrix(weight.format.name, weight.data, weight.rows, 320, False)
        for weight in weights
    ]
    outs = [np.empty((5, weight.rows), np.float32) for weight in weights]
    native.linear_group(x, matrices, [None] * 5, outs, round_to_bfloat16=True)
    for matrix, out in zip(matrices, outs, strict=True):
        alone = np.empty_like(out)
        native.linear(x, matrix, None, alone, round_to_bfloat16=True)
        assert _same_bits(out, alone)


@of_levels
@pytest.mark.parametrize("offset", [1, 2, 63])
def test_weights_lie_at_any_byte_and_nothing_beyond_them_is_used(level: str, offset: int) -> None:
    generator = np.random.default_rng(5)
    rows, columns = 19, 71
    weight = random_weight(BF16, rows, columns, generator)
    x = generator.standard_normal((18, columns), dtype=np.float32)
    backend = CpuBackend(level, threads=1)
    expected = backend.linear(x, weight)
    # All around stand bytes that mean NaN.
    memory = np.full(weight.nbytes + 4096, 0xFF, np.uint8)
    data = memory[1024 + offset : 1024 + offset + weight.nbytes]
    data[:] = weight.data.reshape(-1)
    moved = Weight(BF16, (rows, columns), data.reshape(rows, -1), "moved")
    assert _same_bits(backend.linear(x, moved), expected)
    assert np.isfinite(expected).all()


@of_levels
def test_rows_that_are_not_numbers_stay_alone(level: str) -> None:
    generator = np.random.default_rng(6)
    backend = CpuBackend(level, threads=2)
    weight = random_weight(BF16, 40, 1100, generator)
    x = generator.standard_normal((40, 1100), dtype=np.float32)
    expected = backend.linear(x, weight)
    x[7, 1099] = np.nan
    x[21, 0] = np.inf
    changed = backend.linear(x, weight)
    assert np.isnan(changed[7]).all()
    assert not np.isfinite(changed[21]).any()
    others = [row for row in range(40) if row not in (7, 21)]
    assert _same_bits(changed[others], expected[others])


@of_levels
def test_an_identity_shows_the_rounding_itself(level: str) -> None:
    """Every pattern of the upper bits of a float32, and the ties between them."""
    patterns = np.arange(0x0080, 0x7F80, 7, dtype=np.uint32)  # normal numbers
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    bits = (patterns[:, None] << 16 | lower).reshape(-1)
    bits = np.concatenate([bits, bits | np.uint32(0x80000000)])
    x = np.resize(bits, (-(-len(bits) // 48), 48)).view(np.float32)
    ones = np.eye(48, dtype=np.float32).view(np.uint32) >> 16
    weight = Weight(BF16, (48, 48), ones.astype(np.uint16).view(np.uint8), "identity")
    found = CpuBackend(level, threads=2).linear(x, weight)
    expected = round_activations(x, "bfloat16")
    # A number that rounds to infinity makes NaN of its neighbours' zeros.
    finite = np.asarray(np.isfinite(expected).all(axis=1))
    assert np.mean(finite) > 0.9
    assert _same_bits(found[finite], expected[finite])


@of_levels
def test_an_exact_backend_rounds_nothing(level: str) -> None:
    assert "bfloat16" in _kernels(CpuBackend(level, threads=1))
    assert "bfloat16" not in _kernels(CpuBackend(level, threads=1, exact=True))


def test_other_levels_keep_activations_as_they_are() -> None:
    for level in available_levels():
        if level not in LEVELS:
            assert "bfloat16" not in _kernels(CpuBackend(level, threads=1))


def test_rounding_is_announced_for_bfloat16_alone() -> None:
    if not LEVELS:
        pytest.skip("no level of this processor multiplies bfloat16")
    kernels: dict[str, Any] = {
        kernel.op: kernel
        for kernel in CpuBackend(LEVELS[-1]).kernels()
        if kernel.name == "bfloat16"
    }
    assert set(kernels) == {
        "linear", "attention", "latent_attention", "selected_latent_attention",
    }  # fmt: skip
    assert {kernel.rounding(BF16) for kernel in kernels.values()} == {"bfloat16"}
    assert {kernel.rounding(get_format("f16")) for kernel in kernels.values()} == {"none"}
