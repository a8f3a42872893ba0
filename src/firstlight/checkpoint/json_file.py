"""Reading JSON from a stranger, strictly.

RFC 8259 leaves to the reader what to do with duplicate names, huge numbers and deep nesting.
Here each is refused, because two readers that disagree about them would see two models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from firstlight.checkpoint.files import read_limited, shown
from firstlight.errors import CheckpointError

LARGEST_CONFIG = 16 << 20
"""Bytes. Config files have some kilobytes; with lists of quantised layers, some hundreds."""

DEEPEST_NESTING = 64
_REMEDY = "Download the file again, or ask its publisher to correct it"


class _Refused(ValueError):
    """Raised inside the JSON parser, to leave it with a reason."""


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _Refused(f"gives {shown(name)} twice")
            seen.add(name)
    return result


def _constant(text: str) -> str:
    """What stands for NaN and infinities, which are not JSON but which Python's writer emits.

    Published configs do hold Infinity (an unbounded range). It stays a string, so that nothing
    mistakes it for a usable number; NaN means nothing anywhere.
    """
    if text == "NaN":
        raise _Refused("holds NaN, which is not JSON and not a number")
    return text


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused(f"holds the number {shown(text, 30)}, too large for a float")
    return value


# transformers writes int(1e30), 31 digits, as the `model_max_length` of a tokenizer without one.
_MOST_DIGITS = 40


def _number(text: str) -> int | float:
    """An integer of 64 bits; a larger one is the float nearest to it, as in most readers of JSON
    (RFC 8259, section 6), and so serves nowhere as a size."""
    if len(text) > _MOST_DIGITS:
        raise _Refused(f"holds the number {shown(text, 30)}, of more than {_MOST_DIGITS} digits")
    value = int(text)
    return value if -(1 << 63) <= value < 1 << 63 else float(value)


def parse_json_object(
    raw: bytes,
    path: Path,
    *,
    what: str = "",
    parse_int: Callable[[str], int | float] | None = None,
    parse_float: Callable[[str], float] | None = None,
) -> dict[str, Any]:
    """The JSON object in `raw`, UTF-8, duplicate names refused at every level.

    Args:
        raw: the bytes of the document.
        path: the file it came from, for messages.
        what: how messages call the document within the file; "" when it is the whole file.

    Raises:
        CheckpointError: not UTF-8, not JSON, not an object, nested too deeply, or NaN.
    """
    place = f"{what} " if what else ""

    def refuse(reason: str) -> NoReturn:
        raise CheckpointError(path, place + reason, _REMEDY) from None

    try:
        value = json.loads(
            raw.decode("utf-8-sig"),
            object_pairs_hook=_object_without_duplicates,
            parse_constant=_constant,
            parse_int=parse_int,
            parse_float=parse_float,
        )
    except UnicodeDecodeError as error:
        refuse(f"is not UTF-8 text (byte {error.start})")
    except json.JSONDecodeError as error:
        refuse(f"is not valid JSON ({error.msg} at line {error.lineno}, column {error.colno})")
    except RecursionError:
        refuse("is nested too deeply")
    except ValueError as error:  # ours, and Python's limit on the digits of an integer
        refuse(str(error) if isinstance(error, _Refused) else "holds a number with too many digits")
    if not isinstance(value, dict):
        refuse(f"holds a JSON {_kind(value)} where an object belongs")
    return value


def read_json_object(path: Path, limit: int = LARGEST_CONFIG) -> dict[str, Any]:
    """The JSON object in a config file, fit to be printed, compared and computed with.

    Beyond `parse_json_object`, integers fit 64 bits (larger ones become floats), floats are
    finite, no string holds half a surrogate pair, and nesting is at most 64 deep.

    Raises:
        CheckpointError: the file is missing, unreadable, over `limit` bytes, or not such JSON.
    """
    value = parse_json_object(
        read_limited(path, limit), path, parse_int=_number, parse_float=_finite
    )
    level: list[dict[str, Any] | list[Any]] = [value]
    for _ in range(DEEPEST_NESTING):
        below: list[dict[str, Any] | list[Any]] = []
        for container in level:
            items = [*container, *container.values()] if isinstance(container, dict) else container
            for item in items:
                if isinstance(item, (dict, list)):
                    below.append(item)
                elif isinstance(item, str) and not is_encodable(item):
                    raise CheckpointError(
                        path, f"holds text that is not Unicode: {shown(item)}", _REMEDY
                    )
        level = below
    if level:
        raise CheckpointError(path, f"is nested over {DEEPEST_NESTING} levels deep", _REMEDY)
    return value


def is_encodable(text: str) -> bool:
    """Whether `text` is free of lone surrogates, which JSON escapes can spell."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    if isinstance(value, list):
        return "array"
    if isinstance(value, str):
        return "string"
    return "constant" if value is None or isinstance(value, bool) else "number"
