"""What every format must take: any leading shape, mapped files, strided and read-only arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.errors import FormatError
from firstlight.formats.registry import get_format, known_formats

ALL = known_formats()
WRITABLE = [name for name in ALL if get_format(name).encode is not None]


def random_bytes(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@given(
    name=st.sampled_from(ALL),
    leading=st.lists(st.integers(0, 4), max_size=3),
    blocks=st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_decode_takes_any_leading_shape(name: str, leading: list[int], blocks: int) -> None:
    format = get_format(name)
    data = random_bytes((*leading, blocks * format.block_bytes))
    values = format.decode(data)
    assert values.dtype == np.float32
    assert values.shape == (*leading, blocks * format.block_values)
    flat = format.decode(data.reshape(-1))
    assert np.array_equal(values.reshape(-1), flat, equal_nan=True)


@given(
    name=st.sampled_from(WRITABLE),
    leading=st.lists(st.integers(0, 4), max_size=3),
    blocks=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_encode_takes_any_leading_shape(
    name: str, leading: list[int], blocks: int, seed: int
) -> None:
    format = get_format(name)
    shape = (*leading, blocks * format.block_values)
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    data = format.encode(values)
    assert data.dtype == np.uint8
    assert data.shape == (*leading, blocks * format.block_bytes)
    assert np.array_equal(data.reshape(-1), format.encode(values.reshape(-1)))


@pytest.mark.parametrize("name", ALL)
def test_decode_reads_a_mapped_file_at_an_odd_offset(name: str, tmp_path: Path) -> None:
    format = get_format(name)
    data = random_bytes((5, 2 * format.block_bytes))
    path = tmp_path / "weights"
    path.write_bytes(b"\0\0\0" + data.tobytes())
    mapped = np.memmap(path, np.uint8, "r", offset=3, shape=data.shape)
    values = format.decode(mapped)
    assert np.array_equal(values, format.decode(data), equal_nan=True)
    assert values.flags.aligned
    assert not isinstance(values, np.memmap)
    assert path.read_bytes()[3:] == data.tobytes()


@pytest.mark.parametrize("name", ALL)
def test_decode_reads_strided_rows(name: str) -> None:
    format = get_format(name)
    wide = random_bytes((8, 4 * format.block_bytes))
    part = wide[::-2, format.block_bytes : 3 * format.block_bytes]
    assert np.array_equal(format.decode(part), format.decode(part.copy()), equal_nan=True)
    columns = np.asfortranarray(part)
    assert np.array_equal(format.decode(columns), format.decode(part.copy()), equal_nan=True)


@pytest.mark.parametrize("name", WRITABLE)
def test_encode_reads_strided_rows_and_keeps_its_input(name: str) -> None:
    format = get_format(name)
    wide = np.random.default_rng(1).standard_normal((8, 256)).astype(np.float32)
    before = wide.copy()
    part = wide[::-2, 64:192]
    assert np.array_equal(format.encode(part), format.encode(part.copy()))
    assert np.array_equal(wide, before)


@pytest.mark.parametrize("name", [name for name in ALL if get_format(name).block_bytes > 1])
def test_decode_refuses_part_of_a_block(name: str) -> None:
    format = get_format(name)
    with pytest.raises(FormatError, match=f"{name} data of shape .* not whole"):
        format.decode(random_bytes((3, format.block_bytes + 1)))


@pytest.mark.parametrize("name", [n for n in WRITABLE if get_format(n).block_values > 1])
def test_encode_refuses_part_of_a_block(name: str) -> None:
    format = get_format(name)
    with pytest.raises(FormatError, match=f"{name} data of shape .* not whole"):
        format.encode(np.zeros((3, format.block_values - 1), np.float32))


@pytest.mark.parametrize("name", ALL)
def test_row_bytes(name: str) -> None:
    format = get_format(name)
    assert format.row_bytes(0) == 0
    assert format.row_bytes(3 * format.block_values) == 3 * format.block_bytes
    assert format.bits_per_value == 8 * format.block_bytes / format.block_values
    if format.block_values > 1:
        with pytest.raises(FormatError, match=f"blocks of {format.block_values}"):
            format.row_bytes(format.block_values + 1)
