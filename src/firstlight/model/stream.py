"""Streams: what a layer remembers, addressed by token position."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

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
    """

    name: str
    entry_shape: tuple[int, ...]
    stride: int = 1
    window: int | None = None

    def entry_bytes(self, dtype: str) -> int:
        """Bytes of one entry in that dtype ("float32" or "bfloat16")."""
        return prod(self.entry_shape) * VALUE_BYTES[dtype]


@dataclass(frozen=True)
class StreamGroup:
    """The streams of a model that share a stride and a window, and so share their pages.

    Attributes:
        members: (layer, index of the stream within the layer), in order.
    """

    stride: int
    window: int | None
    members: tuple[tuple[int, int], ...]


def group_streams(layers: tuple[tuple[StreamSpec, ...], ...]) -> tuple[StreamGroup, ...]:
    """The groups of a model's streams, given each layer's."""
    members: dict[tuple[int, int | None], list[tuple[int, int]]] = {}
    for layer, streams in enumerate(layers):
        for index, stream in enumerate(streams):
            members.setdefault((stream.stride, stream.window), []).append((layer, index))
    return tuple(
        StreamGroup(stride, window, tuple(found)) for (stride, window), found in members.items()
    )
