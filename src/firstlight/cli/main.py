"""The command `firstlight`: one file a subcommand, loaded when it is used."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from firstlight import __version__
from firstlight.errors import FirstlightError

# Each module has `add_arguments(parser)` and `run(arguments) -> exit code`.
_COMMANDS = {
    "run": "continue a prompt, or answer it if the model is made for chat",
    "chat": "talk with a model",
    "inspect": "say what a model is, what memory it needs, and whether it runs here",
    "devices": "list the chips found, with their measured ceilings",
}

USER_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for bad input, 130 when interrupted."""
    warnings.showwarning = _show_warning
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(words)
    parsed = parser.parse_args(words)
    if parsed.command is None:
        parser.print_help()
        return 0
    try:
        code: int = import_module(f"firstlight.cli.{parsed.command}").run(parsed)
        sys.stdout.flush()
        return code
    except FirstlightError as error:
        sys.stdout.flush()
        print(f"firstlight: error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has left; Python would complain once more while it closes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="firstlight",
        description="Run any open-weight language model on any chip.",
        epilog="Try: firstlight run demo 'The first stars'",
    )
    parser.add_argument("--version", action="version", version=f"firstlight {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary.capitalize() + ".")
        if name in words:  # the others' modules are not loaded
            import_module(f"firstlight.cli.{name}").add_arguments(command)
    return parser


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"firstlight: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
