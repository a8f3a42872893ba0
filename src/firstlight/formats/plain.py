"""Unquantised formats: every value is a floating-point number of its own.

Decoding widens to float32 exactly, except from f64, which rounds to nearest even.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.errors import FormatError
from firstlight.formats.base import Bytes, Floats, Format


def _items(name: str, data: Bytes, dtype: str) -> NDArray[Any]:
    """uint8 [..., n * size] as [..., n] of `dtype`, a view where the last axis is contiguous."""
    size = np.dtype(dtype).itemsize
    if not data.shape or data.shape[-1] % size:
        raise FormatError(
            f"{name} data of shape {list(data.shape)}",
            f"the last axis is not whole values of {size} bytes",
            "Pass whole rows of the tensor",
        )
    data = np.asarray(data)
    if data.strides[-1] != 1:
        data = np.ascontiguousarray(data)
    items: NDArray[Any] = data.view(dtype)
    return items


def _decode_f32(data: Bytes) -> Floats:
    """A read-only view of `data` where it is aligned: nothing is copied from a mapped file."""
    values = np.require(_items("f32", data, "<f4"), np.float32, "A").view()
    values.flags.writeable = False
    return values


def _encode_f32(values: Floats) -> Bytes:
    return np.array(values, np.float32, order="C").view(np.uint8)


def _decode_f64(data: Bytes) -> Floats:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return _items("f64", data, "<f8").astype(np.float32)


def _encode_f64(values: Floats) -> Bytes:
    return np.array(values, np.float64, order="C").view(np.uint8)


def _decode_f16(data: Bytes) -> Floats:
    return _items("f16", data, "<f2").astype(np.float32)


def _encode_f16(values: Floats) -> Bytes:
    """IEEE 754 binary16, round to nearest even; beyond 65504 becomes infinite."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.ascontiguousarray(values, np.float32).astype(np.float16).view(np.uint8)


def _decode_bf16(data: Bytes) -> Floats:
    """bfloat16 is the upper half of a float32."""
    items = _items("bf16", data, "<u2")
    bits: NDArray[np.uint32] = np.left_shift(items, np.uint32(16), dtype=np.uint32)
    return bits.view(np.float32)


def _encode_bf16(values: Floats) -> Bytes:
    """Round to nearest even. NaN keeps its sign and upper payload and is made quiet."""
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32)
    # Half of the last kept bit, less one unless that bit is odd: ties go to even. An infinity has
    # zeros below, so nothing carries into its sign; NaN may carry, and is put right after.
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16).astype(np.uint16)
    nan = np.isnan(values)
    rounded[nan] = (bits[nan] >> 16).astype(np.uint16) | np.uint16(0x40)
    return rounded.view(np.uint8)


F64 = Format("f64", 1, 8, _decode_f64, _encode_f64)
F32 = Format("f32", 1, 4, _decode_f32, _encode_f32)
F16 = Format("f16", 1, 2, _decode_f16, _encode_f16)
BF16 = Format("bf16", 1, 2, _decode_bf16, _encode_bf16)

FORMATS = (F64, F32, F16, BF16)
