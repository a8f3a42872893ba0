"""What is said beside the text: under which terms the model is, and what a run cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from firstlight.generation import Generation
from firstlight.language_model import LanguageModel

Usage = Mapping[tuple[str, str], tuple[int, float]]


def licence_line(name: str, model: LanguageModel) -> str:
    """Under which terms the model called `name` is published, or "" where its files do not say."""
    if name == "demo":
        from firstlight.checkpoint.demo import demo_licence

        return demo_licence()
    return f"Licence: {model.checkpoint.licence}" if model.checkpoint.licence else ""


@dataclass(frozen=True)
class Speed:
    """Tokens and seconds of one generation.

    Attributes:
        bandwidth_share: bytes of weights read per second of decoding, over the device's measured
            bandwidth; None where that has not been measured, or too few tokens were decoded.
        proposed_tokens, accepted_tokens: guessed ahead, and how many of those were right.
    """

    prompt_tokens: int
    prompt_seconds: float
    tokens: int
    decode_seconds: float
    bandwidth_share: float | None
    proposed_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def tokens_per_second(self) -> float | None:
        """Of decoding: the first token belongs to the prompt."""
        if self.tokens < 2 or self.decode_seconds <= 0:
            return None
        return (self.tokens - 1) / self.decode_seconds

    def line(self) -> str:
        """One line for a person."""
        parts = [f"{self.prompt_tokens} prompt tokens in {self.prompt_seconds:.2f} s"]
        if self.tokens_per_second is None:
            parts.append(f"{self.tokens} new")
        else:
            parts.append(f"{self.tokens} new at {self.tokens_per_second:.1f} tokens/s")
        if self.bandwidth_share is not None:
            parts.append(f"{self.bandwidth_share:.0%} of this machine's memory bandwidth")
        if self.proposed_tokens:
            parts.append(f"{self.accepted_tokens} of {self.proposed_tokens} guesses right")
        return ", ".join(parts)

    def values(self) -> dict[str, Any]:
        """For a script; seconds and shares."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "prompt_seconds": round(self.prompt_seconds, 6),
            "tokens": self.tokens,
            "decode_seconds": round(self.decode_seconds, 6),
            "tokens_per_second": self.tokens_per_second,
            "bandwidth_share": self.bandwidth_share,
            "proposed_tokens": self.proposed_tokens,
            "accepted_tokens": self.accepted_tokens,
        }


def measure(model: LanguageModel, generation: Generation, bandwidth: float | None) -> Speed:
    """The speed of a finished generation; `bandwidth` in bytes/s, None where not measured."""
    timing, tokens = generation.timing, len(generation.token_ids)
    first = timing.first_token or timing.ended
    decode_seconds = timing.ended - first
    share = None
    if bandwidth and tokens > 1 and decode_seconds > 0:
        bytes_read = _bytes_per_token(model) * (tokens - 1)
        share = bytes_read / decode_seconds / bandwidth
    return Speed(len(generation.prompt_ids), first - timing.started, tokens, decode_seconds, share)


def _bytes_per_token(model: LanguageModel) -> int:
    """Bytes of weights that decoding one token must read: all, but of experts its share, and of an
    untied embedding nothing to speak of."""
    weights = model.engine.decoder.weights
    sources = set(model.spec.sources())
    if not model.spec.tied:
        sources.discard(model.spec.embedding)
    shares = model.spec.expert_shares()
    read = (source for source in sources if not source.integers)
    return round(sum(float(weights[each].nbytes) * shares.get(each, 1.0) for each in read))


def usage_rows(usage: Usage) -> list[dict[str, Any]]:
    """Ops by cost: op, kernel ("definition" for a fallback), calls, seconds, share of all."""
    total = sum(seconds for _, seconds in usage.values()) or 1.0
    rows = [
        {
            "op": op,
            "kernel": kernel,
            "calls": calls,
            "seconds": round(seconds, 6),
            "share": round(seconds / total, 4),
        }
        for (op, kernel), (calls, seconds) in usage.items()
    ]
    return sorted(rows, key=lambda row: -row["seconds"])


def usage_table(usage: Usage) -> str:
    """The same as a table; fallbacks to a definition are marked."""
    rows = usage_rows(usage)
    lines = [f"{'op':<20}{'kernel':<24}{'calls':>8}{'seconds':>10}{'share':>8}"]
    for row in rows:
        lines.append(
            f"{row['op']:<20}{row['kernel']:<24}{row['calls']:>8}{row['seconds']:>10.3f}"
            f"{row['share']:>8.1%}"
        )
    fallbacks = [row for row in rows if row["kernel"] == "definition"]
    if fallbacks:
        names = ", ".join(sorted({row["op"] for row in fallbacks}))
        share = sum(row["share"] for row in fallbacks)
        lines.append(
            f"{share:.1%} of the time went into definitions, for want of a kernel: {names}"
        )
    return "\n".join(lines)
