"""Scales of fp8 weights: found beside them, and checked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from firstlight.checkpoint.files import shown
from firstlight.checkpoint.quantization import FETCH, MATCHING, WHOLE, Float8Blocks
from firstlight.checkpoint.tensor_info import TensorInfo
from firstlight.errors import CheckpointError
from firstlight.formats.base import BlockScales, Bytes, Floats

# The types that scales are stored in; "u8" holds E8M0 codes.
_SCALE_FORMATS = ("f32", "bf16", "f16", "f8_e8m0", "u8")


def scale_tensor(
    info: TensorInfo, blocks: Float8Blocks | None, tensors: Mapping[str, TensorInfo]
) -> TensorInfo:
    """The header of the scales of an fp8 tensor, checked against it.

    Raises:
        CheckpointError: there are none, or their shape or type is not as the config says.
    """
    stem = info.name.removesuffix("weight")
    patterns = (blocks or Float8Blocks(1, 1)).names
    names = [pattern.format(name=info.name, stem=stem) for pattern in patterns]
    found = next((tensors[name] for name in names if name in tensors), None)
    if found is None:
        raise CheckpointError(
            info.file,
            f"tensor {shown(info.name)} is stored as fp8, and its scales {shown(names[0])} are "
            "missing",
            FETCH,
        )
    if blocks is None:
        raise CheckpointError(
            info.file,
            f"tensor {shown(info.name)} is stored as fp8, and the config has no "
            "'quantization_config' to say in which blocks",
            "Fetch config.json again from where the model was published",
        )
    if found.format not in _SCALE_FORMATS:
        raise CheckpointError(
            found.file,
            f"scales {shown(found.name)} are stored as {shown(found.format)}, not as one of "
            f"{', '.join(_SCALE_FORMATS)}",
            FETCH,
        )
    if len(info.shape) != 2 or not _fits(found.shape, blocks.scale_shape(info.shape), blocks):
        wanted = list(blocks.scale_shape(info.shape)) if len(info.shape) == 2 else "those of one"
        size = " by ".join("all" if n == WHOLE else str(n) for n in (blocks.rows, blocks.columns))
        raise CheckpointError(
            found.file,
            f"scales {shown(found.name)} have shape {list(found.shape)}, and tensor "
            f"{shown(info.name)} of shape {list(info.shape)} in blocks of {size} needs {wanted}",
            MATCHING,
        )
    return found


def _fits(shape: tuple[int, ...], wanted: tuple[int, int], blocks: Float8Blocks) -> bool:
    """Where there is one scale a row, or one in all, axes of one are left out as often as not."""
    if shape == wanted:
        return True
    return blocks.columns == WHOLE and [n for n in shape if n != 1] == [n for n in wanted if n != 1]


def block_scales(
    stored: Bytes, found: TensorInfo, info: TensorInfo, blocks: Float8Blocks
) -> BlockScales:
    """The scales that a checked tensor holds.

    Args:
        stored: their bytes.
        found, info: the headers of the scales, and of what they are for.

    Raises:
        CheckpointError: one is zero, negative, infinite or NaN.
    """
    values = _positive(stored, found).reshape(blocks.scale_shape(info.shape))
    rows, columns = (
        min(size, total)
        for size, total in zip((blocks.rows, blocks.columns), info.shape, strict=True)
    )
    return BlockScales(values, rows, columns)


def _positive(stored: Bytes, info: TensorInfo) -> Floats:
    from firstlight.formats.float8 import decode_e8m0
    from firstlight.formats.registry import get_format

    if info.format in ("f8_e8m0", "u8"):
        values = decode_e8m0(stored)
    else:
        values = get_format(info.format).decode(stored).astype(np.float32)
    wrong = ~(np.isfinite(values) & (values > 0))
    if wrong.any():
        first = int(wrong.reshape(-1).argmax())
        raise CheckpointError(
            info.file,
            f"scale {first} of {shown(info.name)} is {values.reshape(-1)[first]}, not a number "
            "above zero",
            "Fetch the model again: no published file has such a scale",
        )
    return values
