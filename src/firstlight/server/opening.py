"""Handing a request's sequences to the router, all of them or none."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

from firstlight.server.api_error import bad_request
from firstlight.server.api_keys import Caller
from firstlight.server.choice import Choice, cancel
from firstlight.server.output_text import OutputText, Reasoning
from firstlight.server.request_bodies import SamplingFields
from firstlight.server.sequence_requests import (
    check_logit_bias,
    check_prompt,
    sequence_request,
    stop_strings,
)
from firstlight.server.served_model import ModelText
from firstlight.server.service import Service
from firstlight.server.token_streams import ServedModel
from firstlight.stop_strings import StopStrings


@dataclass(frozen=True)
class Prompt:
    """A prompt in token ids, and its text where it was given as text.

    Attributes:
        reasoning: how thoughts are split off, to begin with; None where they are not.
    """

    ids: list[int]
    text: str | None = None
    reasoning: Reasoning | None = None


def open_choices(
    service: Service,
    caller: Caller,
    body: SamplingFields,
    text: ModelText,
    served: ServedModel,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int | None,
    log_probabilities: int | None,
    field: str,
    prompt_log_probabilities: int | None = None,
) -> list[Choice]:
    """The choices of a request: `body.n` for each prompt, in order.

    Args:
        log_probabilities: so many likeliest tokens beside each token's; None: neither.
        prompt_log_probabilities: the same of the prompt.
        field: what the request calls its prompts.

    Raises:
        ApiError: a prompt is empty or too long, or logit_bias is wrong.
        OverloadedError: the router takes nothing more.
    """
    count = body.n or 1
    if count * len(prompts) > service.limits.sequences:
        raise bad_request(
            field if len(prompts) > 1 else "n",
            f"The request asks for {count * len(prompts)} sequences, and may ask for "
            f"{service.limits.sequences}.",
        )
    check_logit_bias(body, served)
    for prompt in prompts:
        check_prompt(prompt.ids, served, field)
    service.rates.use(caller, sum(len(prompt.ids) for prompt in prompts))
    tenant, priority = service.tenant(caller), service.priority(caller, body.priority)
    stops = stop_strings(body, text)
    # A sequence of no tokens has no step in which its prompt could be scored.
    tokens = 1 if max_tokens == 0 else max_tokens
    choices: list[Choice] = []
    try:
        for number, prompt in enumerate(prompts):
            for choice in range(count):
                request = sequence_request(
                    body, text, prompt.ids, choice, tokens, log_probabilities,
                    prompt_log_probabilities, tenant, priority,
                )  # fmt: skip
                output = OutputText(
                    text.stream(prompt.ids), StopStrings(stops), copy(prompt.reasoning)
                )
                stream = service.source.open(text.name, request)
                choices.append(Choice(len(choices), number, prompt.ids, stream, output, max_tokens))
    except BaseException:
        cancel(choices)
        raise
    return choices
