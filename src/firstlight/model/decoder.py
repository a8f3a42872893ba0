"""The forward pass, once for every model and every chip."""

from __future__ import annotations

from firstlight.model import attention
from firstlight.model.batch import Batch
from firstlight.model.feed_forward import feed_forward
from firstlight.model.residual import join, norm
from firstlight.model.rope import cosines_and_sines
from firstlight.model.spec import LayerSpec, ModelSpec
from firstlight.model.stream import group_streams
from firstlight.model.weights import Weights
from firstlight.ops import Ops, PagedRows, Tensor

# For each layer, the pages of each of its streams.
State = tuple[tuple[Tensor, ...], ...]


class Decoder:
    """A model on a backend.

    Attributes:
        streams: for each layer, the streams it keeps.
        groups: streams that share stride and window, and so page tables.
    """

    def __init__(self, spec: ModelSpec, weights: Weights, ops: Ops) -> None:
        self.spec = spec
        self.weights = weights
        self.ops = ops
        self.streams = tuple(attention.streams(layer.attention) for layer in spec.layers)
        self.groups = group_streams(self.streams)
        self._group_of = {
            member: index for index, group in enumerate(self.groups) for member in group.members
        }

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
        ops, spec, weights = self.ops, self.spec, self.weights
        rows = tuple(batch.paged_rows(group) for group in range(len(self.groups)))
        tables = {
            rope: ops.upload(cosines_and_sines(rope, batch.positions, batch.lengths))
            for rope in spec.ropes()
        }
        x = ops.embed(weights[spec.embedding], batch.token_ids)
        if spec.embedding_scale != 1.0:
            x = ops.scale(x, spec.embedding_scale)
        for index, layer in enumerate(spec.layers):
            layer_rows = tuple(
                rows[self._group_of[index, stream]] for stream in range(len(self.streams[index]))
            )
            rope = layer.attention.rope
            table = None if rope is None else tables[rope]
            x = self._layer(layer, x, state[index], layer_rows, table)
        x = ops.take_rows(x, batch.wanted)
        x = norm(spec.final_norm, weights, ops, x)
        head_bias = None if spec.head.bias is None else weights[spec.head.bias]
        logits = ops.linear(x, weights[spec.head.weight], head_bias)
        if spec.logit_scale != 1.0:
            logits = ops.scale(logits, spec.logit_scale)
        if spec.logit_soft_cap is not None:
            logits = ops.soft_cap(logits, spec.logit_soft_cap)
        return logits

    def _layer(
        self,
        layer: LayerSpec,
        x: Tensor,
        pages: tuple[Tensor, ...],
        rows: tuple[PagedRows, ...],
        cosine_sine: Tensor | None,
    ) -> Tensor:
        ops, weights = self.ops, self.weights

        def attend(normed: Tensor) -> Tensor:
            return attention.attend(layer.attention, weights, ops, normed, pages, rows, cosine_sine)

        def feed(normed: Tensor) -> Tensor:
            return feed_forward(layer.feed_forward, weights, ops, normed)

        x = join(layer.attention_residual, weights, ops, x, attend)
        return join(layer.feed_forward_residual, weights, ops, x, feed)
