"""Multi-token prediction: a layer behind the last that guesses the token after the next."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from firstlight.model.batch import Batch
from firstlight.model.decoder import Decoder, State
from firstlight.model.parts import norm, product
from firstlight.ops import Head, Tensor
from firstlight.ops.parts import apply_norm, apply_product


class Predictor:
    """A decoder's predictor (DeepSeek-V3, arXiv:2412.19437, section 2.2).

    Its layer's entries lie among the decoder's state. The one of position i is made of the model's
    hidden state there and of the token at i + 1, and can be written as soon as that is known.

    Args:
        decoder: whose spec has a predictor.
    """

    def __init__(self, decoder: Decoder) -> None:
        spec = decoder.spec
        assert spec.predictor is not None
        weights = decoder.weights
        self.decoder = decoder
        self._last_norm = norm(spec.final_norm, weights)
        self._embedding_norm = norm(spec.predictor.embedding_norm, weights)
        self._hidden_norm = norm(spec.predictor.hidden_norm, weights)
        self._join = product(spec.predictor.join, weights)
        self._place = len(spec.layers)
        self._layer = decoder.make_layer(self._place, spec.predictor.layer, weights)
        self._final_norm = norm(spec.predictor.final_norm, weights)
        self._head = Head(product(spec.head, weights), None, spec.logit_scale, spec.logit_soft_cap)

    def last_hidden(self, hidden: Tensor) -> Tensor:
        """What `Decoder.hidden` gave, as `predict` takes it: after the model's last norm.

        The paper leaves open on which side of that norm its h^0 lies. What runs the published
        layers well takes it after the norm.
        """
        return apply_norm(self.decoder.ops, hidden, self._last_norm)

    def predict(self, batch: Batch, hidden: Tensor, state: State) -> Tensor:
        """Run the layer on rows, and write its entries into the state: equations 21 and 22.

        Tokens further ahead are guessed by the same layer, from its own result.

        Args:
            batch: the rows' positions; `token_ids` are those of the tokens that follow the rows.
            hidden: float32 [rows, hidden_size], of `last_hidden` or an earlier `predict`.

        Returns:
            float32 [rows, hidden_size], after the layer's own last norm.
        """
        decoder = self.decoder
        ops = decoder.ops
        rows, angles = decoder.rows_and_angles(batch)
        embedded = apply_norm(ops, decoder.embed(batch.token_ids), self._embedding_norm)
        joined = ops.join_columns(embedded, apply_norm(ops, hidden, self._hidden_norm))
        x = apply_product(ops, joined, self._join)
        x = decoder.run_layer(self._layer, x, state[self._place], rows, angles, batch.token_ids)
        return apply_norm(ops, x, self._final_norm)

    def logits(self, predicted: Tensor, wanted: NDArray[np.int32]) -> Tensor:
        """Equation 23: logits of the token after the one that follows, float32 [len(wanted),
        vocabulary_size], of some rows of what `predict` gave."""
        return self.decoder.ops.logits(predicted, self._head, wanted)
