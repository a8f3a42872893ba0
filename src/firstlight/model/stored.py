"""Rows of a spec's tensors as the checkpoint stores them: alone, fused, stacked, in two tensors."""

from __future__ import annotations

from math import prod

import numpy as np

from firstlight.errors import CheckpointError, FormatError
from firstlight.formats.base import Format, Weight
from firstlight.formats.mxfp4_pair import BLOCK_VALUES, CODE_BYTES, join_mxfp4
from firstlight.formats.plain import F32
from firstlight.formats.registry import get_format
from firstlight.model.tensor_files import TensorFiles
from firstlight.model.tensor_source import TensorSource

_CODE_FORMATS = ("u8", "i8")
_SCALE_FORMATS = ("u8", "f8_e8m0")


def stored_format(source: TensorSource, files: TensorFiles) -> Format:
    """Of a tensor's values; FormatError where it is not known. A part of its columns that divides
    blocks is given in float32."""
    if source.first_column is not None and _divides_blocks(source, column_unit(source, files)):
        return F32
    if source.scales is not None:
        return get_format("mxfp4")
    return files.format_of(source.name)


def column_unit(source: TensorSource, files: TensorFiles) -> int:
    """Columns of a stored matrix from one place where it can be divided as it is to the next."""
    return stored_rows(source.with_all_columns, files, 0, 1).column_unit


def _divides_blocks(source: TensorSource, unit: int) -> bool:
    first = source.first_column or 0
    stop = first + source.shape[-1]
    return bool(first % unit or (stop % unit and stop != source.all_columns))


def lies_in_rows(source: TensorSource) -> bool:
    """Whether its rows lie one after another in the file, each whole."""
    transposed = source.stack is not None and source.stack.transposed
    return source.row_step == 1 and source.scales is None and not transposed


def stored_rows(source: TensorSource, files: TensorFiles, start: int, stop: int) -> Weight:
    """Rows start:stop of a matrix, a view of the file where it lies in rows and has all columns.

    Raises:
        FormatError: the storage format cannot be read, or a scale is not a number.
    """
    if source.first_column is not None:
        return _some_columns(source, stored_rows(source.with_all_columns, files, start, stop))
    if source.scales is not None:
        return _joined_rows(source, files, start, stop)
    first = _first_row(source)
    if lies_in_rows(source):
        return files.rows(source.name, first + start, first + stop)
    stored = files.weight(source.name)
    if stored.scales is not None:
        raise FormatError(
            source.name,
            f"is stored in {stored.format.name} with scales of its own, and its rows do not lie "
            "one after another",
            "Use the model as it was published, or a GGUF file of it",
        )
    if source.stack is not None and source.stack.transposed:
        return _transposed_rows(source, stored, start, stop)
    data = stored.data[first + start * source.row_step :: source.row_step][: stop - start]
    shape = (stop - start, stored.columns)
    return Weight(stored.format, shape, np.ascontiguousarray(data), source.name)


def release_rows(source: TensorSource, files: TensorFiles, start: int, stop: int) -> None:
    """Rows start:stop of a matrix are not needed for now."""
    if lies_in_rows(source):
        first = _first_row(source)
        files.release(source.name, first + start, first + stop)
        return
    # Other parts' rows lie between: they are read next, and the last of them lets all go.
    if stop < source.shape[0]:
        return
    index, count = (0, 1) if source.stack is None else (source.stack.index, source.stack.count)
    per_matrix = prod(files.tensors[source.name].shape[:-1]) // count
    files.release(source.name, index * per_matrix, (index + 1) * per_matrix)


def stored_vector(source: TensorSource, files: TensorFiles) -> np.ndarray:
    """A vector as float32, without its offset."""
    stored = files.weight(source.name)
    if source.stack is not None:
        stored = stored.row_slice(source.stack.index, source.stack.index + 1)
    values = stored.decode().reshape(-1)
    first = source.first_row or 0
    return values[first :: source.row_step][: source.shape[0]].astype(np.float32)


