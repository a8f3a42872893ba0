"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from firstlight.server.body_reading import body_of
from firstlight.server.choice import Choice
from firstlight.server.generation_response import GenerationResponse
from firstlight.server.log_probabilities import chat_entry
from firstlight.server.opening import Prompt, open_choices
from firstlight.server.output_text import Reasoning
from firstlight.server.request_bodies import ChatBody, plain_messages, refuse_unsupported
from firstlight.server.response_bodies import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    TokenLogprob,
    Usage,
)
from firstlight.server.served_model import THINK, ModelText
from firstlight.server.service import call_of, service_of
from firstlight.server.token_streams import ServedModel, TokenEvent

_FIELD = "messages"


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    service, call = service_of(request), call_of(request)
    service.admit(call.caller)
    body = await body_of(request, ChatBody)
    refuse_unsupported(body)
    text, served = service.model(body.model)
    call.model = text.name
    prompt = await service.in_thread(_prompt, body, text, served)
    choices = open_choices(
        service, call.caller, body, text, served, [prompt],
        max_tokens=body.max_completion_tokens or body.max_tokens,
        log_probabilities=(body.top_logprobs or 0) if body.logprobs else None,
        field=_FIELD,
    )  # fmt: skip
    answer = ChatAnswer(f"chatcmpl-{call.id}", text, body, [choice.index for choice in choices])
    return GenerationResponse(service, call, choices, answer, bool(body.stream), _FIELD)


def _prompt(body: ChatBody, text: ModelText, served: ServedModel) -> Prompt:
    variables: dict[str, Any] = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    rendered = text.render(plain_messages(body.messages), True, variables)
    ids = text.encode(rendered, served.context_length, add_special=False)
    # Some templates open the thoughts themselves, so that the model goes on inside them.
    opened = rendered.rstrip().endswith(THINK)
    return Prompt(ids, rendered, Reasoning("inside" if opened else "start"))


@dataclass
class _Message:
    """What has come of one choice."""

    thoughts: list[str] = field(default_factory=list)
    answer: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str = "length"


class ChatAnswer:
    """Writes OpenAI's chat objects; see `Answer`."""

    def __init__(self, id: str, text: ModelText, body: ChatBody, indices: list[int]) -> None:
        self._id = id
        self._model = text.name
        self._tokenizer = text.tokenizer
        self._created = int(time.time())
        self._streams = bool(body.stream)
        self._with_logprobs = bool(body.logprobs)
        self._with_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._messages = {index: _Message() for index in indices}

    def begin(self) -> list[msgspec.Struct]:
        """The role of each choice."""
        return [
            self._chunk([ChatChunkChoice(index, ChatDelta("assistant", ""))])
            for index in self._messages
        ]

    def add(
        self, choice: Choice, event: TokenEvent, thoughts: str, answer: str
    ) -> msgspec.Struct | None:
        """A token."""
        entry = None
        if self._with_logprobs and event.score is not None and event.finish != "stop":
            entry = chat_entry(self._tokenizer, event.token_id, event.score)
        if not self._streams:
            message = self._messages[choice.index]
            message.thoughts.append(thoughts)
            message.answer.append(answer)
            message.finish = choice.finish or "length"
            if entry is not None:
                message.logprobs.append(entry)
            return None
        if not (thoughts or answer or entry or choice.finish):
            return None
        delta = ChatDelta(None, answer or None, thoughts or None)
        logprobs = ChatLogprobs([entry]) if entry is not None else None
        return self._chunk([ChatChunkChoice(choice.index, delta, logprobs, choice.finish)])

    def last(self, usage: Usage) -> msgspec.Struct | None:
        """A chunk without choices."""
        if not self._with_usage:
            return None
        chunk = self._chunk([])
        chunk.usage = usage
        return chunk

    def whole(self, usage: Usage) -> msgspec.Struct:
        """The completion."""
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[self._choice(index, message) for index, message in self._messages.items()],
            usage=usage,
        )

    def _choice(self, index: int, message: _Message) -> ChatChoice:
        thoughts = "".join(message.thoughts)
        return ChatChoice(
            index,
            ChatMessage("".join(message.answer), reasoning_content=thoughts or UNSET),
            message.finish,
            ChatLogprobs(message.logprobs) if self._with_logprobs else None,
        )

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return ChatChunk(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=None if self._with_usage else UNSET,
        )
