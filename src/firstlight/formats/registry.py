"""The storage formats firstlight knows, by name, and conversion from one to another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from firstlight.errors import FormatError
from firstlight.formats import codebooks, float4, float8, iq4, k_quants, legacy, plain, ternary
from firstlight.formats.base import Bytes, Floats, Format, Weight
from firstlight.host.processor import usable_cores

_FORMATS: dict[str, Format] = {
    format.name: format
    for formats in (
        plain.FORMATS,
        float8.FORMATS,
        legacy.FORMATS,
        k_quants.FORMATS,
        float4.FORMATS,
        iq4.FORMATS,
        codebooks.FORMATS,
        ternary.FORMATS,
    )
    for format in formats
}

ENCODING = 2
"""Raised whenever `encode` of any format gives other bytes than before: what was converted and kept
on disk is then converted anew."""

# The names users ask for when a model is to be converted while it is loaded.
ALIASES = {"int8": "q8_0", "int4": "q4_1"}

_ACTIVATIONS_ONLY = "ggml keeps activations in it while it multiplies, and stores no weights so"
_REPACKED = "it was a layout for one kind of processor, which ggml has since taken out of GGUF"
_UNPROVEN = "there is no reference decoder yet that firstlight's own could be proven against"
_NO_WEIGHTS = "it holds whole numbers, and a weight needs a floating-point or block format"

# Names of GGUF types and of tensor types that are refused knowingly, and why.
REFUSED = {
    "q8_1": _ACTIVATIONS_ONLY,
    "q8_k": _ACTIVATIONS_ONLY,
    "q1_0": _UNPROVEN,
    **dict.fromkeys(("q4_0_4_4", "q4_0_4_8", "q4_0_8_8"), _REPACKED),
    **dict.fromkeys(("iq4_nl_4_4", "iq4_nl_4_8", "iq4_nl_8_8"), _REPACKED),
    **dict.fromkeys(("i8", "i16", "i32", "i64"), _NO_WEIGHTS),
}

# Values that each thread of `convert` decodes at a time: half a MiB of float32.
_CONVERTED_VALUES = 1 << 17
_MOST_THREADS = 16


def known_formats() -> tuple[str, ...]:
    """Names of all formats, aliases not included: the plain ones first, then GGUF's."""
    return tuple(_FORMATS)


def get_format(name: str) -> Format:
    """The format called `name`, in any case; an alias (int8, int4) gives what it stands for.

    Raises:
        FormatError: no such format. It says which there are and which is nearest, or why a format
            that exists elsewhere is refused.
    """
    key = name.lower()
    format = _FORMATS.get(ALIASES.get(key, key))
    if format is not None:
        return format
    known = ", ".join((*_FORMATS, *ALIASES))
    if key in REFUSED:
        raise FormatError(
            f"storage format {name!r}",
            f"firstlight does not read it: {REFUSED[key]}",
            f"Use a checkpoint in one of: {known}",
        )
    import difflib

    nearest = difflib.get_close_matches(key, (*_FORMATS, *ALIASES), n=1, cutoff=0.0)
    raise FormatError(
        f"storage format {name!r}",
        f"firstlight does not know it; the nearest name is {nearest[0]!r}",
        f"Use one of: {known}",
    )


def conversion_target(name: str | None) -> Format | None:
    """The format that weights are to be converted to; None keeps them as they are stored.

    Raises:
        FormatError: no such format, or firstlight only reads it.
    """
    if name is None:
        return None
    target = get_format(name)
    if target.encode is None:
        writable = [known for known in known_formats() if get_format(known).encode is not None]
        raise FormatError(
            f"weights {name!r}",
            f"firstlight reads {target.name} but does not write it, so nothing can be converted "
            "to it",
            f"Use one of: {', '.join((*ALIASES, *writable))}",
        )
    return target


def convert(weight: Weight, format: Format) -> Weight:
    """`weight` in another format; `weight` itself where it is in that format already.

    Raises:
        FormatError: as `convert_into`.
    """
    if weight.format.name == format.name:
        return weight
    with _naming(weight):
        _check_written(format)
        data = np.empty((weight.rows, format.row_bytes(weight.columns)), np.uint8)
    convert_into(weight, format, data)
    return Weight(format, weight.shape, data, weight.name)


def convert_into(weight: Weight, format: Format, out: Bytes) -> None:
    """Write `weight` in another format to `out`, a few rows at a time: no whole float32 matrix is
    ever made.

    Args:
        out: uint8 [rows, format.row_bytes(columns)].

    Raises:
        FormatError: the format is only read, the columns do not fill whole blocks, or the values
            cannot be expressed (not finite, or beyond the range of a float16 scale).
    """
    with _naming(weight):
        _fill(out, weight, _check_written(format))


def _check_written(format: Format) -> Callable[[Floats], Bytes]:
    if format.encode is None:
        writable = ", ".join(f.name for f in _FORMATS.values() if f.encode is not None)
        raise FormatError(
            format.name,
            f"firstlight reads {format.name} but does not write it",
            f"Convert to one of: {', '.join(ALIASES)}, {writable}",
        )
    return format.fit or format.encode


@contextmanager
def _naming(weight: Weight) -> Iterator[None]:
    """Has a FormatError name the weight that it is about."""
    try:
        yield
    except FormatError as error:
        label = weight.name or f"a {weight.format.name} weight of shape {list(weight.shape)}"
        raise FormatError(label, f"{error.subject}: {error.reason}", error.remedy) from error


def _fill(data: Bytes, weight: Weight, encode: Callable[[Floats], Bytes]) -> None:
    step = max(1, _CONVERTED_VALUES // max(1, weight.columns))

    def fill(start: int) -> None:
        stop = min(start + step, weight.rows)
        data[start:stop] = encode(weight.decode(start, stop))

    starts = range(0, weight.rows, step)
    threads = min(usable_cores(), _MOST_THREADS, len(starts))
    if threads < 2:
        for start in starts:
            fill(start)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(fill, starts):
            pass
