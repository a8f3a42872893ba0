"""Streams: what a layer remembers, addressed by token position."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import lcm, prod

from firstlight.errors import RequestError

VALUE_BYTES = {"float32": 4, "bfloat16": 2}


def state_dtype(asked: str, *, exact: bool = False) -> str:
    """The dtype that keys and values are kept in.

    "auto" is bfloat16, which halves what a decoding step reads of the state; float32 where the
    user wants every activation exact. On Gemma 3 270M bfloat16 state changes the next-token
    distribution by a mean KL divergence of 3e-5 (prose, code and Chinese alike), a tenth of what
    bfloat16 activations do to the reference implementation.

    Raises:
        RequestError: bfloat16 and exactness are both asked for.
    """
    if exact and asked == "bfloat16":
        raise RequestError(
            "state bfloat16",
            "rounds keys and values, which exact excludes",
            "Leave out one of them",
        )
    if asked != "auto":
        return asked
    return "float32" if exact else "bfloat16"


@dataclass(frozen=True)
class StreamSpec:
    """One position-addressed sequence of state entries.

    Attributes:
        name: what the entries are, for messages ("key", "value").
        entry_shape: shape of one entry.
        stride: one entry every `stride` tokens.
        window: keep the entries of the last `window` tokens; None: all.
        run: the window moves by so many tokens at once: it ends with the whole run that the newest
            token is in. 1: with every token.
    """

    name: str
    entry_shape: tuple[int, ...]
    stride: int = 1
    window: int | None = None
    run: int = 1

    def entry_bytes(self, dtype: str) -> int:
        """Bytes of one entry in that dtype ("float32" or "bfloat16")."""
        return prod(self.entry_shape) * VALUE_BYTES[dtype]


def first_seen(window: int | None, run: int, position: int) -> int:
    """The first position whose entry the token at `position` needs, in a stream of that window."""
    return 0 if window is None else max(0, position // run * run + run - window)


@dataclass(frozen=True)
class StreamGroup:
    """The streams of a model that share a stride and a window, and so share their pages.

    Attributes:
        members: (layer, index of the stream within the layer), in order.
        run: as in `StreamSpec`.
    """

    stride: int
    window: int | None
    members: tuple[tuple[int, int], ...]
    run: int = 1


def group_streams(layers: tuple[tuple[StreamSpec, ...], ...]) -> tuple[StreamGroup, ...]:
    """The groups of a model's streams, given each layer's."""
    members: dict[tuple[int, int | None, int], list[tuple[int, int]]] = {}
    for layer, streams in enumerate(layers):
        for index, stream in enumerate(streams):
            key = stream.stride, stream.window, stream.run
            members.setdefault(key, []).append((layer, index))
    return tuple(
        StreamGroup(stride, window, tuple(found), run)
        for (stride, window, run), found in members.items()
    )


def whole_pages(layers: Iterable[Iterable[StreamSpec]], page_tokens: int) -> int:
    """The least multiple of `page_tokens` that every stream has whole entries of."""
    return lcm(page_tokens, *(stream.stride for streams in layers for stream in streams))
