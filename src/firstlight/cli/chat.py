"""`firstlight chat`: talk with a model."""

from __future__ import annotations

import argparse
import sys

from firstlight.cli.conversation import Conversation
from firstlight.cli.input import edited_lines, read_lines
from firstlight.cli.options import (
    add_hub,
    add_loading,
    add_model,
    add_sampling,
    add_speculation,
    generation_parameters,
    load_model,
)
from firstlight.cli.terminal import dim, is_terminal, one_line
from firstlight.errors import FirstlightError, RequestError

_HELP = """\
/reset         forget the conversation
/system TEXT   forget it, and set the system message; without TEXT there is none
/again         have the last message answered again
/help          this list
/exit          leave (also Ctrl-D)
Ctrl-C stops an answer. Alt-Enter starts a new line. Up and Down walk through earlier messages.
A message that begins with / is written with a space before it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `chat`."""
    parser.epilog = (
        "In a terminal: /help lists what can be typed besides messages. From a pipe: each line is "
        "a message, and is answered in turn."
    )
    add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    parser.add_argument(
        "-n",
        "--max-tokens",
        type=int,
        metavar="COUNT",
        help="at most so many tokens an answer (default: what the context holds)",
    )
    add_loading(parser)
    add_speculation(parser)
    add_sampling(parser)
    add_hub(parser)


def run(arguments: argparse.Namespace) -> int:
    """Read messages and answer them until the input ends."""
    parameters = generation_parameters(arguments)
    model = load_model(arguments, "chat", speculation=arguments.speculate)
    interactive = is_terminal(sys.stdin)
    conversation = Conversation(model, arguments.system, parameters, interactive)
    conversation.check()
    if not interactive:
        for line in read_lines() if sys.stdin is not None else ():
            if not _take(conversation, line):
                break
        return 0
    from firstlight.cli.report import licence_line

    _remark(licence_line(arguments.model, model))
    _remark(f"{arguments.model}: /help lists commands, Ctrl-D leaves.")
    for line in edited_lines():
        try:
            if not _take(conversation, line):
                break
        except FirstlightError as error:
            print(f"firstlight: {one_line(str(error))}", file=sys.stderr)
        except KeyboardInterrupt:
            _remark("stopped")
    return 0


def _take(conversation: Conversation, line: str) -> bool:
    """Answer a message, or carry out a command; False leaves."""
    if not line.strip():
        return True
    if not line.startswith("/"):
        _remark(conversation.say(line.removeprefix(" ") if line.startswith(" /") else line))
        return True
    name, _, rest = line.strip().partition(" ")
    match name:
        case "/exit" | "/quit":
            return False
        case "/reset":
            conversation.reset()
            _remark("The conversation is forgotten.")
        case "/again":
            _remark(conversation.again())
        case "/system":
            conversation.set_system(rest.strip() or None)
            _remark("The conversation begins anew.")
        case "/help":
            print(_HELP, file=sys.stderr)
        case _:
            raise RequestError(
                name,
                "is no command",
                "Type /help for the list, or a space first if this is a message",
            )
    return True


def _remark(text: str | None) -> None:
    """Something for the person who watches; never among the output."""
    if text and is_terminal(sys.stderr):
        print(dim(text, sys.stderr), file=sys.stderr)
