"""The forward pass, once for every model and every chip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firstlight.model import attention
from firstlight.model.batch import Batch
from firstlight.model.feed_forward import feed_forward
from firstlight.model.parts import norm, product
from firstlight.model.rope import cosines_and_sines
from firstlight.model.spec import LayerSpec, ModelSpec, RopeSpec
from firstlight.model.stream import group_streams
from firstlight.model.weights import Weights
from firstlight.ops import ExpertsBlock, FeedForwardBlock, Head, Ops, PagedRows, Tensor

# For each layer, the pages of each of its streams, as `Decoder.streams` has them.
State = tuple[tuple[Tensor, ...], ...]
# The angles of each rotary embedding, as the op `rotary` takes them.
Tables = dict[RopeSpec, Tensor]


@dataclass(frozen=True)
class Layer:
    """One layer on the backend; `group` is the stream group of its attention."""

    attention: attention.Block
    feed_forward: FeedForwardBlock | ExpertsBlock
    rope: RopeSpec | None
    group: int


class Decoder:
    """A model on a backend.

    Attributes:
        streams: for each layer, the streams it keeps; those of a predictor's layer last.
        groups: streams that share stride and window, and so page tables.
        after_pass: called after each pass through the layers.
    """

    def __init__(self, spec: ModelSpec, weights: Weights, ops: Ops) -> None:
        self.spec = spec
        self.weights = weights
        self.ops = ops
        self.after_pass: Callable[[], None] | None = None
        self.streams = tuple(attention.streams(layer.attention) for layer in spec.all_layers)
        self.groups = group_streams(self.streams)
        self._group_of = {
            member: index for index, group in enumerate(self.groups) for member in group.members
        }
        self._ropes = spec.ropes()
        self._embedding = weights[spec.embedding]
        self._layers = tuple(
            self.make_layer(index, layer, weights) for index, layer in enumerate(spec.layers)
        )
        self._head = Head(
            product(spec.head, weights),
            norm(spec.final_norm, weights),
            spec.logit_scale,
            spec.logit_soft_cap,
        )

    def new_state(self, pages: tuple[int, ...], page_tokens: int, dtype: str) -> State:
        """Zeroed pages for every stream.

        Args:
            pages: how many, for each stream group.
            page_tokens: token positions per page, a multiple of every stride.
            dtype: "float32" or "bfloat16".
        """
        return tuple(
            tuple(
                self.ops.new_stream(
                    pages[self._group_of[layer, index]],
                    page_tokens // stream.stride,
                    stream.entry_shape,
                    dtype,
                )
                for index, stream in enumerate(streams)
            )
            for layer, streams in enumerate(self.streams)
        )

    def step(self, batch: Batch, state: State) -> Tensor:
        """Compute every row of the batch and write its entries into the state.

        Returns:
            Logits float32 [len(batch.wanted), vocabulary_size].
        """
        return self.logits(self.hidden(batch, state), batch.wanted)

    def logits(self, hidden: Tensor, wanted: NDArray[np.int32]) -> Tensor:
        """Logits float32 [len(wanted), vocabulary_size] of some rows of what `hidden` gave."""
        return self.ops.logits(hidden, self._head, wanted)

    def hidden(self, batch: Batch, state: State) -> Tensor:
        """Compute every row of the batch, up to the output head, and write its entries into the
        state.

        Returns:
            The residual stream after the last layer, float32 [rows, hidden_size].
        """
        rows, tables = self.rows_and_tables(batch)
        x = self.embed(batch.token_ids)
        for layer, pages in zip(self._layers, state, strict=False):
            x = self.run_layer(layer, x, pages, rows, tables, batch.token_ids)
        if self.after_pass is not None:
            self.after_pass()
        return x

    def expert_blocks(self) -> tuple[ExpertsBlock | None, ...]:
        """Of each layer, or None where it has no experts."""
        blocks = (layer.feed_forward for layer in self._layers)
        return tuple(each if isinstance(each, ExpertsBlock) else None for each in blocks)

    # Parts of a step -------------------------------------------------------------------------

    def rows_and_tables(self, batch: Batch) -> tuple[tuple[PagedRows, ...], Tables]:
        """The rows as each stream group sees them, and the angles of each rotary embedding."""
        rows = tuple(batch.paged_rows(group) for group in range(len(self.groups)))
        upload = self.ops.upload
        tables = {
            rope: upload(cosines_and_sines(rope, batch.positions, batch.lengths))
            for rope in self._ropes
        }
        return rows, tables

    def embed(self, token_ids: NDArray[np.int32]) -> Tensor:
        """The residual stream before the first layer: float32 [rows, hidden_size]."""
        x = self.ops.embed(self._embedding, token_ids)
        factor = self.spec.embedding_scale
        return x if factor == 1.0 else self.ops.scale(x, factor)

    def run_layer(
        self,
        layer: Layer,
        x: Tensor,
        pages: tuple[Tensor, ...],
        rows: tuple[PagedRows, ...],
        tables: Tables,
        token_ids: NDArray[np.int32],
    ) -> Tensor:
        """The residual stream after one layer."""
        table = None if layer.rope is None else tables[layer.rope]
        x = attention.attend(self.ops, x, layer.attention, pages, rows[layer.group], table)
        if isinstance(layer.feed_forward, ExpertsBlock):
            return self.ops.experts_block(x, layer.feed_forward, token_ids)
        return self.ops.feed_forward_block(x, layer.feed_forward)

    def make_layer(self, index: int, layer: LayerSpec, weights: Weights) -> Layer:
        """A layer on the backend; `index` is its place among all that have state."""
        return Layer(
            attention.attention_block(layer.attention, layer.attention_residual, weights),
            feed_forward(layer.feed_forward, layer.feed_forward_residual, weights),
            layer.attention.rope,
            self._group_of[index, 0],
        )
