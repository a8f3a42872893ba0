"""Rows of quantised matrices: in a format with fast kernels where that holds them exactly, else as
codes with scales of groups.

A value is (code - zero) * scale of its row and its column's group, in float32, with codes and zeros
as `quantized_layouts` says where to find them:

- gptq, awq: zeros as stored, in GPTQ's first format plus 1. That format's writers take 1 away from
  whole words of 32 bits, so it is added to whole words here (GPTQModel's
  `convert_gptq_v1_to_v2_format_module` does the same).
- awq: the eight codes of a word are rows 0, 2, 4, 6, 1, 3, 5, 7 of its eight (AutoAWQ's
  `gemm_pack`).
- pack-quantized: codes and zeros are signed, and stored plus half of their range.
- 4-bit floating point: the scale is that of the group over `weight_global_scale`
  (compressed-tensors), or times `weight_scale_2` (ModelOpt), rounded once to float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.checkpoint.files import shown
from firstlight.checkpoint.quantization import MATCHING, GroupCodes
from firstlight.checkpoint.quantized_layouts import QuantizedTensor
from firstlight.checkpoint.tensor_info import TensorInfo
from firstlight.errors import CheckpointError
from firstlight.formats.base import Bytes, Floats, Format, Weight
from firstlight.formats.codes import E2M1, U4, U8, pack_nibbles, unpack_nibbles
from firstlight.formats.group_scales import GroupScales
from firstlight.formats.integer_blocks import Zeros, join_blocks, lossless_format
from firstlight.formats.mxfp4_pair import CODE_BYTES, join_mxfp4
from firstlight.formats.registry import get_format

Read = Callable[[TensorInfo], NDArray[Any]]
"""A stored tensor as an array in its own shape; bytes where NumPy has no such type."""

_AWQ_ROWS = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word each of eight rows is."""

