"""E4M3, E8M0 and scales of blocks against PyTorch's and transformers' own conversions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from firstlight.errors import FormatError
from firstlight.formats.base import BlockScales, Weight
from firstlight.formats.float8 import F8_E4M3, decode_e8m0, encode_e4m3
from firstlight.formats.plain import F32
from firstlight.formats.registry import convert
from tests.support.float8_files import dequantise, quantise

CODES = np.arange(256, dtype=np.uint8)


def test_every_e4m3_code_is_pytorch_s() -> None:
    expected = torch.from_numpy(CODES.copy()).view(torch.float8_e4m3fn).float().numpy()
    found = F8_E4M3.decode(CODES)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


def test_every_e8m0_code_is_pytorch_s() -> None:
    expected = torch.from_numpy(CODES.copy()).view(torch.float8_e8m0fnu).float().numpy()
    np.testing.assert_array_equal(decode_e8m0(CODES), expected)


def test_values_become_the_nearest_codes_as_pytorch_has_them() -> None:
    generator = np.random.default_rng(0)
    codes = F8_E4M3.decode(CODES[(CODES & 0x7F) < 0x7F])
    positive = np.sort(codes[codes >= 0])
    ties = (positive[:-1] + positive[1:]) / 2
    values = np.concatenate(
        [codes, ties, -ties, np.nextafter(ties, 0), np.nextafter(ties, 999)]
        + [generator.standard_normal(10_000) * scale for scale in (1e-3, 1, 100)]
    ).astype(np.float32)
    values = values[np.abs(values) <= 448]
    expected = torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(encode_e4m3(values), expected)
    far = np.array([449, -1e9, 480], np.float32)
    np.testing.assert_array_equal(F8_E4M3.decode(encode_e4m3(far)), [448, -448, 448])


def _weight(rows: int, columns: int, block: tuple[int, int]) -> tuple[Weight, torch.Tensor]:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    codes, scales = quantise(matrix, block)
    weight = Weight(
        F8_E4M3,
        (rows, columns),
        codes.view(torch.uint8).numpy(),
        "w",
        BlockScales(scales.numpy(), *block),
    )
    return weight, dequantise(codes, scales, block)


def test_whole_blocks_are_as_transformers_dequantises_them() -> None:
    matrix = torch.randn(256, 384, generator=torch.Generator().manual_seed(0))
    codes, scales = quantise(matrix, (128, 128))
    expected = Fp8Dequantize(None)._dequantize_one(codes, scales, torch.float32)
    scaled = BlockScales(scales.numpy(), 128, 128)
    weight = Weight(F8_E4M3, (256, 384), codes.view(torch.uint8).numpy(), "w", scaled)
    np.testing.assert_array_equal(weight.values(), expected.numpy())


@pytest.mark.parametrize(("rows", "columns"), [(300, 200), (576, 128), (1, 1), (127, 129)])
def test_blocks_that_are_cut_short(rows: int, columns: int) -> None:
    weight, expected = _weight(rows, columns, (128, 128))
    np.testing.assert_array_equal(weight.values(), expected.numpy())


def test_rows_of_a_part_keep_their_scales() -> None:
    weight, expected = _weight(90, 40, (16, 8))
    for start, stop in ((0, 90), (5, 6), (15, 49), (16, 32), (89, 90)):
        part = weight.row_slice(start, stop)
        np.testing.assert_array_equal(part.values(), expected[start:stop].numpy())
        np.testing.assert_array_equal(part.decode(0, 1), expected[start : start + 1].numpy())
        again = part.row_slice(0, stop - start)
        np.testing.assert_array_equal(again.decode(), expected[start:stop].numpy())
    indices = np.array([7, 0, 89, 7], np.int32)
    np.testing.assert_array_equal(weight.decode_rows(indices), expected[indices].numpy())


def test_converting_decodes_with_the_scales() -> None:
    weight, expected = _weight(90, 40, (16, 8))
    np.testing.assert_array_equal(convert(weight, F32).values(), expected.numpy())


def test_scales_that_do_not_fit_the_weight() -> None:
    data = np.zeros((90, 40), np.uint8)
    for shape in ((5, 5), (6, 4), (6, 6)):
        with pytest.raises(FormatError, match="one for each block of 16 by 8"):
            Weight(F8_E4M3, (90, 40), data, "w", BlockScales(np.ones(shape, np.float32), 16, 8))
