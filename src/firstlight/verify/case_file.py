"""Conformance cases in a file, for a program that checks kernels where there is no Python.

    python -m firstlight.verify.case_file cases.bin [--quick]

native/tests/ reads the file. All numbers in it are little-endian::

    file        "firstlight cases 2\\n", then cases to the end
    case        text op, text name, float64 absolute tolerance, uint32 count and so many
                arguments, uint32 count and so many expectations
    argument    text name, value
    expectation text rounding (see ops/rounding.py), float64 relative tolerance, value: what
                the op returns or, where it changes an argument, that argument afterwards
    value       one byte of kind; for "f", "i", "h" or "b" (float32, int32, bfloat16 as uint16,
                uint8) uint32 axes, an int64 for each, and the elements; for "n" a float64; for
                "t" a text
    text        uint32 bytes, and these in UTF-8

Arguments bear the names of the definition's parameters. A weight `w` becomes `w`, its bytes, with
`w.format` and `w.columns`, and `w.scales`, `w.scales.rows`, `w.scales.columns` and
`w.scales.first_row` if it has scales of blocks, `w.groups`, `w.groups.factor` and
`w.groups.divisor` if it is NVFP4; a PagedRows `rows` becomes `rows.row_starts` and so on, and so
does any other group of numbers. What is None is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, get_args

import numpy as np

from firstlight.backends.numpy.backend import NumpyBackend
from firstlight.formats.base import BlockScales, Weight
from firstlight.formats.group_scales import GroupScales
from firstlight.host.cache import write_atomically
from firstlight.ops.contract import Op, all_ops
from firstlight.ops.paging import PagedRows
from firstlight.ops.rounding import Rounding
from firstlight.verify.cases import Case, StreamArgument, cases_of

_MAGIC = b"firstlight cases 2\n"
# Kernels of these would be of Python here as well, and their choices are no arrays.
_CHOOSING = ("choose_tokens", "likeliest_tokens", "token_log_probabilities")
_KINDS = {np.dtype(np.float32): b"f", np.dtype(np.int32): b"i", np.dtype(np.uint16): b"h",
          np.dtype(np.uint8): b"b"}  # fmt: skip

# How kernels of an op may round their activations; of others, not at all.
_ROUNDINGS: dict[str, tuple[Rounding, ...]] = {
    "linear": get_args(Rounding),
    "attention": ("none", "bfloat16"),
}


def write_cases(path: Path, *, quick: bool = False) -> int:
    """Write the cases of every op that is no composite and chooses no tokens, with the definitions'
    results.

    Args:
        path: the file; whole when this returns, and not there at all where it raises.
        quick: only the short selection of cases.

    Returns:
        How many cases were written.

    Raises:
        FirstlightError: the file cannot be written.
    """
    count = 0

    def write(file: BinaryIO) -> None:
        nonlocal count
        file.write(_MAGIC)
        for op in all_ops():
            if op.composite or op.name in _CHOOSING:
                continue
            for case in cases_of(op.name):
                if case.quick or not quick:
                    file.write(_case(op, case))
                    count += 1

    write_atomically(path, write)
    return count


def _case(op: Op, case: Case) -> bytes:
    names = tuple(inspect.signature(op.definition).parameters)
    fields = [
        field
        for name, argument in zip(names, case.arguments(), strict=False)
        for field in _fields(name, argument)
    ]
    roundings = _ROUNDINGS.get(op.name, ("none",))
    parts = [
        _text(op.name),
        _text(case.name),
        struct.pack("<d", op.tolerance.absolute),
        struct.pack("<I", len(fields)),
        *(_text(name) + _value(value) for name, value in fields),
        struct.pack("<I", len(roundings)),
        *(_expectation(op, case, rounding) for rounding in roundings),
    ]
    return b"".join(parts)


def _expectation(op: Op, case: Case, rounding: Rounding) -> bytes:
    tipped = 0.0 if rounding == "none" else op.tolerance.tipped
    relative = struct.pack("<d", op.tolerance.relative + tipped)
    return _text(rounding) + relative + _value(_expected(op, case, rounding))


def _expected(op: Op, case: Case, rounding: Rounding) -> Any:
    """What the op returns, or the argument that it writes, afterwards."""
    given = [a.pages if isinstance(a, StreamArgument) else a for a in case.arguments()]
    with np.errstate(all="ignore"):
        result = NumpyBackend(lambda _: rounding).call(op.name, *given)
    if not op.writes:
        return result
    (written,) = op.writes
    return given[written]


def _fields(name: str, argument: Any) -> Iterator[tuple[str, Any]]:
    """An op's argument as named arrays, numbers and texts."""
    if argument is None:
        return
    if isinstance(argument, Weight):
        yield name, argument.data
        yield f"{name}.format", argument.format.name
        yield f"{name}.columns", argument.columns
        if isinstance(argument.scales, BlockScales):
            yield f"{name}.scales", argument.scales.values
            yield f"{name}.scales.rows", argument.scales.rows
            yield f"{name}.scales.columns", argument.scales.columns
            yield f"{name}.scales.first_row", argument.scales.first_row
        if isinstance(argument.scales, GroupScales):
            factor, divisor = argument.scales.factor, argument.scales.divisor
            own = slice(argument.scales.first_row, argument.scales.first_row + argument.rows)
            yield f"{name}.groups", np.ascontiguousarray(argument.scales.data[own])
            yield f"{name}.groups.factor", 1.0 if factor is None else factor
            yield f"{name}.groups.divisor", 1.0 if divisor is None else divisor
    elif isinstance(argument, PagedRows):
        for part in ("row_starts", "positions", "page_table", "page_tokens"):
            yield f"{name}.{part}", getattr(argument, part)
    elif isinstance(argument, StreamArgument):
        yield name, argument.pages
    elif dataclasses.is_dataclass(argument):
        for field in dataclasses.fields(argument):
            yield f"{name}.{field.name}", getattr(argument, field.name)
    else:
        yield name, argument


def _value(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        shape = struct.pack(f"<I{value.ndim}q", value.ndim, *value.shape)
        return _KINDS[value.dtype] + shape + value.astype(value.dtype.newbyteorder("<")).tobytes()
    if isinstance(value, str):
        return b"t" + _text(value)
    return b"n" + struct.pack("<d", float(value))


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<I", len(encoded)) + encoded


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description="Write conformance cases for a native program.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--quick", action="store_true", help="only the short selection")
    parsed = parser.parse_args(arguments)
    print(f"{write_cases(parsed.file, quick=parsed.quick)} cases")


if __name__ == "__main__":
    main()