def check_source(source: TensorSource, files: TensorFiles, family: str) -> None:
    """Whether the checkpoint has a tensor, and its scales, in the shapes that the spec says.

    Raises:
        CheckpointError: it is missing or has another shape than the config implies.
    """
    shape = source.stored_shape
    if source.scales is None:
        _check(source.name, shape, files, family)
        return
    columns = shape[-1]
    if columns % BLOCK_VALUES:
        raise CheckpointError(
            files.location,
            f"tensor {source.name!r} has rows of {columns} values, which blocks of {BLOCK_VALUES} "
            "do not fill",
            "Check that the config file and the weights belong to the same model",
        )
    blocks = (*shape[:-1], columns // BLOCK_VALUES)
    header = files.tensors.get(source.name)
    in_rows = header is not None and len(header.shape) == len(shape)
    codes = (*shape[:-1], columns // 2) if in_rows else (*blocks, CODE_BYTES)
    for name, expected, formats in (
        (source.name, codes, _CODE_FORMATS),
        (source.scales, blocks, _SCALE_FORMATS),
    ):
        _check(name, expected, files, family)
        if files.tensors[name].format not in formats:
            raise FormatError(
                files.location,
                f"tensor {name!r} is stored as {files.tensors[name].format}, and "
                f"{'scales' if name == source.scales else 'codes'} of mxfp4 are "
                f"{' or '.join(formats)}",
                "Fetch the model again from where it was published",
            )


def _check(name: str, shape: tuple[int, ...], files: TensorFiles, family: str) -> None:
    header = files.tensors.get(name)
    if header is None:
        _refuse_codes(name, files)
        raise CheckpointError(
            files.location,
            f"tensor {name!r} is missing, which family {family} needs with shape {list(shape)}",
            "Fetch the model again: the file may be incomplete or belong to another model",
        )
    found = tuple(header.shape)
    # A matrix of one row is as often stored as a vector.
    if found != shape and not (shape[0] == 1 and found == shape[1:]):
        raise CheckpointError(
            files.location,
            f"tensor {name!r} has shape {list(found)}, but the config implies {list(shape)}",
            "Check that the config file and the weights belong to the same model",
        )


def _refuse_codes(name: str, files: TensorFiles) -> None:
    """CheckpointError where a tensor is missing because it is stored in quantised codes, and the
    config does not say how."""
    stem = name.removesuffix("weight")
    for codes in (f"{stem}qweight", f"{stem}weight_packed"):
        if codes in files.tensors:
            raise CheckpointError(
                files.location,
                f"tensor {codes!r} holds quantised codes, and the config has no "
                "'quantization_config' that says of which kind",
                "Fetch config.json again from where the model was published",
            )


def _first_row(source: TensorSource) -> int:
    """Among all rows of the tensor."""
    rows = source.fused_rows or source.shape[0]
    stacked = 0 if source.stack is None else source.stack.index * rows
    return stacked + (source.first_row or 0)


def _some_columns(source: TensorSource, rows: Weight) -> Weight:
    first = source.first_column or 0
    stop = first + source.shape[-1]
    if not _divides_blocks(source, rows.column_unit):
        return rows.column_slice(first, stop)
    values = np.ascontiguousarray(rows.decode()[:, first:stop])
    data = values.view(np.uint8).reshape(len(values), -1)
    return Weight(F32, values.shape, data, source.name)


def _transposed_rows(source: TensorSource, stored: Weight, start: int, stop: int) -> Weight:
    assert source.stack is not None
    format, columns = stored.format, source.shape[-1]
    if format.block_values != 1:
        raise FormatError(
            source.name,
            f"is stored transposed in {format.name}, whose blocks then run across rows",
            "Use the model as it was published, or a GGUF file of it",
        )
    first = source.stack.index * columns
    data = stored.data[first : first + columns]
    values = data.reshape(columns, -1, format.block_bytes)
    begin = (source.first_row or 0) + start * source.row_step
    taken = values[:, begin :: source.row_step][:, : stop - start].swapaxes(0, 1)
    rows = np.ascontiguousarray(taken).reshape(stop - start, columns * format.block_bytes)
    return Weight(format, (stop - start, columns), rows, source.name)


def _joined_rows(source: TensorSource, files: TensorFiles, start: int, stop: int) -> Weight:
    assert source.scales is not None
    columns = source.shape[-1]
    blocks = columns // BLOCK_VALUES
    codes = files.integers(source.name).view(np.uint8).reshape(-1, blocks, CODE_BYTES)
    scales = files.integers(source.scales).reshape(-1, blocks)
    begin = _first_row(source) + start * source.row_step
    chosen = slice(begin, begin + (stop - start) * source.row_step, source.row_step)
    data = join_mxfp4(codes[chosen], scales[chosen], source.scales)
    return Weight(get_format("mxfp4"), (stop - start, columns), data, source.name)
