"""firstlight's commands: called in this process, or started in a terminal of their own."""

from __future__ import annotations

import io
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest

from firstlight.cli.main import main

# What prompt_toolkit writes once it waits for input: bracketed paste on ... cursor shown.
_PROMPT = r"\?2004h.*?\?12l\x1b\[\?25h"


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str


class Commands:
    """Calls commands in this process. Standard input is a pipe; output is captured."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *words: object, stdin: bytes | str = b"") -> Done:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        self._capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as exit:  # argparse's own
            code = exit.code if isinstance(exit.code, int) else 1
        captured = self._capsys.readouterr()
        return Done(code, captured.out, captured.err)


def assert_refused(done: Done, *words: str) -> None:
    """Exit code 2, one line of error that has these words, no output, no traceback."""
    assert done.code == 2, done
    assert done.out == ""
    assert "Traceback" not in done.err
    lines = [line for line in done.err.splitlines() if "warning:" not in line]
    assert len(lines) == 1, done.err
    assert lines[0].startswith("firstlight: error: ")
    assert lines[0].endswith(".")
    for word in words:
        assert word in lines[0], lines[0]


class Terminal:
    """A command in a pseudo-terminal of 100 columns, its standard output perhaps in a file."""

    def __init__(
        self, cache: Path, *words: object, output: Path | None = None, **environment: str
    ) -> None:
        redirection = "" if output is None else f" >{shlex.quote(str(output))}"
        self.child = pexpect.spawn(
            "/bin/sh",
            [
                *("-c", f'exec "$0" -m firstlight "$@"{redirection}', sys.executable),
                *map(str, words),
            ],
            env={
                **os.environ,
                "FIRSTLIGHT_CACHE": str(cache),
                "FIRSTLIGHT_SKIP_KERNEL_CHECK": "1",
                "PROMPT_TOOLKIT_NO_CPR": "1",
                "TERM": "xterm",
                **environment,
            },
            use_poll=True,  # select() knows no descriptor past 1023; other tests hold many
            encoding="utf-8",
            timeout=60,
            dimensions=(40, 100),
        )
        self.log = io.StringIO()
        self.child.logfile_read = self.log

    def prompt(self) -> None:
        """Wait until a message can be typed."""
        self.child.expect(_PROMPT)

    def send(self, keys: str) -> None:
        self.child.send(keys)

    def say(self, text: str) -> None:
        """Wait for the prompt, type, and press Enter."""
        self.prompt()
        self.child.send(text + "\r")

    def see(self, pattern: str) -> str:
        """Wait for a regular expression; what came before and with it."""
        self.child.expect(pattern)
        return f"{self.child.before}{self.child.after}"

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.child.sendintr()

    def leave(self) -> int | None:
        """Press Ctrl-D at the prompt; the exit code."""
        self.prompt()
        self.child.sendeof()
        return self.exit_code()

    def exit_code(self) -> int | None:
        """Wait for the end; the exit code, None if a signal ended it."""
        self.child.expect(pexpect.EOF)
        self.child.close()
        code: int | None = self.child.exitstatus
        return code

    def close(self) -> None:
        self.child.close(force=True)
