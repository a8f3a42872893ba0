"""From a request's body to the sequences that it asks for."""

from __future__ import annotations

import secrets

from firstlight.replica.messages import Sampling, SequenceRequest
from firstlight.server.api_error import bad_request
from firstlight.server.request_bodies import SamplingFields
from firstlight.server.served_model import ModelText
from firstlight.server.token_streams import ServedModel

# As OpenAI's API has it where the publisher of the model says nothing.
_TEMPERATURE = 1.0
# top_p 0 keeps the likeliest token; so does any number that is as small as a probability gets.
_LEAST_TOP_P = 1e-9
_SEEDS = 1 << 64


def sequence_request(
    body: SamplingFields,
    text: ModelText,
    prompt_ids: list[int],
    choice: int,
    max_tokens: int | None,
    log_probabilities: int | None,
    prompt_log_probabilities: int | None,
    tenant: str,
    priority: int,
) -> SequenceRequest:
    """One sequence.

    Args:
        choice: its number among those of the same prompt. Each has a seed of its own.
    """
    end_ids: list[int] = [] if body.ignore_eos else sorted(text.end_ids)
    return SequenceRequest(
        prompt_ids,
        _sampling(body, text, choice),
        max_tokens,
        end_ids,
        log_probabilities,
        prompt_log_probabilities if choice == 0 else None,
        priority,
        tenant,
    )


def _sampling(body: SamplingFields, text: ModelText, choice: int) -> Sampling:
    defaults = text.generation.sampling(unsaid=_TEMPERATURE)
    given = {
        "temperature": body.temperature,
        "top_k": None if body.top_k is None else max(body.top_k, 0),
        "top_p": None if body.top_p is None else max(body.top_p, _LEAST_TOP_P),
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "logit_bias": body.logit_bias,
    }
    chosen = {key: value for key, value in given.items() if value is not None}
    seed = secrets.randbits(63) if body.seed is None else (body.seed + choice) % _SEEDS
    return Sampling(**{**defaults, **chosen}, seed=seed)  # type: ignore[arg-type]


def stop_strings(body: SamplingFields, text: ModelText) -> tuple[str, ...]:
    """The request's, and the publisher's unless the text is to go on past its end."""
    own = () if body.ignore_eos else text.generation.stop_strings
    given = body.stop or []
    return (*([given] if isinstance(given, str) else given), *own)


def check_prompt(prompt_ids: list[int], model: ServedModel, field: str) -> None:
    """ApiError where the model cannot take the prompt."""
    if not prompt_ids:
        raise bad_request(field, f"{field} has no tokens. Give at least one.")
    if len(prompt_ids) > model.context_length:
        raise bad_request(
            field,
            f"{field} has {len(prompt_ids)} tokens, and the context of {model.name} holds "
            f"{model.context_length}. Shorten it.",
            "context_length_exceeded",
        )
    largest = max(prompt_ids)
    if largest >= model.vocabulary_size or min(prompt_ids) < 0:
        raise bad_request(
            field,
            f"{field} holds token {largest}, and the vocabulary has ids 0 to "
            f"{model.vocabulary_size - 1}.",
        )


def check_logit_bias(body: SamplingFields, model: ServedModel) -> None:
    """ApiError where logit_bias names a token outside the vocabulary."""
    for token in body.logit_bias or ():
        if token >= model.vocabulary_size:
            raise bad_request(
                "logit_bias",
                f"logit_bias names token {token}, and the vocabulary has ids 0 to "
                f"{model.vocabulary_size - 1}.",
            )
