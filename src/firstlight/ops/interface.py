"""The closed set of ops as the model and the engine call it.

A `Tensor` is whatever a backend computes with. Code outside backends uses of it only `.shape`
and `.reshape(...)`; all else goes through an op. A `PackedWeight` is a weight as a backend keeps
it, with `.shape` and `.nbytes`. A backend implements `call`; the methods here are its typed face.
What each op means, with shapes and sources, stands with its definition.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.formats.base import Floats, Weight
from firstlight.ops.attention_block import AttentionBlock
from firstlight.ops.elementwise import Activation
from firstlight.ops.feed_forward_block import FeedForwardBlock
from firstlight.ops.head import Head
from firstlight.ops.paging import PagedRows

Tensor = Any
PackedWeight = Any


class Ops(ABC):
    """Everything that the decoder asks of a chip."""

    @abstractmethod
    def call(self, name: str, *arguments: Any) -> Any:
        """Run one op on the backend's own tensors."""

    @abstractmethod
    def upload(self, array: NDArray[Any]) -> Tensor:
        """A host array as the backend's tensor (float32 or int32)."""

    @abstractmethod
    def download(self, tensor: Tensor) -> Floats:
        """A tensor as a host array."""

    @abstractmethod
    def pack(self, weight: Weight) -> PackedWeight:
        """A stored matrix, laid out as this backend wants it."""

    @abstractmethod
    def new_stream(
        self, pages: int, page_tokens: int, entry: tuple[int, ...], dtype: str
    ) -> Tensor:
        """Zeroed pages of a stream [pages, page_tokens, *entry]; dtype float32 or bfloat16."""

    @abstractmethod
    def usage(self) -> Mapping[tuple[str, str], tuple[int, float]]:
        """(op, kernel) -> (calls, seconds) since the start; kernel "definition" is a fallback."""

    def embed(self, table: PackedWeight, token_ids: NDArray[np.int32]) -> Tensor:
        return self.call("embed", table, token_ids)

    def linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
        return self.call("linear", x, weight, bias)

    def rms_norm(self, x: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
        return self.call("rms_norm", x, weight, epsilon)

    def rotary(self, x: Tensor, cosine_sine: Tensor, interleaved: bool) -> Tensor:
        return self.call("rotary", x, cosine_sine, interleaved)

    def stream_write(self, pages: Tensor, values: Tensor, rows: PagedRows) -> None:
        self.call("stream_write", pages, values, rows)

    def attention(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        rows: PagedRows,
        scale: float,
        window: int | None,
        soft_cap: float | None,
    ) -> Tensor:
        return self.call("attention", queries, keys, values, rows, scale, window, soft_cap)

    def gate(self, gate_values: Tensor, up: Tensor, activation: Activation) -> Tensor:
        return self.call("gate", gate_values, up, activation)

    def add(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        return self.call("add", x, y, scale)

    def scale(self, x: Tensor, factor: float) -> Tensor:
        return self.call("scale", x, factor)

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        return self.call("soft_cap", x, cap)

    def take_rows(self, x: Tensor, indices: NDArray[np.int32]) -> Tensor:
        return self.call("take_rows", x, indices)

    def attention_block(
        self,
        x: Tensor,
        block: AttentionBlock,
        keys: Tensor,
        values: Tensor,
        rows: PagedRows,
        cosine_sine: Tensor | None,
    ) -> Tensor:
        return self.call("attention_block", x, block, keys, values, rows, cosine_sine)

    def feed_forward_block(self, x: Tensor, block: FeedForwardBlock) -> Tensor:
        return self.call("feed_forward_block", x, block)

    def logits(self, x: Tensor, head: Head, wanted: NDArray[np.int32]) -> Tensor:
        return self.call("logits", x, head, wanted)