_DAMAGED = "Fetch the model again: no published file has such values"


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A quantised matrix whose scales have been looked at.

    Attributes:
        format: what its rows are given in.
        scales: of every row, where `format` is of bare codes; None where blocks hold them.
    """

    tensor: QuantizedTensor
    format: Format
    scales: GroupScales | None

    def rows(self, read: Read, start: int, stop: int) -> Weight:
        """Rows start:stop; a view of the file where codes lie there as they are needed."""
        tensor = self.tensor
        shape = (stop - start, tensor.info.shape[1])
        if self.scales is not None:
            data = _code_bytes(tensor, read, start, stop)
            scales = self.scales.from_row(start)
            return Weight(self.format, shape, data, tensor.info.name, scales)
        if self.format.name == "mxfp4":
            codes = read(tensor.codes)[start:stop].reshape(shape[0], -1, CODE_BYTES)
            data = join_mxfp4(codes, _raw(read, tensor.scales)[start:stop], tensor.scales.name)
        else:
            codes = _codes(tensor, read, start, stop)
            scales_of_rows = _scales(tensor, read, start, stop)
            zeros = _zeros(tensor, read, start, stop)
            data = join_blocks(codes, scales_of_rows, zeros, tensor.group, self.format)
        return Weight(self.format, shape, data, tensor.info.name)


def expected_format(tensor: QuantizedTensor) -> Format:
    """What `opened` will most likely find, from headers alone."""
    kind = tensor.kind
    if kind.layout == "mxfp4-pack-quantized":
        return get_format("mxfp4")
    if kind.layout in ("nvfp4-pack-quantized", "modelopt-nvfp4"):
        return E2M1
    whole = tensor.group % 32 == 0 and tensor.groups is None
    if whole and (kind.bits == 4 or kind.symmetric):
        return get_format("q8_0" if kind.bits == 8 else "q4_0" if kind.symmetric else "q5_0")
    return U4 if kind.bits == 4 else U8


def opened(tensor: QuantizedTensor, read: Read) -> QuantizedWeight:
    """The matrix, its scales and zeros read and checked.

    Raises:
        CheckpointError: a scale is zero, infinite or NaN, a column's group does not exist, or the
            shape that the file states is not that of its codes.
    """
    kind = tensor.kind
    if tensor.stated_shape is not None:
        stated = [int(size) for size in read(tensor.stated_shape)]
        if stated != list(tensor.info.shape):
            raise _wrong(
                tensor.stated_shape,
                f"states a shape of {stated}, and the codes are {list(tensor.info.shape)}",
                MATCHING,
            )
    if kind.layout == "mxfp4-pack-quantized":
        if (_raw(read, tensor.scales) == 255).any():
            raise _wrong(tensor.scales, "holds a scale that is NaN (the E8M0 byte 255)")
        return QuantizedWeight(tensor, get_format("mxfp4"), None)
    if tensor.factor is not None:
        return QuantizedWeight(tensor, E2M1, _float4_scales(tensor, read))
    rows = tensor.info.shape[0]
    group_of = _group_of(tensor, read)
    scales = _scales(tensor, read, 0, rows)
    wrong = ~np.isfinite(scales) | (scales == 0)
    if wrong.any():
        row, group = (int(place) for place in np.argwhere(wrong)[0])
        raise _wrong(
            tensor.scales,
            f"has a scale of {scales[row, group]}, for row {row} and group {group}",
        )
    zeros = _zeros(tensor, read, 0, rows)
    if group_of is None:
        format = lossless_format(kind.bits, tensor.group, scales, zeros)
        if format is not None and tensor.info.shape[1] % format.block_values == 0:
            return QuantizedWeight(tensor, format, None)
    groups = GroupScales(
        _stored_scales(tensor, read),
        get_format(tensor.scales.format),
        tensor.group,
        zeros if isinstance(zeros, int) else 0,
        None if isinstance(zeros, int) else zeros,
        group_of,
    )
    return QuantizedWeight(tensor, U4 if kind.bits == 4 else U8, groups)


def _wrong(info: TensorInfo, reason: str, remedy: str = _DAMAGED) -> CheckpointError:
    return CheckpointError(info.file, f"tensor {shown(info.name)} {reason}", remedy)


# Codes -----------------------------------------------------------------------------------


def _code_bytes(tensor: QuantizedTensor, read: Read, start: int, stop: int) -> Bytes:
    """Rows of codes as the formats of bare codes have them."""
    kind = tensor.kind
    if kind.layout == "pack-quantized":
        return read(tensor.codes)[start:stop].view(np.uint8)
    if kind.layout in ("nvfp4-pack-quantized", "modelopt-nvfp4"):
        return read(tensor.codes)[start:stop]
    codes = _codes(tensor, read, start, stop)
    return pack_nibbles(codes) if kind.bits == 4 else codes


def _codes(tensor: QuantizedTensor, read: Read, start: int, stop: int) -> Bytes:
    """Whole numbers from 0 up: uint8 [stop - start, columns]."""
    kind, stored = tensor.kind, read(tensor.codes)
    if kind.layout == "pack-quantized":
        words = stored[start:stop].view(np.uint8)
        return unpack_nibbles(words) if kind.bits == 4 else words
    if kind.layout == "int-quantized":
        shifted: Bytes = stored[start:stop].view(np.uint8) ^ np.uint8(128)
        return shifted
    if kind.layout == "gptq":
        words = np.ascontiguousarray(stored[:, start:stop].T).view(np.uint8)
        return unpack_nibbles(words) if kind.bits == 4 else words
    return np.ascontiguousarray(_packed_rows(stored, kind, start, stop).T)


def _packed_rows(words: NDArray[Any], kind: GroupCodes, start: int, stop: int) -> Bytes:
    """Codes start:stop along the last axis of words i32 [n, ...], packed along that axis."""
    across = 32 // kind.bits
    first, last = start // across, -(-stop // across)
    taken = np.ascontiguousarray(words[:, first:last]).view(np.uint8)
    codes = unpack_nibbles(taken) if kind.bits == 4 else taken
    if kind.layout == "awq":
        codes = codes.reshape(len(codes), -1, across)[:, :, _AWQ_ROWS].reshape(codes.shape)
    return codes[:, start - first * across : stop - first * across]


# Scales and zeros ------------------------------------------------------------------------


def _raw(read: Read, info: TensorInfo) -> Bytes:
    return read(info).view(np.uint8)


def _stored_scales(tensor: QuantizedTensor, read: Read) -> Bytes:
    """As stored, one row for each of the matrix: uint8 [rows, groups * bytes]."""
    rows = tensor.info.shape[0]
    scales = read(tensor.scales)
    if tensor.kind.layout in ("gptq", "awq"):
        scales = np.ascontiguousarray(scales.T)
    elif scales.size == 1 and rows != 1:
        scales = np.repeat(scales.reshape(1, 1), rows, axis=0)
    return np.ascontiguousarray(scales).reshape(rows, -1).view(np.uint8)


def _scales(tensor: QuantizedTensor, read: Read, start: int, stop: int) -> Floats:
    """float32 [stop - start, groups]."""
    stored = read(tensor.scales)
    format = get_format(tensor.scales.format)
    if tensor.kind.layout in ("gptq", "awq"):
        part = np.ascontiguousarray(stored[:, start:stop].T)
    elif stored.size == 1:
        part = np.repeat(stored.reshape(1, 1), stop - start, axis=0)
    else:
        part = np.ascontiguousarray(stored.reshape(tensor.info.shape[0], -1)[start:stop])
    return format.decode(part.view(np.uint8))


def _zeros(tensor: QuantizedTensor, read: Read, start: int, stop: int) -> Zeros | int:
    """int16 [stop - start, groups], or one for all."""
    kind = tensor.kind
    if tensor.zeros is None:
        return 1 << kind.bits - 1
    stored = read(tensor.zeros)
    if kind.layout in ("gptq", "awq"):
        if kind.zero_offset:
            every = sum(kind.zero_offset << shift for shift in range(0, 32, kind.bits))
            stored = stored.view(np.uint32) + np.uint32(every)
        return np.ascontiguousarray(_packed_rows(stored, kind, start, stop).T).astype(np.int16)
    if tensor.zeros.format == "i32":  # packed along rows
        codes = _packed_rows(np.ascontiguousarray(stored.T), kind, start, stop)
        return np.ascontiguousarray(codes.T).astype(np.int16)
    middle = np.int16(1 << kind.bits - 1)
    if stored.size == 1:
        stored = np.repeat(stored.reshape(1, 1), tensor.info.shape[0], axis=0)
    signed: Zeros = stored.reshape(tensor.info.shape[0], -1)[start:stop].astype(np.int16)
    return signed + middle


def _group_of(tensor: QuantizedTensor, read: Read) -> NDArray[np.intp] | None:
    """The group of every column; None where groups are neighbours."""
    if tensor.groups is None:
        return None
    columns = tensor.info.shape[1]
    found = read(tensor.groups).astype(np.intp)
    count = -(-columns // tensor.group)
    wrong = (found < 0) | (found >= count)
    if wrong.any():
        column = int(wrong.argmax())
        raise _wrong(
            tensor.groups,
            f"puts column {column} into group {found[column]}, and there are {count}",
        )
    if np.array_equal(found, np.arange(columns) // tensor.group):
        return None
    return found


def _float4_scales(tensor: QuantizedTensor, read: Read) -> GroupScales:
    assert tensor.factor is not None
    factor = np.float32(read(tensor.factor).reshape(-1)[0])
    if not (np.isfinite(factor) and factor > 0):
        raise _wrong(tensor.factor, f"is {factor}, not a number above zero")
    stored = _raw(read, tensor.scales)
    if ((stored & 0x7F) == 0x7F).any():
        raise _wrong(tensor.scales, "holds a scale that is NaN")
    divides = tensor.kind.layout == "nvfp4-pack-quantized"
    return GroupScales(
        stored,
        get_format("f8_e4m3"),
        tensor.group,
        factor=None if divides else factor,
        divisor=factor if divides else None,
    )
