"""Draws docs/run.svg: a real run of the demo model, as a terminal shows it.

    python docs/make_picture.py

The command runs in a pseudo-terminal, so that what is drawn is what a person sees.
"""

from __future__ import annotations

import io
import os
import pty
import shlex
import sys
import sysconfig
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

COMMANDS = (
    'firstlight run demo "A telescope is" -n 38',
    "firstlight inspect demo",
)


def main() -> None:
    """Run the commands and write the picture."""
    console = Console(record=True, width=100, file=io.StringIO())
    for command in COMMANDS:
        console.print(Text(f"$ {command}", style="bold green"))
        console.print(Text.from_ansi(_output(command)))
        console.print()
    svg = console.export_svg(title="firstlight", theme=MONOKAI)
    Path(__file__).with_name("run.svg").write_text(svg)


def _output(command: str) -> str:
    words = [sys.executable, "-m", *shlex.split(command)]
    chunks: list[bytes] = []

    def read(descriptor: int) -> bytes:
        data = os.read(descriptor, 65536)
        chunks.append(data)
        return data

    pty.spawn(words, read)
    text = b"".join(chunks).decode(errors="replace").replace("\r\n", "\n")
    for directory, name in ((sysconfig.get_path("purelib"), "site-packages"), (Path.home(), "~")):
        text = text.replace(str(directory), name)
    return text.rstrip()


if __name__ == "__main__":
    main()
