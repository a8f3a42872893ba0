"""What the user says: read from a pipe, or edited in a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from firstlight.cli.terminal import is_terminal
from firstlight.errors import RequestError

if TYPE_CHECKING:
    from prompt_toolkit.history import History

_LARGEST_INPUT_BYTES = 1 << 28


def read_input() -> str:
    """All of standard input, without its last line end: a shell adds that, not the user.

    Raises:
        RequestError: it is over 256 MiB, or not UTF-8.
    """
    return _without_line_end(_text(sys.stdin.buffer.read(_LARGEST_INPUT_BYTES + 1)))


def read_lines() -> Iterator[str]:
    """Standard input line by line, without line ends; raises as `read_input`."""
    while line := sys.stdin.buffer.readline(_LARGEST_INPUT_BYTES + 1):
        yield _without_line_end(_text(line))


def read_text_file(name: str) -> str:
    """A file's text, as it is.

    Raises:
        RequestError: it cannot be read, is over 256 MiB, or is not UTF-8.
    """
    try:
        with Path(name).open("rb") as file:
            data = file.read(_LARGEST_INPUT_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise RequestError(name, f"cannot be read: {reason}", "Check its name") from None
    return _text(data, name)


def edited_lines() -> Iterator[str]:
    """What the user writes in the terminal, until Ctrl-D: edited, with a history that is kept.

    Ctrl-C drops what was written so far. Alt-Enter adds a line.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import create_output

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    # On the terminal even where standard output goes to a file.
    output = None if is_terminal(sys.stdout) else create_output(always_prefer_tty=True)
    session: PromptSession[str] = PromptSession(
        history=_history(), key_bindings=keys, output=output
    )
    while True:
        try:
            line = session.prompt("> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        yield line


def _history() -> History:
    """Kept in a file that only its user can read; where that cannot be written, in memory."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    from firstlight.host.cache import cache_directory

    path = cache_directory() / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def _text(data: bytes, source: str = "standard input") -> str:
    if len(data) > _LARGEST_INPUT_BYTES:
        raise RequestError(
            source, f"is over {_LARGEST_INPUT_BYTES >> 20} MiB", "Give a shorter text"
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RequestError(source, f"is not UTF-8: {error}", "Convert it first") from None


def _without_line_end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")
