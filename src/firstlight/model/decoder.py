"""The forward pass, once for every model and every chip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from firstlight.model import attention
from firstlight.model.angles import Angles
from firstlight.model.batch import Batch
from firstlight.model.feed_forward import feed_forward
from firstlight.model.parts import norm, product
from firstlight.model.residual import (
    Connection,
    PartialSum,
    connection,
    merged_rows,
    partial_sum,
    repeated,
    summed,
    through,
)
from firstlight.model.rope_spec import RopeSpec
from firstlight.model.spec import LayerSpec, ModelSpec
from firstlight.model.stream import group_streams
from firstlight.model.vocabulary import embed_part, join_vocabulary
from firstlight.model.weights import Weights
from firstlight.ops import (
    Collective,
    ExpertsBlock,
    FeedForwardBlock,
    Head,
    Ops,
    PagedRows,
    Tensor,
)

# For each layer, the pages of each of its streams, as `Decoder.streams` has them.
State = tuple[tuple[Tensor, ...], ...]


@dataclass(frozen=True)
class Layer:
    """One layer on the backend; `groups` are the stream groups of its streams."""

    attention: attention.Block
    feed_forward: FeedForwardBlock | ExpertsBlock
    rope: RopeSpec | None
    groups: tuple[int, ...]
    attention_connection: Connection | None
    feed_forward_connection: Connection | None
    attention_sum: PartialSum | None
    feed_forward_sum: PartialSum | None


class Decoder:
    """A model on a backend.

    Attributes:
        streams: for each layer, the streams it keeps; those of a predictor's layer last.
        groups: streams that share stride and window, and so page tables.
        angle_tables: the rotary tables that its layers ask for, each once.
        after_pass: called after each pass through the layers.

    Args:
        ranks: what joins this rank with the others that have the rest of the model, where `spec`
            is a part of one.
    """

    def __init__(
        self, spec: ModelSpec, weights: Weights, ops: Ops, ranks: Collective | None = None
    ) -> None:
        assert (ranks is None) == (spec.part is None)
        self.spec = spec
        self.ranks = ranks
        self.weights = weights
        self.ops = ops
        self.after_pass: Callable[[], None] | None = None
        self.streams = tuple(attention.streams(layer.attention) for layer in spec.all_layers)
        self.groups = group_streams(self.streams)
        self._group_of = {
            member: index for index, group in enumerate(self.groups) for member in group.members
        }
        self._embedding = weights[spec.embedding]
        self._layers = tuple(
            self.make_layer(index, layer, weights) for index, layer in enumerate(spec.layers)
        )
        tables = (attention.angle_tables(layer.attention) for layer in spec.layers)
        self.angle_tables = tuple(dict.fromkeys(chain.from_iterable(tables)))
        self._end = connection(spec.connection, weights)
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
        if self._end is not None:
            hidden, wanted = merged_rows(self.ops, hidden, wanted, self._end)
        logits = self.ops.logits(hidden, self._head, wanted)
        return logits if self.ranks is None else join_vocabulary(self.spec, self.ranks, logits)

    def hidden(self, batch: Batch, state: State) -> Tensor:
        """Compute every row of the batch, up to the output head, and write its entries into the
        state.

        Returns:
            The residual stream after the last layer, float32 [rows, hidden_size]; or all of them,
            [rows, streams, hidden_size].
        """
        rows, angles = self.rows_and_angles(batch)
        x = self.embed(batch.token_ids)
        if self._end is not None:
            x = repeated(self.ops, x, self.spec.residual_streams)
        for layer, pages in zip(self._layers, state, strict=False):
            x = self.run_layer(layer, x, pages, rows, angles, batch.token_ids)
        if self.after_pass is not None:
            self.after_pass()
        return x

    def expert_blocks(self) -> tuple[ExpertsBlock | None, ...]:
        """Of each layer, or None where it has no experts."""
        blocks = (layer.feed_forward for layer in self._layers)
        return tuple(each if isinstance(each, ExpertsBlock) else None for each in blocks)

    def check(self) -> None:
        """DeviceError where nothing can be computed any more, which only some decoders know."""

    # Parts of a step -------------------------------------------------------------------------

    def rows_and_angles(self, batch: Batch) -> tuple[tuple[PagedRows, ...], Angles]:
        """The rows as each stream group sees them, and the angles that layers ask for."""
        rows = tuple(batch.paged_rows(group) for group in range(len(self.groups)))
        return rows, Angles(self.ops, batch)

    def embed(self, token_ids: NDArray[np.int32]) -> Tensor:
        """The residual stream before the first layer: float32 [rows, hidden_size]."""
        if self.ranks is None:
            x = self.ops.embed(self._embedding, token_ids)
        else:
            x = embed_part(self.ops, self.spec, self.ranks, self._embedding, token_ids)
        factor = self.spec.embedding_scale
        return x if factor == 1.0 else self.ops.scale(x, factor)

    def run_layer(
        self,
        layer: Layer,
        x: Tensor,
        pages: tuple[Tensor, ...],
        rows: tuple[PagedRows, ...],
        angles: Angles,
        token_ids: NDArray[np.int32],
    ) -> Tensor:
        """The residual stream, or streams, after one layer."""
        ops = self.ops

        def attend(x: Tensor) -> Tensor:
            mine = tuple(rows[group] for group in layer.groups)
            y = attention.attend(ops, x, layer.attention, pages, mine, layer.rope, angles)
            return summed(ops, self.ranks, x, y, layer.attention_sum)

        def feed(x: Tensor) -> Tensor:
            if isinstance(layer.feed_forward, ExpertsBlock):
                y = ops.experts_block(x, layer.feed_forward, token_ids)
            else:
                y = ops.feed_forward_block(x, layer.feed_forward)
            return summed(ops, self.ranks, x, y, layer.feed_forward_sum)

        x = through(ops, x, layer.attention_connection, attend)
        return through(ops, x, layer.feed_forward_connection, feed)

    def make_layer(self, index: int, layer: LayerSpec, weights: Weights) -> Layer:
        """A layer on the backend; `index` is its place among all that have state."""
        return Layer(
            attention.attention_block(layer.attention, layer.attention_residual, weights),
            feed_forward(layer.feed_forward, layer.feed_forward_residual, weights),
            layer.attention.rope,
            tuple(self._group_of[index, stream] for stream in range(len(self.streams[index]))),
            connection(layer.attention_residual.connection, weights),
            connection(layer.feed_forward_residual.connection, weights),
            partial_sum(layer.attention_residual, weights),
            partial_sum(layer.feed_forward_residual, weights),
        )
