"""A conversation with a model, answered on standard output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from firstlight.cli.terminal import write_text
from firstlight.errors import RequestError

if TYPE_CHECKING:
    from firstlight.language_model import LanguageModel

_LARGEST_SEED = (1 << 64) - 1

Message = dict[str, str]


class Conversation:
    """Messages so far, and how the model answers them.

    Args:
        model: one with a chat template.
        system: a system message that stands before all others, or None.
        parameters: as `LanguageModel.generate` takes them.
        interruptible: Ctrl-C ends an answer; else it ends the program.

    Attributes:
        messages: the user's and the model's in turn, without the system message.
    """

    def __init__(
        self,
        model: LanguageModel,
        system: str | None,
        parameters: dict[str, Any],
        interruptible: bool,
    ) -> None:
        self._model, self._system = model, system
        self._parameters, self._interruptible = parameters, interruptible
        self.messages: list[Message] = []
        self._last: str | None = None
        self._attempts = 0

    def check(self) -> None:
        """Whether the model can chat at all, with this system message.

        Raises:
            TokenizerError: its chat template is faulty.
            RequestError: its chat template objects.
        """
        self._encode([{"role": "user", "content": "Hello"}])

    def reset(self) -> None:
        """Forget all but the system message."""
        self.messages = []
        self._last = None

    def set_system(self, text: str | None) -> None:
        """Begin anew with another system message; raises as `check`, and then nothing changes."""
        before = self._system
        self._system = text
        try:
            self.check()
        except BaseException:
            self._system = before
            raise
        self.reset()

    def say(self, text: str) -> str | None:
        """Answer a message, as `again` does from then on.

        On Ctrl-C the answer ends, and what has come stays as the answer; where nothing has come,
        the message is dropped.

        Returns:
            What the user should know about the answer's end, or None.

        Raises:
            FirstlightError: the message cannot be answered; it is dropped then.
        """
        self._last, self._attempts = text, 0
        return self._answer(self.messages, text)

    def again(self) -> str | None:
        """Answer the last message anew; as `say`.

        Raises:
            RequestError: there is none.
        """
        if self._last is None:
            raise RequestError("/again", "there is no message yet", "Write one")
        answered = bool(self.messages) and self.messages[-2]["content"] == self._last
        self._attempts += 1
        return self._answer(self.messages[:-2] if answered else self.messages, self._last)

    def _answer(self, before: list[Message], text: str) -> str | None:
        messages = [*before, {"role": "user", "content": text}]
        generation = None
        stopped = False
        try:
            prompt = self._prompt(messages)
            generation = self._model.generate(prompt, **self._seeded())
            for piece in generation:
                write_text(piece.text)
        except KeyboardInterrupt:
            if not self._interruptible:
                raise
            stopped = True
        finally:
            if generation is not None:
                generation.close()
            if generation is not None or stopped:
                print(flush=True)
        answer = "" if generation is None else generation.text
        if stopped and not answer:
            return "stopped before the answer began; the message is dropped"
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        if stopped:
            return "stopped"
        assert generation is not None
        full = len(prompt) + len(generation.token_ids) > self._model.engine.context_length
        return "the context is full: /reset begins anew" if full else None

    def _seeded(self) -> dict[str, Any]:
        """The parameters; with a given seed, another attempt is another answer all the same."""
        seed = self._parameters.get("seed")
        if seed is None:
            return self._parameters
        return {**self._parameters, "seed": (seed + self._attempts) & _LARGEST_SEED}

    def _prompt(self, messages: list[Message]) -> list[int]:
        prompt = self._encode(messages)
        room = self._model.engine.context_length
        if len(prompt) > room:
            first = len(messages) == 1
            raise RequestError(
                "this message" if first else "the conversation",
                f"has {len(prompt):,} tokens{'' if first else ' with this message'}, and the "
                f"context holds {room:,}",
                f"{'Shorten it' if first else 'Type /reset to begin anew'}, or start with a larger "
                "--context",
            )
        return prompt

    def _encode(self, messages: list[Message]) -> list[int]:
        first = [{"role": "system", "content": self._system}] if self._system else []
        return self._model.encode_chat([*first, *messages])
