"""Weights as they are published with scales in tensors of their own, of any shape."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from firstlight.formats.base import BlockScales, Format, Weight
from firstlight.formats.codes import E2M1, U4, U8
from firstlight.formats.float8 import encode_e4m3
from firstlight.formats.group_scales import GroupScales
from firstlight.formats.registry import get_format
from firstlight.verify.random_weights import random_weight

MakeWeight = Callable[[np.random.Generator, int, int], Weight]
"""(generator, rows, columns) -> a weight; columns are even."""

# Of others in the same tensors of scales before the weight's own, as of a part of a fused matrix.
_BEFORE = 3


def _block_scaled(block_rows: int, block_columns: int) -> MakeWeight:
    def make(generator: np.random.Generator, rows: int, columns: int) -> Weight:
        weight = random_weight(get_format("f8_e4m3"), rows, columns, generator)
        shape = -(-(_BEFORE + rows) // block_rows), -(-columns // block_columns)
        values = generator.uniform(0.25, 2.0, shape).astype(np.float32)
        scales = BlockScales(values, block_rows, block_columns, _BEFORE)
        return Weight(weight.format, weight.shape, weight.data, weight.name, scales)

    return make


def _group_scaled(
    codes: Format,
    stored: str,
    group: int,
    *,
    zeros: bool = False,
    reordered: bool = False,
    factor: float | None = None,
    divisor: float | None = None,
) -> MakeWeight:
    def make(generator: np.random.Generator, rows: int, columns: int) -> Weight:
        groups, of_scales = -(-columns // group), get_format(stored)
        encode = of_scales.encode or encode_e4m3
        data = generator.integers(0, 256, (rows, codes.row_bytes(columns)), dtype=np.uint8)
        half, count = (8 if codes is U4 else 128), _BEFORE + rows
        size = 1.0 if codes is E2M1 else half
        values = generator.uniform(0.25, 2.0, (count, groups)).astype(np.float32) / size
        if factor is not None or divisor is not None:
            values = values / np.float32(factor or 1) * np.float32(divisor or 1)
        each = generator.integers(half - 3, half + 4, (count, groups)).astype(np.int16)
        scales = GroupScales(
            encode(values),
            of_scales,
            group,
            zero=0 if zeros or codes is E2M1 else half,
            zeros=each if zeros else None,
            group_of=generator.integers(0, groups, columns).astype(np.intp) if reordered else None,
            factor=None if factor is None else np.float32(factor),
            divisor=None if divisor is None else np.float32(divisor),
            first_row=_BEFORE,
        )
        return Weight(codes, (rows, columns), data, f"random {codes.name}", scales)

    return make


SCALED_WEIGHTS: dict[str, MakeWeight] = {
    "f8_e4m3 in blocks": _block_scaled(16, 8),
    "f8_e4m3, a scale a row": _block_scaled(1, 1 << 20),
    "nvfp4 of two tensors, divided": _group_scaled(E2M1, "f8_e4m3", 16, divisor=100.0),
    "nvfp4 of two tensors, multiplied": _group_scaled(E2M1, "f8_e4m3", 16, factor=0.013),
    "int4 with zeros": _group_scaled(U4, "f16", 32, zeros=True),
    "int4, reordered": _group_scaled(U4, "bf16", 32, zeros=True, reordered=True),
    "int8, a scale a row": _group_scaled(U8, "f32", 1 << 20),
}
"""What `checkpoint/quantization.py` reads, by name."""
