"""The command `firstlight`: one file a subcommand, loaded when it is used."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from firstlight import __version__
from firstlight.cli.terminal import one_line
from firstlight.errors import FirstlightError

# Each module has `add_arguments(parser)` and `run(arguments) -> exit code`.
_COMMANDS = {
    "run": "continue a prompt, or answer it if the model is made for chat",
    "chat": "talk with a model",
    "serve": "serve models behind OpenAI's API, to many at once",
    "inspect": "say what a model is, what memory it needs, and whether it runs here",
    "verify": "compare a model's predictions in one configuration with a reference",
    "bench": "measure a model's speed beside this device's ceiling, or any server's under load",
    "convert": "write a model in another storage format, to a folder that others read too",
    "tune": "choose the fastest kernels for a model on this machine, by timing them",
    "devices": "list the chips found, with their measured ceilings",
    "cache": "list, verify or delete the packed weights on disk",
}

USER_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for bad input, 130 when interrupted."""
    warnings.showwarning = _show_warning
    _accept_every_character()
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except FirstlightError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has left
        _discard_output()
        return 0
    except OSError as error:
        _discard_output()
        place = error.filename or "standard input or output"
        return _refuse(f"{place}: {error.strerror or error}. Check the disk and its permissions.")


def _run(words: list[str]) -> int:
    parser = _parser(words)
    parsed = parser.parse_args(words)
    if parsed.command is None:
        parser.print_help()
        return 0
    code: int = import_module(f"firstlight.cli.{parsed.command}").run(parsed)
    return code


def _parser(words: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="firstlight",
        description="Run any open-weight language model on any chip.",
        epilog="Try: firstlight run demo 'A telescope is'",
    )
    parser.add_argument("--version", action="version", version=f"firstlight {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
        )
        if name in words:  # the others' modules are not loaded
            import_module(f"firstlight.cli.{name}").add_arguments(command)
    return parser


def _refuse(message: str) -> int:
    try:
        sys.stdout.flush()
    except OSError:
        _discard_output()
    print(f"firstlight: error: {one_line(message)}", file=sys.stderr)
    return USER_ERROR


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"firstlight: warning: {one_line(str(message))}", file=sys.stderr)


def _accept_every_character() -> None:
    """Let output that the locale cannot express show "?" instead of ending the program."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _discard_output() -> None:
    """Send what is still to be written nowhere; Python would complain while it closes."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
