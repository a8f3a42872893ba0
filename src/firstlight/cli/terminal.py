"""What may reach a terminal, and how it looks there.

A model writes what it likes, file names and headers are chosen by strangers, and a terminal obeys
control characters: some move the cursor, change the title, or type for the user. So everything that
firstlight did not write itself goes through here on its way to a terminal.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO

# C0 without line feed and tab, DEL, and C1, which UTF-8 terminals obey too (ECMA-48, section 5).
# A carriage return only ends lines here, and is left out; it could overwrite what stands before it.
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0)]
_ESCAPES = {code: f"\\x{code:02x}" for code in _CONTROLS if chr(code) not in "\n\t\r"}
_HARMLESS = {**_ESCAPES, ord("\r"): None}
_JSON_ESCAPES = {code: f"\\u{code:04x}" for code in [*range(0x7F, 0xA0), *range(0xD800, 0xE000)]}


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody may be sitting before it."""
    return stream is not None and stream.isatty()


def harmless(text: str) -> str:
    """`text` with control characters spelt out (ESC as \\x1b); line ends and tabs stay."""
    return text.translate(_HARMLESS)


def one_line(text: str) -> str:
    """`text` on one line, harmless."""
    return harmless(" ".join(text.splitlines()))


def write_text(text: str) -> None:
    """Print a piece of a model's text at once: as it is, but harmless where that is a terminal."""
    print(harmless(text) if is_terminal(sys.stdout) else text, end="", flush=True)


def dim(text: str, stream: TextIO) -> str:
    """`text`, harmless, and in a dim colour where `stream` is a terminal that has one.

    NO_COLOR and TERM=dumb are honoured (https://no-color.org).
    """
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if plain or not is_terminal(stream):
        return harmless(text)
    return f"\x1b[2m{harmless(text)}\x1b[0m"


def json_text(value: Any) -> str:
    """`value` as JSON on one line; all characters as they are but controls and half surrogates."""
    return json.dumps(value, ensure_ascii=False).translate(_JSON_ESCAPES)
