"""The closed set of ops as the model and the engine call it.

A `Tensor` is whatever a backend computes with. Code outside backends uses of it only `.shape`
and `.reshape(...)`; all else goes through an op. A `PackedWeight` is a weight as a backend keeps
it, with `.shape` and `.nbytes`. A backend implements `call`; the methods here are its typed face.
What each op means, with shapes and sources, stands with its definition.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from firstlight.formats.base import Bytes, Floats, Format, Weight
from firstlight.ops.attention_block import AttentionBlock
from firstlight.ops.choose_tokens import TokenChoice
from firstlight.ops.elementwise import Activation
from firstlight.ops.experts_block import ExpertsBlock
from firstlight.ops.feed_forward_block import FeedForwardBlock
from firstlight.ops.gating import ClampedSwish
from firstlight.ops.head import Head
from firstlight.ops.hyper_connections import ConnectionNumbers
from firstlight.ops.latent_attention import Expansion
from firstlight.ops.latent_attention_block import LatentAttentionBlock
from firstlight.ops.paging import PagedRows
from firstlight.ops.routing import Routing
from firstlight.ops.sparse_latent_attention_block import SparseLatentAttentionBlock

Tensor = Any
PackedWeight = Any


class Replayer(Protocol):
    """A computation whose requests to a device are recorded and replayed: one for each combination
    of shapes and dtypes that its arrays have."""

    @property
    def possible(self) -> bool:
        """Whether anything may still be replayed."""

    def __call__(self, *arrays: NDArray[Any]) -> Tensor | None:
        """The computation's result, valid up to the next call; None where it has to be asked for
        in the ordinary way this time. What it writes may have been written in part then."""


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

    def download_together(self, tensors: list[Tensor]) -> list[NDArray[Any]]:
        """The same of several; where a device computes by itself, it is waited for once."""
        return [self.download(tensor) for tensor in tensors]

    @abstractmethod
    def pack(self, weight: Weight) -> PackedWeight:
        """A stored matrix, laid out as this backend wants it."""

    # A backend that lays matrices out anew says so here; then they are packed once, kept on disk,
    # and mapped after that. As it stands, weights are used as they are stored.

    def packed_layout(self) -> str | None:
        """Name and version of the backend's byte layout, unique among backends; None: it has none.
        Another version never reads these bytes."""
        return None

    def packed_bytes(self, format: Format, rows: int, columns: int) -> int | None:
        """Bytes of a packed matrix of this format; None: it is used as it is stored."""
        return None

    def packed_row_group(self, format: Format) -> int | None:
        """How many rows are laid out together, where groups of rows lie one after another: then
        a matrix may be packed a few groups at a time, each where it ends up. None: as a whole."""
        return None

    def pack_into(self, weight: Weight, out: Bytes) -> None:
        """Write the packed form of a matrix, of a format for which `packed_bytes` is not None.

        Args:
            out: uint8 [packed_bytes], C-contiguous, beginning at a multiple of 64 bytes.
        """
        raise NotImplementedError

    def packed_from(
        self, format: Format, shape: tuple[int, ...], data: Bytes, name: str
    ) -> PackedWeight:
        """The packed weight whose bytes `pack_into` wrote; `data` may be mapped and read-only."""
        raise NotImplementedError

    def available_memory(self) -> int:
        """Bytes that weights, state and intermediate values can still take where they are kept."""
        from firstlight.host.memory import available_memory

        return available_memory()

    @abstractmethod
    def new_stream(
        self, pages: int, page_tokens: int, entry: tuple[int, ...], dtype: str
    ) -> Tensor:
        """Zeroed pages of a stream [pages, page_tokens, *entry]; dtype float32 or bfloat16."""

    def replayer(self, compute: Callable[..., Tensor]) -> Replayer | None:
        """Replays a computation; None where the device has no such thing, or is not to use it.

        Args:
            compute: takes arrays of the host, or what stands for them: it gives them to ops and
                does not look into them. All else that it uses stays where it is. Doing it twice is
                the same as doing it once.
        """
        return None

    @abstractmethod
    def usage(self) -> Mapping[tuple[str, str], tuple[int, float]]:
        """(op, kernel) -> (calls, seconds) since the start; kernel "definition" is a fallback."""

    def embed(self, table: PackedWeight, token_ids: NDArray[np.int32]) -> Tensor:
        return self.call("embed", table, token_ids)

    def linear(self, x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
        return self.call("linear", x, weight, bias)

    def rms_norm(self, x: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
        return self.call("rms_norm", x, weight, epsilon)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        return self.call("layer_norm", x, weight, bias, epsilon)

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

    def attention_with_sinks(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        rows: PagedRows,
        scale: float,
        window: int | None,
        sinks: Tensor,
    ) -> Tensor:
        return self.call("attention_with_sinks", queries, keys, values, rows, scale, window, sinks)

    def clamped_gate(self, gate_values: Tensor, up: Tensor, numbers: ClampedSwish) -> Tensor:
        return self.call("clamped_gate", gate_values, up, numbers)

    def gate(self, gate_values: Tensor, up: Tensor, activation: Activation) -> Tensor:
        return self.call("gate", gate_values, up, activation)

    def add(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        return self.call("add", x, y, scale)

    def add_rows(self, x: Tensor, y: Tensor, indices: NDArray[np.int32], factors: Tensor) -> None:
        self.call("add_rows", x, y, indices, factors)

    def route(
        self,
        logits: Tensor,
        routing: Routing,
        correction: Tensor | None = None,
        chosen: NDArray[np.int32] | None = None,
    ) -> Tensor:
        return self.call("route", logits, routing, correction, chosen)

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

    def take_columns(self, x: Tensor, start: int, stop: int) -> Tensor:
        return self.call("take_columns", x, start, stop)

    def join_columns(self, x: Tensor, y: Tensor) -> Tensor:
        return self.call("join_columns", x, y)

    def head_linear(
        self, x: Tensor, weight: PackedWeight, first: int, size: int, transposed: bool
    ) -> Tensor:
        return self.call("head_linear", x, weight, first, size, transposed)

    def latent_attention(
        self, queries: Tensor, entries: Tensor, value_size: int, rows: PagedRows, scale: float
    ) -> Tensor:
        return self.call("latent_attention", queries, entries, value_size, rows, scale)

    def expanded_latent_attention(
        self,
        queries: Tensor,
        entries: Tensor,
        key_weight: PackedWeight,
        value_weight: PackedWeight,
        expansion: Expansion,
        rows: PagedRows,
        scale: float,
    ) -> Tensor:
        return self.call(
            "expanded_latent_attention",
            queries,
            entries,
            key_weight,
            value_weight,
            expansion,
            rows,
            scale,
        )

    def latent_attention_block(
        self,
        x: Tensor,
        block: LatentAttentionBlock,
        entries: Tensor,
        rows: PagedRows,
        cosine_sine: Tensor,
    ) -> Tensor:
        return self.call("latent_attention_block", x, block, entries, rows, cosine_sine)

    def selected_latent_attention(
        self,
        queries: Tensor,
        entries: Tensor,
        value_size: int,
        rows: PagedRows,
        selected: Tensor,
        scale: float,
    ) -> Tensor:
        return self.call(
            "selected_latent_attention", queries, entries, value_size, rows, selected, scale
        )

    def sparse_latent_attention_block(
        self,
        x: Tensor,
        block: SparseLatentAttentionBlock,
        entries: Tensor,
        index_keys: Tensor,
        rows: PagedRows,
        cosine_sine: Tensor,
    ) -> Tensor:
        return self.call(
            "sparse_latent_attention_block", x, block, entries, index_keys, rows, cosine_sine
        )

    def pool_runs(
        self,
        entries: Tensor,
        rows: PagedRows,
        stride: int,
        before: Tensor | None = None,
        before_rows: PagedRows | None = None,
    ) -> Tensor:
        return self.call("pool_runs", entries, rows, stride, before, before_rows)

    def select_entries(
        self,
        queries: Tensor,
        weights: Tensor,
        keys: Tensor,
        rows: PagedRows,
        stride: int,
        top_k: int,
    ) -> Tensor:
        return self.call("select_entries", queries, weights, keys, rows, stride, top_k)

    def compressed_attention(
        self,
        queries: Tensor,
        keys: Tensor,
        rows: PagedRows,
        window: int,
        entries: Tensor,
        entry_rows: PagedRows,
        stride: int,
        chosen: Tensor | None,
        scale: float,
        sinks: Tensor,
    ) -> Tensor:
        return self.call(
            "compressed_attention",
            queries,
            keys,
            rows,
            window,
            entries,
            entry_rows,
            stride,
            chosen,
            scale,
            sinks,
        )

    def connection_weights(
        self, logits: Tensor, base: Tensor, scale: Tensor, numbers: ConnectionNumbers
    ) -> Tensor:
        return self.call("connection_weights", logits, base, scale, numbers)

    def collapse_streams(self, x: Tensor, weights: Tensor) -> Tensor:
        return self.call("collapse_streams", x, weights)

    def expand_streams(self, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        return self.call("expand_streams", x, y, weights)

    def feed_forward_block(self, x: Tensor, block: FeedForwardBlock) -> Tensor:
        return self.call("feed_forward_block", x, block)

    def experts_block(self, x: Tensor, block: ExpertsBlock, token_ids: NDArray[np.int32]) -> Tensor:
        return self.call("experts_block", x, block, token_ids)

    def logits(self, x: Tensor, head: Head, wanted: NDArray[np.int32]) -> Tensor:
        return self.call("logits", x, head, wanted)

    def choose_tokens(self, logits: Tensor, choices: tuple[TokenChoice, ...]) -> Tensor:
        return self.call("choose_tokens", logits, choices)

    def likeliest_tokens(self, logits: Tensor, count: int) -> Tensor:
        return self.call("likeliest_tokens", logits, count)

    def token_log_probabilities(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return self.call("token_log_probabilities", logits, tokens)
