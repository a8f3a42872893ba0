"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from firstlight.server.api_error import bad_request
from firstlight.server.body_reading import body_of
from firstlight.server.choice import Choice
from firstlight.server.generation_response import GenerationResponse
from firstlight.server.log_probabilities import (
    add_text_entry,
    empty_text_logprobs,
    prompt_logprobs,
)
from firstlight.server.opening import Prompt, open_choices
from firstlight.server.request_bodies import CompletionBody, refuse_unsupported
from firstlight.server.response_bodies import Completion, TextChoice, TextLogprobs, Usage
from firstlight.server.served_model import ModelText
from firstlight.server.service import call_of, service_of
from firstlight.server.token_streams import ServedModel, TokenEvent

_FIELD = "prompt"
_MAX_TOKENS = 16  # as OpenAI's API has it


async def completions(request: Request) -> Response:
    """Continue one prompt or several."""
    service, call = service_of(request), call_of(request)
    service.admit(call.caller)
    body = await body_of(request, CompletionBody)
    refuse_unsupported(body)
    text, served = service.model(body.model)
    call.model = text.name
    prompts = await service.in_thread(_prompts, body, text, served)
    choices = open_choices(
        service, call.caller, body, text, served, prompts,
        max_tokens=_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        log_probabilities=body.logprobs,
        field=_FIELD,
        prompt_log_probabilities=body.logprobs if body.echo else None,
    )  # fmt: skip
    answer = TextAnswer(f"cmpl-{call.id}", text, body, choices, prompts)
    return GenerationResponse(service, call, choices, answer, bool(body.stream), _FIELD)


def _prompts(body: CompletionBody, text: ModelText, served: ServedModel) -> list[Prompt]:
    given = body.prompt
    if isinstance(given, str):
        return [Prompt(text.encode(given, served.context_length), given)]
    if not given:
        raise bad_request(_FIELD, "prompt is an empty list. Give at least one prompt.")
    ids = [each for each in given if isinstance(each, int)]
    if len(ids) == len(given):
        return [Prompt(ids)]
    kinds = {type(each) for each in given}
    if len(kinds) > 1:
        raise bad_request(_FIELD, "prompt mixes texts and token ids. Give a list of one kind.")
    return [
        Prompt(text.encode(each, served.context_length), each)
        if isinstance(each, str)
        else Prompt(each if isinstance(each, list) else [each])
        for each in given
    ]


@dataclass
class _Text:
    """What has come of one choice. `begins`: characters of an echoed prompt before it."""

    begins: int = 0
    parts: list[str] = field(default_factory=list)
    logprobs: TextLogprobs | None = None
    finish: str = "length"


class TextAnswer:
    """Writes OpenAI's completion objects; see `Answer`."""

    def __init__(
        self,
        id: str,
        text: ModelText,
        body: CompletionBody,
        choices: Sequence[Choice],
        prompts: Sequence[Prompt],
    ) -> None:
        self._id = id
        self._model = text.name
        self._tokenizer = text.tokenizer
        self._created = int(time.time())
        self._body = body
        self._with_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._choices = choices
        self._echoes = [self._echo(prompt) for prompt in prompts] if body.echo else []
        self._texts = {choice.index: _Text() for choice in choices}
        for choice in choices:
            state = self._texts[choice.index]
            if body.echo:
                state.parts.append(self._echoes[choice.prompt])
                state.begins = len(state.parts[0])
            if body.logprobs is not None:
                state.logprobs = empty_text_logprobs(body.logprobs)

    def _echo(self, prompt: Prompt) -> str:
        return self._tokenizer.decode(prompt.ids) if prompt.text is None else prompt.text

    def begin(self) -> list[msgspec.Struct]:
        """The prompts, where they are to be echoed."""
        if not self._body.echo:
            return []
        return [
            self._chunk([TextChoice(state.parts[0], index)]) for index, state in self._texts.items()
        ]

    def add(
        self, choice: Choice, event: TokenEvent, thoughts: str, answer: str
    ) -> msgspec.Struct | None:
        """A token."""
        state = self._texts[choice.index]
        logprobs = None
        wanted = choice.wanted != 0 and event.finish != "stop"
        if self._body.logprobs is not None and wanted:
            logprobs = state.logprobs
            if self._body.stream or logprobs is None:
                logprobs = empty_text_logprobs(self._body.logprobs)
            offset = state.begins + choice.text.before
            add_text_entry(logprobs, self._tokenizer, event.token_id, event.score, offset)
        if not self._body.stream:
            state.parts.append(answer)
            state.finish = choice.finish or "length"
            return None
        if not (answer or logprobs or choice.finish):
            return None
        return self._chunk([TextChoice(answer, choice.index, logprobs, choice.finish)])

    def last(self, usage: Usage) -> msgspec.Struct | None:
        """A chunk without choices."""
        if not self._with_usage:
            return None
        chunk = self._chunk([])
        chunk.usage = usage
        return chunk

    def whole(self, usage: Usage) -> msgspec.Struct:
        """The completion."""
        chosen = [self._choice(choice) for choice in self._choices]
        return Completion(
            id=self._id, created=self._created, model=self._model, choices=chosen, usage=usage
        )

    def _choice(self, choice: Choice) -> TextChoice:
        state = self._texts[choice.index]
        logprobs = state.logprobs
        if logprobs is not None and self._body.echo:
            logprobs = _joined(self._prompt_logprobs(choice), logprobs)
        return TextChoice("".join(state.parts), choice.index, logprobs, state.finish)

    def _prompt_logprobs(self, choice: Choice) -> TextLogprobs:
        """Those of a prompt, which its first choice alone was asked for."""
        first = next(each for each in self._choices if each.prompt == choice.prompt)
        scores = (first.prompt_event.scores if first.prompt_event is not None else None) or []
        return prompt_logprobs(self._tokenizer, choice.prompt_ids, scores, self._body.logprobs or 0)

    def _chunk(self, choices: list[TextChoice]) -> Completion:
        return Completion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=None if self._with_usage else UNSET,
        )


def _joined(first: TextLogprobs, second: TextLogprobs) -> TextLogprobs:
    top = None
    if first.top_logprobs is not None and second.top_logprobs is not None:
        top = first.top_logprobs + second.top_logprobs
    return TextLogprobs(
        first.tokens + second.tokens,
        first.token_logprobs + second.token_logprobs,
        top,
        first.text_offset + second.text_offset,
    )
