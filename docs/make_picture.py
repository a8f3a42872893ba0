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
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

COMMANDS = (
    'firstlight run demo "The first stars of the evening" -n 48',
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
    home = str(Path.home())
    return b"".join(chunks).decode(errors="replace").replace("\r\n", "\n").replace(home, "~")


if __name__ == "__main__":
    main()
