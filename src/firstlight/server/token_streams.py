"""What the HTTP side asks of the router: a stream of tokens for a request, whoever computes it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from firstlight.errors import FirstlightError
from firstlight.replica.messages import SequenceRequest, Statistics, TokenScore


class OverloadedError(FirstlightError):
    """The server cannot take this request now.

    Attributes:
        retry_after: seconds after which to try again.
        draining: the server is about to stop; else its queue is full or a wait was too long.
    """

    def __init__(self, reason: str, retry_after: float, draining: bool = False) -> None:
        super().__init__("server", reason, f"Try again in {retry_after:.0f} s")
        self.retry_after = retry_after
        self.draining = draining


@dataclass(frozen=True)
class PromptEvent:
    """The prompt is computed; first event of every stream."""

    cached_tokens: int
    scores: list[TokenScore] | None = None


@dataclass(frozen=True)
class TokenEvent:
    """One more token; the last has a finish ("stop": the token ends the text and is no part of
    it; "length")."""

    token_id: int
    finish: str | None = None
    score: TokenScore | None = None


class TokenStream(Protocol):
    """One sequence's events, in order, each once; raises FirstlightError where it fails.

    First a `PromptEvent`, then `TokenEvent`s up to one with a finish; with max_tokens 0 there are
    none, and the prompt's event is the only one.
    """

    def __aiter__(self) -> AsyncIterator[PromptEvent | TokenEvent]: ...

    def cancel(self) -> None:
        """End it and free its pages; harmless where it has ended."""
        ...


@dataclass(frozen=True)
class ReplicaStatus:
    """One replica as /metrics and /health show it.

    Attributes:
        state: "starting", "ready", "stopped" (being restarted), or "failed".
        restarts: since the server started.
        moved: sequences that went on elsewhere, or here after a restart.
    """

    name: str
    model: str
    device: str
    state: str
    restarts: int
    moved: int
    statistics: Statistics


@dataclass(frozen=True)
class ServedModel:
    """A model's limits, as its replicas gave them."""

    name: str
    context_length: int
    vocabulary_size: int


class TokenSource(Protocol):
    """The router, as the HTTP side sees it."""

    def models(self) -> Mapping[str, ServedModel]:
        """Those with a replica that has been ready, by name."""
        ...

    def replicas(self) -> list[ReplicaStatus]: ...

    def open(self, model: str, request: SequenceRequest) -> TokenStream:
        """Start a sequence.

        Raises:
            OverloadedError: the queue is full, or the server is draining.
            RequestError: the request can never be computed (prompt longer than the context).
        """
        ...
