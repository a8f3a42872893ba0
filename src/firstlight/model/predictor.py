"""Multi-token prediction: a layer behind the last that guesses the token after the next."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from firstlight.model.batch import Batch
from firstlight.model.decoder import Decoder, State
from firstlight.model.parts import norm, product
from firstlight.model.residual import connection, merged_rows, repeated, side_by_side
from firstlight.model.spec import SumSpec
from firstlight.ops import Head, Tensor
from firstlight.ops.parts import apply_norm, apply_product


class Predictor:
    """A decoder's predictor (DeepSeek-V3, arXiv:2412.19437, section 2.2).

    Its layer's entries lie among the decoder's state. The one of position i is made of the model's
    hidden state there and of the token at i + 1, and can be written as soon as that is known.

    A hidden state is here a row of as many values as the model has residual streams, side by side.

    Args:
        decoder: whose spec has a predictor.
    """

    def __init__(self, decoder: Decoder) -> None:
        spec = decoder.spec
        assert spec.predictor is not None
        weights = decoder.weights
        self.decoder = decoder
        self._streams = spec.residual_streams
        self._last_norm = norm(spec.final_norm, weights)
        self._embedding_norm = norm(spec.predictor.embedding_norm, weights)
        self._hidden_norm = norm(spec.predictor.hidden_norm, weights)
        join = spec.predictor.join
        parts = (join.embedding, join.hidden) if isinstance(join, SumSpec) else (join,)
        self._join = tuple(product(part, weights) for part in parts)
        self._place = len(spec.layers)
        self._layer = decoder.make_layer(self._place, spec.predictor.layer, weights)
        self._end = connection(spec.predictor.connection, weights)
        self._final_norm = norm(spec.predictor.final_norm, weights)
        norm_of_head = None if self._end is None else self._final_norm
        self._head = Head(
            product(spec.head, weights), norm_of_head, spec.logit_scale, spec.logit_soft_cap
        )

    def last_hidden(self, hidden: Tensor) -> Tensor:
        """What `Decoder.hidden` gave, as `predict` takes it.

        With one residual stream that is after the model's last norm: the paper leaves open on which
        side of it its h^0 lies, and what runs the published layers well takes it after the norm.
        With several it is before they are joined, and so before that norm.
        """
        if self._end is not None:
            return side_by_side(hidden)
        return apply_norm(self.decoder.ops, hidden, self._last_norm)

    def predict(self, batch: Batch, hidden: Tensor, state: State) -> Tensor:
        """Run the layer on rows, and write its entries into the state: equations 21 and 22.

        Tokens further ahead are guessed by the same layer, from its own result.

        Args:
            batch: the rows' positions; `token_ids` are those of the tokens that follow the rows.
            hidden: float32 [rows, streams * hidden_size], of `last_hidden` or an earlier `predict`.

        Returns:
            float32 [rows, streams * hidden_size]; of one stream after the layer's own last norm.
        """
        decoder = self.decoder
        ops = decoder.ops
        rows, angles = decoder.rows_and_angles(batch)
        embedded = apply_norm(ops, decoder.embed(batch.token_ids), self._embedding_norm)
        x = self._joined(embedded, hidden)
        x = decoder.run_layer(self._layer, x, state[self._place], rows, angles, batch.token_ids)
        return apply_norm(ops, x, self._final_norm) if self._end is None else side_by_side(x)

    def logits(self, predicted: Tensor, wanted: NDArray[np.int32]) -> Tensor:
        """Equation 23: logits of the token after the one that follows, float32 [len(wanted),
        vocabulary_size], of some rows of what `predict` gave."""
        ops = self.decoder.ops
        if self._end is not None:
            predicted, wanted = merged_rows(ops, self._apart(predicted), wanted, self._end)
        return ops.logits(predicted, self._head, wanted)

    def _joined(self, embedded: Tensor, hidden: Tensor) -> Tensor:
        """What the layer sees: [rows, hidden_size], or [rows, streams, hidden_size]."""
        ops, (first, *others) = self.decoder.ops, self._join
        rows, streams = embedded.shape[0], self._streams
        if not others:
            hidden = apply_norm(ops, hidden, self._hidden_norm)
            return apply_product(ops, ops.join_columns(embedded, hidden), first)
        each = hidden.reshape((rows * streams, embedded.shape[1]))
        each = apply_product(ops, apply_norm(ops, each, self._hidden_norm), others[0])
        all_alike = side_by_side(repeated(ops, apply_product(ops, embedded, first), streams))
        return self._apart(ops.add(each.reshape(all_alike.shape), all_alike))

    def _apart(self, rows: Tensor) -> Tensor:
        """[n, streams * hidden_size] -> [n, streams, hidden_size]."""
        count, size = rows.shape
        return rows.reshape((count, self._streams, size // self._streams))
