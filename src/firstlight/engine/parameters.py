"""What a request may ask of a generation, checked."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from firstlight.errors import RequestError


@dataclass(frozen=True)
class SamplingParameters:
    """How the next token is chosen from the logits.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: only the k likeliest tokens; 0 means all.
        top_p: only the fewest likeliest tokens whose probabilities reach p (Holtzman et al. 2019,
            arXiv:1904.09751).
        min_p: only tokens at least min_p times as probable as the likeliest (Nguyen et al. 2024,
            arXiv:2407.01082).
        repetition_penalty: divides positive and multiplies negative logits of tokens in the
            prompt or the output (Keskar et al. 2019, arXiv:1909.05858, section 4.1).
        presence_penalty: subtracted from the logit of every token in the output.
        frequency_penalty: subtracted once for every time the token stands in the output.
        logit_bias: token id -> added to its logit.
        seed: with the position, decides the random number; any whole number of 64 bits from 0.

    Raises:
        RequestError: a value is out of range, or of another kind than a number.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0.0, 100.0)
        check_whole("top_k", self.top_k, 0, 1 << 31)
        check_number("top_p", self.top_p, 0.0, 1.0)
        check_number("min_p", self.min_p, 0.0, 1.0)
        check_number("repetition_penalty", self.repetition_penalty, 1e-3, 1e3)
        check_number("presence_penalty", self.presence_penalty, -100.0, 100.0)
        check_number("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        check_whole("seed", self.seed, 0, (1 << 64) - 1)
        if self.top_p == 0.0:
            raise RequestError(
                "top_p", "is 0, which leaves no token", "Use a value above 0, up to 1"
            )
        if not isinstance(self.logit_bias, Mapping):
            raise RequestError("logit_bias", "is no mapping", "Map token ids to numbers")
        for token, bias in self.logit_bias.items():
            check_whole("logit_bias's token id", token, 0, (1 << 31) - 1)
            check_number(f"logit_bias[{token}]", bias, -1e4, 1e4)


@dataclass(frozen=True)
class StopConditions:
    """When a generation ends.

    Attributes:
        max_tokens: at most so many new tokens; None: until the context is full.
        end_ids: token ids that end the text and are not part of it.
        stop: strings that end the text and are not part of it.

    Raises:
        RequestError: max_tokens is out of range, or a stop string is empty or no string.
    """

    max_tokens: int | None = None
    end_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            check_whole("max_tokens", self.max_tokens, 0, 1 << 31)
        for text in self.stop:
            if not isinstance(text, str):
                raise RequestError("stop", f"holds {text!r}, which is no text", "Use strings")
            if not text:
                raise RequestError(
                    "stop", "has an empty string, which ends every text", "Leave it out"
                )


def check_number(name: str, value: object, least: float, most: float) -> None:
    """RequestError unless the value is a number within bounds; NumPy's scalars count."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (number and least <= value <= most):  # type: ignore[operator]
        raise RequestError(name, f"is {value!r}", f"Use a number from {least:g} to {most:g}")


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """RequestError unless the value is a whole number within bounds; NumPy's scalars count."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (whole and least <= value <= most):  # type: ignore[operator]
        raise RequestError(name, f"is {value!r}", f"Use a whole number from {least} to {most}")


def check_token_ids(token_ids: Sequence[int], vocabulary: int, what: str) -> list[int]:
    """The ids as plain integers; RequestError unless each is one of the vocabulary."""
    checked = []
    for token in token_ids:
        try:
            checked.append(operator.index(token))
        except TypeError:
            raise RequestError(
                what.split()[0], f"holds {token!r}, which is no token id", "Use whole numbers"
            ) from None
    if checked and not (min(checked) >= 0 and max(checked) < vocabulary):
        wrong = next(token for token in checked if not 0 <= token < vocabulary)
        raise RequestError(
            f"{what} {wrong}",
            f"the vocabulary has ids 0 to {vocabulary - 1}",
            "Encode the prompt with this model's tokenizer",
        )
    return checked
