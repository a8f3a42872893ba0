"""How a conversation becomes a prompt: the template that a model's publisher wrote for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from firstlight.checkpoint.files import shown
from firstlight.errors import RequestError, TokenizerError

if TYPE_CHECKING:
    from firstlight.checkpoint.template_process import TemplateProcess

_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
_DEEPEST_NESTING = 100


class ChatTemplate:
    """One or more Jinja2 templates, rendered in a process of their own (`TemplateProcess`).

    A template is a program that a stranger wrote. It cannot change the process that calls it, and
    ends within the bounds stated in `template_process`, or is ended.
    """

    def __init__(
        self, sources: Mapping[str, str], named_tokens: Mapping[str, str], subject: object
    ) -> None:
        """Nothing is run or even parsed before `render`.

        Args:
            sources: templates by name; the usual one is called "default".
            named_tokens: special tokens' texts by the name that templates use: "bos_token" ...
            subject: the file they come from, for messages.
        """
        self.sources = dict(sources)
        self.named_tokens = dict(named_tokens)
        self._subject = subject

    @cached_property
    def _process(self) -> TemplateProcess:
        # Imported here: a program that renders no template need not know about processes.
        from firstlight.checkpoint.template_process import TemplateProcess

        return TemplateProcess()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        name: str | None = None,
        **variables: Any,
    ) -> str:
        """The prompt for a conversation, special tokens written out: encode it without adding any.

        As in transformers' `apply_chat_template`, a message's keys whose value is None are left
        out, and reasoning is found under each of its usual keys.

        Args:
            messages: at least one; each usually {"role": ..., "content": ...}, plain data only.
            add_generation_prompt: end with what makes the model answer, not go on.
            tools: JSON schemas of functions that the model may call.
            documents: texts that the model may draw on.
            name: which template, if there are several. Without it "tool_use" where there are tools
                and such a template, or else "default".
            variables: what else the template may ask for; they replace special tokens' names.

        Raises:
            RequestError: the template refuses the conversation, or it is no plain data.
            TokenizerError: the template is at fault: it has an error, does not end, or needs too
                much memory.
        """
        source = self._source(name, bool(tools))
        given = {
            **self.named_tokens,
            **variables,
            "messages": [_message(message) for message in _some(messages)],
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        }
        plain = {key: _plain(value, key) for key, value in given.items()}
        try:
            outcome, text = self._process.render(source, plain)
        except (OSError, ImportError) as error:
            raise TokenizerError(
                self._subject,
                f"its chat template runs in a process of its own, which does not start ({error})",
                "Allow this program to start processes, and check that jinja2 is installed",
            ) from error
        if outcome == "refused":
            raise RequestError(
                "messages",
                f"the model's chat template refuses them: {shown(text, 300)}",
                "Change the conversation accordingly",
            )
        if outcome == "faulty":
            raise TokenizerError(
                self._subject,
                f"its chat template cannot be used: {shown(text, 300)}",
                "Use a corrected version of the model's files, or give the prompt as plain text",
            )
        return text

    def _source(self, name: str | None, with_tools: bool) -> str:
        if name is None:
            name = "tool_use" if with_tools and "tool_use" in self.sources else "default"
        source = self.sources.get(name)
        if source is None:
            known = ", ".join(shown(known) for known in self.sources)
            raise TokenizerError(
                self._subject,
                f"has no chat template called {shown(name)}, only {known}",
                "Choose one of these by its name",
            )
        return source


def _some(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise RequestError("messages", "are not a list", "Give a list of messages")
    if not messages:
        raise RequestError("messages", "are empty", "Give at least one message")
    return messages


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(
            "messages", f"hold {shown(message)}", 'Give messages like {"role": ..., "content": ...}'
        )
    kept = {key: value for key, value in message.items() if value is not None}
    reasoning = next((kept[key] for key in _REASONING_KEYS if key in kept), None)
    if reasoning is not None:
        kept = {"thinking": reasoning, **kept, "reasoning_content": reasoning}
    return kept


def _plain(value: Any, place: str, depth: int = 0) -> Any:
    """A copy of `value` made of JSON's types alone, so that it can go to another process."""
    if isinstance(value, int) and value.bit_length() > 4096:
        raise RequestError(place, "holds a number with over a thousand digits", "Give it as text")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if depth == _DEEPEST_NESTING:
        raise RequestError(place, "is nested too deeply", "Give simpler data")
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise RequestError(place, "has keys that are not text", "Give text as keys")
        return {str(key): _plain(item, place, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, place, depth + 1) for item in value]
    # Of subclasses, such as enumerations, the plain value, whatever they make of str() and int().
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise RequestError(
        place,
        f"holds a {type(value).__name__}, which is no plain data",
        "Give text, numbers, lists and objects only",
    )
