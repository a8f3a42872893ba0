"""Weights whose scales lie in tensors of their own, as `quantization_config` declares them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from firstlight.checkpoint.files import shown
from firstlight.checkpoint.tensor_info import TensorInfo
from firstlight.errors import CheckpointError, UnsupportedModelError
from firstlight.formats.base import BlockScales, Bytes, Floats

_PUBLISHED = "Use the model as it was published before it was quantised, or a GGUF file of it"
_FETCH = "Fetch the model again: its files may be incomplete, or not of one revision"
_LARGEST_BLOCK = 1 << 20
# The types that scales are stored in; "u8" holds E8M0 codes.
_SCALE_FORMATS = ("f32", "bf16", "f16", "f8_e8m0", "u8")


@dataclass(frozen=True)
class Float8Blocks:
    """fp8 (E4M3) with one scale for each block of a matrix, as DeepSeek-V3 was published.

    DeepSeek-V3 (arXiv:2412.19437), section 3.3.2; a value is its code's times `weight_scale_inv`
    of its block, or `scale` in DeepSeek's own layout.

    Attributes:
        rows, columns: of a block.
    """

    rows: int
    columns: int

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Of the scales of a matrix of that shape."""
        return -(-shape[0] // self.rows), -(-shape[1] // self.columns)


def quantization_of(config: Mapping[str, Any], subject: object) -> Float8Blocks | None:
    """What a config declares; None where it declares nothing.

    Raises:
        CheckpointError: what it declares makes no sense.
        UnsupportedModelError: it declares another method, which the message names.
    """
    declared = config.get("quantization_config")
    if declared is None:
        return None
    if not isinstance(declared, Mapping):
        raise CheckpointError(
            subject, "'quantization_config' in the config is not an object", _FETCH
        )
    method = declared.get("quant_method", "unknown")
    if method != "fp8":
        raise _unsupported(subject, f"'quantization_config' with method {shown(method)}")
    kind = declared.get("fmt", "e4m3")
    if kind not in ("e4m3", "float8_e4m3fn"):
        raise _unsupported(subject, f"method 'fp8' with values of type {shown(kind)}")
    block = declared.get("weight_block_size")
    if block is None:
        raise _unsupported(subject, "method 'fp8' without 'weight_block_size'")
    if (
        not isinstance(block, list | tuple)
        or len(block) != 2
        or not all(type(size) is int and 1 <= size <= _LARGEST_BLOCK for size in block)
    ):
        raise CheckpointError(
            subject,
            f"'weight_block_size' in the config is {shown(block)}, not two sizes of a block",
            _FETCH,
        )
    return Float8Blocks(*block)


def _unsupported(subject: object, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        subject,
        f"its weights are quantised ({what}), and firstlight does not read that yet",
        _PUBLISHED,
    )


def scale_tensor(
    info: TensorInfo, blocks: Float8Blocks | None, tensors: Mapping[str, TensorInfo]
) -> TensorInfo:
    """The header of the scales of an fp8 tensor, checked against it.

    Raises:
        CheckpointError: there are none, or their shape or type is not as the config says.
    """
    stem = info.name.removesuffix("weight")
    found = tensors.get(f"{info.name}_scale_inv") or tensors.get(f"{stem}scale")
    if found is None:
        raise CheckpointError(
            info.file,
            f"tensor {shown(info.name)} is stored as fp8, and its scales "
            f"{shown(info.name + '_scale_inv')} are missing",
            _FETCH,
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
            _FETCH,
        )
    if len(info.shape) != 2 or found.shape != blocks.scale_shape(info.shape):
        wanted = list(blocks.scale_shape(info.shape)) if len(info.shape) == 2 else "those of one"
        raise CheckpointError(
            found.file,
            f"scales {shown(found.name)} have shape {list(found.shape)}, and tensor "
            f"{shown(info.name)} of shape {list(info.shape)} in blocks of {blocks.rows} by "
            f"{blocks.columns} needs {wanted}",
            "Check that the config file and the weights belong to the same model",
        )
    return found


def block_scales(stored: Bytes, info: TensorInfo, blocks: Float8Blocks) -> BlockScales:
    """The scales that a checked tensor holds.

    Raises:
        CheckpointError: one is zero, negative, infinite or NaN.
    """
    values = _positive(stored, info).reshape(info.shape)
    return BlockScales(values, blocks.rows, blocks.columns)


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
