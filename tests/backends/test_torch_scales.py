"""Bare codes with scales of groups on PyTorch's devices: as published, decoded exactly."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from firstlight.backends import open_device
from firstlight.formats.base import Format, Weight
from firstlight.formats.codes import E2M1, U4, U8
from firstlight.formats.group_scales import GroupScales
from firstlight.formats.registry import get_format
from firstlight.verify.cases.scaled_weights import SCALED_WEIGHTS

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def backend() -> Any:
    return open_device("torch:cpu", check_kernels=False)


def _check(backend: Any, weight: Weight) -> None:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("error", UserWarning)
        packed = backend.pack(weight)
        expected = weight.decode()
    assert packed.format is weight.format
    np.testing.assert_array_equal(packed.decode(2, 7).numpy(), expected[2:7])
    rows = np.array([5, 0, 7, 0], np.int32)
    np.testing.assert_array_equal(backend.embed(packed, rows).numpy(), expected[rows])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(backend.unpack(packed).decode(), expected)


@pytest.mark.parametrize("name", SCALED_WEIGHTS)
def test_weights_as_published(backend: Any, name: str) -> None:
    weight = SCALED_WEIGHTS[name](np.random.default_rng(0), 8, 70)
    weight.data.flags.writeable = False  # as of a mapped file
    _check(backend, weight)
    packed = backend.pack(weight)
    assert packed.data.data_ptr() == weight.data.ctypes.data


@pytest.mark.parametrize("codes", [U4, U8, E2M1], ids=lambda format: str(format.name))
@pytest.mark.parametrize("stored", ["f16", "bf16", "f32", "f8_e4m3"])
def test_whatever_the_bytes(backend: Any, codes: Format, stored: str) -> None:
    """Random codes, zeros and scales, which may be infinite or no numbers too."""
    generator, of_scales, rows, before = np.random.default_rng(1), get_format(stored), 8, 3
    for columns, group in ((96, 32), (50, 16), (66, 128)):
        groups = -(-columns // group)
        for zeros, reordered, factor, divisor in (
            (False, False, None, None),
            (True, False, np.float32(0.3), None),
            (True, True, None, np.float32(7.7)),
            (False, True, None, None),
        ):
            size = (before + rows, groups * of_scales.block_bytes)
            scales = GroupScales(
                generator.integers(0, 256, size, dtype=np.uint8),
                of_scales,
                group,
                8,
                generator.integers(0, 257, (size[0], groups)).astype(np.int16) if zeros else None,
                generator.integers(0, groups, columns).astype(np.intp) if reordered else None,
                factor,
                divisor,
                before,
            )
            data = generator.integers(0, 256, (rows, codes.row_bytes(columns)), dtype=np.uint8)
            _check(backend, Weight(codes, (rows, columns), data, "w", scales))


def test_scales_of_other_rows_stay_on_the_host(backend: Any) -> None:
    """A part of a fused matrix takes its own rows of the scales along, and no others."""
    whole = SCALED_WEIGHTS["nvfp4 of two tensors, divided"](np.random.default_rng(0), 64, 96)
    packed = backend.pack(whole.row_slice(40, 48))
    assert packed.scales.nbytes == 8 * 6 + 4
    np.testing.assert_array_equal(packed.decode(0, 8).numpy(), whole.decode(40, 48))


def test_scales_that_are_not_known_there_are_widened_and_say_so(backend: Any) -> None:
    class Doubled:
        def multiply(self, values: Any, rows: Any) -> Any:
            return 2 * values

        def from_row(self, start: int) -> Doubled:
            return self

        def check(self, label: str, rows: int, columns: int) -> None:
            pass

    data = np.arange(8, dtype=np.uint8).reshape(2, 4)
    weight = Weight(U8, (2, 4), data, "layer.weight", Doubled())
    with pytest.warns(UserWarning, match="u8 with its scales is not decoded"):
        packed = backend.pack(weight)
    np.testing.assert_array_equal(packed.decode(0, 2).numpy(), 2.0 * data)
