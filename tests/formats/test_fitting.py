"""The search for scales: never worse than ggml's rule, and better by as much as can be had."""

from __future__ import annotations

import itertools

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from firstlight.errors import FormatError
from firstlight.formats.registry import get_format, known_formats

FITTED = [name for name in known_formats() if get_format(name).fit is not None]
BLOCK = 32


def errors(values: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Squared error of each block, float64 [blocks]."""
    difference = values.astype(np.float64) - decoded.astype(np.float64)
    return np.square(difference).reshape(-1, BLOCK).sum(axis=1)


def fitted(name: str, values: np.ndarray) -> np.ndarray:
    format = get_format(name)
    assert format.fit is not None
    return format.decode(format.fit(values))


def rounded_to_nearest(name: str, values: np.ndarray) -> np.ndarray:
    """ggml's rule, by the gguf package: an oracle that shares nothing with the search."""
    type = gguf.GGMLQuantizationType[name.upper()]
    with np.errstate(all="ignore"):
        return gguf.dequantize(gguf.quantize(values, type), type)


def test_int8_and_int4_are_among_them() -> None:
    assert set(FITTED) == {"q4_0", "q4_1", "q5_0", "q5_1", "q8_0"}
    assert {get_format("int8").name, get_format("int4").name} <= set(FITTED)


@given(
    name=st.sampled_from(FITTED),
    values=arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.just(2 * BLOCK)),
        elements=st.floats(-60000, 60000, width=32) | st.floats(-1, 1, width=32),
        fill=st.floats(-1, 1, width=32),
    ),
)
@settings(max_examples=400, deadline=None)
def test_no_block_is_worse_than_by_ggmls_rule(name: str, values: np.ndarray) -> None:
    plain, found = rounded_to_nearest(name, values), fitted(name, values)
    assert np.isfinite(found).all()
    assert (errors(values, found) <= errors(values, plain)).all()


@given(
    name=st.sampled_from(FITTED),
    seed=st.integers(0, 2**32 - 1),
    size=st.floats(-12, 9),
    offset=st.floats(-4, 4),
    heavy=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_no_random_block_is_worse_at_any_size(
    name: str, seed: int, size: float, offset: float, heavy: bool
) -> None:
    generator = np.random.default_rng(seed)
    shape = (64, BLOCK)
    values = generator.standard_t(2, shape) if heavy else generator.standard_normal(shape)
    values = ((values + offset) * np.exp(size)).astype(np.float32)
    values = np.clip(values, -60000, 60000)
    plain, found = rounded_to_nearest(name, values), fitted(name, values)
    assert (errors(values, found) <= errors(values, plain)).all()


# About what is measured: a rule that finds less fails.
@pytest.mark.parametrize(
    ("name", "most"),
    [("q4_0", 0.90), ("q4_1", 0.80), ("q5_0", 0.90), ("q5_1", 0.80), ("q8_0", 0.94)],
)
def test_the_error_of_normal_values_falls(name: str, most: float) -> None:
    values = np.random.default_rng(3).standard_normal((4000, BLOCK)).astype(np.float32)
    plain = errors(values, rounded_to_nearest(name, values)).sum()
    assert errors(values, fitted(name, values)).sum() < most * plain


def test_int4_comes_within_a_few_percent_of_an_exhaustive_search() -> None:
    values = np.random.default_rng(4).standard_normal((150, BLOCK)).astype(np.float32)
    best = np.array([exhausted(block) for block in values]).sum()
    found = errors(values, fitted("int4", values)).sum()
    assert best < found < 1.05 * best


def exhausted(block: np.ndarray) -> float:
    """Least squared error over a fine grid of 4-bit ranges, in float64, each with its best line."""
    block = block.astype(np.float64)
    low, reach = block.min(), np.ptp(block)
    least = np.inf
    for below, above in itertools.product(np.linspace(-0.06, 0.16, 12), repeat=2):
        step = (1 - below - above) * reach / 15
        codes = np.clip(np.rint((block - low - below * reach) / step), 0, 15)
        slope, intercept = np.polyfit(codes, block, 1)
        codes = np.clip(np.rint((block - intercept) / slope), 0, 15)
        _, (residue,), *_ = np.polyfit(codes, block, 1, full=True)
        least = min(least, float(residue))
    return least


@pytest.mark.parametrize("name", FITTED)
def test_values_that_the_format_holds_exactly_come_back(name: str) -> None:
    """Blocks decoded from random codes: the search must not move what is right already."""
    format = get_format(name)
    generator = np.random.default_rng(5)
    data = generator.integers(0, 256, (500, format.block_bytes), dtype=np.uint8)
    data[:, 0:2] = np.array([0.0117], np.float16).view(np.uint8)
    if name.endswith("_1"):
        data[:, 2:4] = np.array([-0.093], np.float16).view(np.uint8)
    if name == "q8_0":  # no encoder writes -128, or leaves 127 unused
        data[:, 2:][data[:, 2:] == 128] = 129
        data[:, 2] = 127
    values = format.decode(data)
    found = errors(values, fitted(name, values))
    # Codes need not reach both ends, so that the grid must be found: rarely it is not.
    held = np.mean(found < 1e-6 * np.square(values).sum(axis=1))
    plain = np.mean(
        errors(values, rounded_to_nearest(name, values)) < 1e-6 * np.square(values).sum(axis=1)
    )
    assert held >= plain
    assert held > 0.5


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("value", [0.0, -0.0, 0.37, -0.37, 1e-40, -1e-12, 6e4])
def test_constant_blocks(name: str, value: float) -> None:
    values = np.full((3, 2 * BLOCK), value, np.float32)
    plain, found = rounded_to_nearest(name, values), fitted(name, values)
    assert (errors(values, found) <= errors(values, plain)).all()


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38, -3e38])
def test_what_cannot_be_stored_is_refused(name: str, bad: float) -> None:
    values = np.random.default_rng(6).standard_normal((3, 2 * BLOCK)).astype(np.float32)
    values[1, 40] = bad
    format = get_format(name)
    assert format.fit is not None
    with pytest.raises(FormatError, match="not finite, or too large"):
        format.fit(values)


@pytest.mark.parametrize("name", FITTED)
def test_a_block_does_not_depend_on_its_neighbours(name: str) -> None:
    values = np.random.default_rng(7).standard_normal((3000, BLOCK)).astype(np.float32)
    format = get_format(name)
    assert format.fit is not None
    whole = format.fit(values)
    assert np.array_equal(format.fit(values[1027:1028]), whole[1027:1028])
    assert np.array_equal(format.fit(values[::-1]), whole[::-1])


def test_codes_of_q8_0_stay_symmetric() -> None:
    values = np.random.default_rng(8).standard_normal((4000, BLOCK)).astype(np.float32)
    format = get_format("q8_0")
    assert format.fit is not None
    codes = format.fit(values)[:, 2:].view(np.int8)
    assert codes.min() == -127
    assert codes.max() == 127
