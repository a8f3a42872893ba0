"""Unquantised formats against PyTorch's and Python's own conversions."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest
import torch

from firstlight.formats.registry import get_format

TORCH = {"f16": torch.float16, "bf16": torch.bfloat16}
EVERY_16_BITS = np.arange(65536, dtype=np.uint16)


def hard_floats() -> np.ndarray:
    """float32: random bit patterns, and each 16-bit value's rounding ties and their neighbours."""
    random = np.random.default_rng(5).integers(0, 2**32, 200_000, dtype=np.uint32)
    bf16_ties = (EVERY_16_BITS.astype(np.uint32) << 16) + np.uint32(0x8000)
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    f16_ties = ((halves[1:] + halves[:-1]) / 2).view(np.uint32)
    f16_ties = np.concatenate([f16_ties, f16_ties | np.uint32(1 << 31)])
    ties = np.concatenate([bf16_ties, f16_ties])
    return np.concatenate([random, ties, ties + np.uint32(1), ties - np.uint32(1)]).view(np.float32)


def assert_same_or_both_nan(actual: np.ndarray, expected: np.ndarray, bits: type) -> None:
    both_nan = np.isnan(actual) & np.isnan(expected)
    assert (both_nan | (actual.view(bits) == expected.view(bits))).all()


@pytest.mark.parametrize("name", TORCH)
def test_decoding_all_16_bit_patterns(name: str) -> None:
    expected = torch.from_numpy(EVERY_16_BITS.view(np.int16)).view(TORCH[name]).float().numpy()
    actual = get_format(name).decode(EVERY_16_BITS.view(np.uint8))
    assert_same_or_both_nan(actual, expected, np.uint32)


@pytest.mark.parametrize("name", TORCH)
def test_encoding_rounds_to_nearest_even(name: str) -> None:
    values = hard_floats()
    format = get_format(name)
    expected = torch.from_numpy(values).to(TORCH[name]).float().numpy()
    actual = format.decode(format.encode(values))
    assert np.isnan(values).any()
    assert_same_or_both_nan(actual, expected, np.uint32)


@pytest.mark.parametrize("name", TORCH)
def test_what_was_decoded_encodes_to_the_same_bits(name: str) -> None:
    format = get_format(name)
    values = format.decode(EVERY_16_BITS.view(np.uint8))
    again = format.encode(values).view(np.uint16)
    assert (again[~np.isnan(values)] == EVERY_16_BITS[~np.isnan(values)]).all()
    assert np.isnan(format.decode(format.encode(values))[np.isnan(values)]).all()


def test_bf16_keeps_nan_as_gguf_does() -> None:
    values = hard_floats()
    expected = gguf.quantize(values, gguf.GGMLQuantizationType.BF16)
    assert np.array_equal(get_format("bf16").encode(values), expected)


def test_f32_is_a_view_that_cannot_be_written() -> None:
    values = hard_floats()
    data = values.view(np.uint8)
    decoded = get_format("f32").decode(data)
    assert np.shares_memory(decoded, data)
    assert not decoded.flags.writeable
    assert data.flags.writeable
    assert np.array_equal(decoded.view(np.uint32), values.view(np.uint32))


def test_f32_encoding_is_a_copy() -> None:
    values = np.ones((2, 3), np.float32)
    data = get_format("f32").encode(values)
    assert not np.shares_memory(values, data)
    assert data.tobytes() == struct.pack("<6f", *[1.0] * 6)


def test_f64() -> None:
    numbers = [0.0, -0.0, 0.1, 1e300, -1e300, 1e-300, float("inf"), float("nan"), 1 + 2**-24]
    decoded = get_format("f64").decode(np.frombuffer(struct.pack("<9d", *numbers), np.uint8))
    expected = torch.tensor(numbers, dtype=torch.float64).float().numpy()
    assert_same_or_both_nan(decoded, expected, np.uint32)
    values = np.array([[0.1, -2.5]], np.float32)
    assert struct.unpack("<2d", get_format("f64").encode(values).tobytes()) == tuple(
        float(v) for v in values[0]
    )
