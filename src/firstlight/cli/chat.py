"""`firstlight chat`: talk with a model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from firstlight.cli.options import (
    add_hub,
    add_loading,
    add_model,
    add_sampling,
    generation_parameters,
    load_model,
)
from firstlight.errors import FirstlightError, RequestError

if TYPE_CHECKING:
    from firstlight.language_model import LanguageModel

_HELP = """\
/reset     forget the conversation
/system T  set the system message to T and forget the conversation
/again     have the last message answered again
/help      this list
/exit      leave (also Ctrl-D)
Ctrl-C stops an answer. Alt-Enter starts a new line. Up and Down walk through earlier messages."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `chat`."""
    add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    parser.add_argument(
        "-n", "--max-tokens", type=int, help="at most so many tokens an answer (default: no limit)"
    )
    add_loading(parser)
    add_sampling(parser)
    add_hub(parser)


def run(arguments: argparse.Namespace) -> int:
    """Read messages and answer them until the input ends."""
    model = load_model(arguments)
    conversation = Conversation(model, arguments.system, generation_parameters(arguments))
    conversation.check()
    if sys.stdin.isatty():
        print(f"{arguments.model}: /help lists commands, Ctrl-D leaves.", file=sys.stderr)
    for line in _lines():
        if not line.strip():
            continue
        try:
            if line.startswith("/"):
                if not _command(conversation, line.strip()):
                    break
            else:
                conversation.say(line)
        except FirstlightError as error:
            if not sys.stdin.isatty():
                raise
            print(f"firstlight: {error}", file=sys.stderr)
    return 0


class Conversation:
    """Messages so far, and how the model answers them."""

    def __init__(
        self, model: LanguageModel, system: str | None, parameters: dict[str, Any]
    ) -> None:
        self.model = model
        self.parameters = parameters
        self.system = system
        self.messages: list[dict[str, str]] = []

    def reset(self) -> None:
        """Forget all but the system message."""
        self.messages = []

    def check(self) -> None:
        """Raises TokenizerError or RequestError where the model cannot chat at all."""
        self._prompt([{"role": "user", "content": "Hello"}])

    def say(self, text: str) -> None:
        """Answer a message; on Ctrl-C what has come so far stays as the answer.

        Raises:
            FirstlightError: the message cannot be answered; it is forgotten then.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        generation = self.model.generate(self._prompt(messages), **self.parameters)
        answer = ""
        try:
            for piece in generation:
                print(piece.text, end="", flush=True)
                answer += piece.text
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        finally:
            generation.close()
        print()
        self.messages = [*messages, {"role": "assistant", "content": answer}]

    def again(self) -> None:
        """Answer the last message anew."""
        if not self.messages:
            raise RequestError("/again", "there is no message yet", "Write one")
        text = self.messages[-2]["content"]
        self.messages = self.messages[:-2]
        self.say(text)

    def _prompt(self, messages: list[dict[str, str]]) -> list[int]:
        first = [{"role": "system", "content": self.system}] if self.system else []
        return self.model.encode_chat([*first, *messages])


def _command(conversation: Conversation, line: str) -> bool:
    """Carry out a command; False leaves."""
    name, _, rest = line.partition(" ")
    match name:
        case "/exit" | "/quit":
            return False
        case "/reset":
            conversation.reset()
        case "/again":
            conversation.again()
        case "/system":
            conversation.system = rest.strip() or None
            conversation.reset()
        case "/help":
            print(_HELP, file=sys.stderr)
        case _:
            raise RequestError(name, "is no command", "Type /help for the list")
    return True


def _lines() -> Iterator[str]:
    """The user's messages: edited in a terminal, else a line each."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\r\n")
        return
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    from firstlight.host.cache import cache_directory

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    history = cache_directory() / "chat_history"
    history.parent.mkdir(parents=True, exist_ok=True)
    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(history)), key_bindings=keys
    )
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
