"""The numpy backend: every op is its definition. The oracle, and the chip nobody lacks."""

from __future__ import annotations

from typing import Any

from firstlight.backends.base import Backend
from firstlight.ops.attention import attend, state_format
from firstlight.ops.compressed_attention import attend_compressed
from firstlight.ops.latent_attention import attend_latents
from firstlight.ops.rounding import RoundingOf, no_rounding, round_activations
from firstlight.ops.selected_latent_attention import attend_selected


class NumpyBackend(Backend):
    """No kernels at all, so that dispatch runs every definition on the host.

    Args:
        rounding: how `linear` and `head_linear` round their activations, and `attention`,
            `latent_attention`, `selected_latent_attention` and `compressed_attention` their
            queries and weights; as an oracle for kernels that do so.
    """

    name = "numpy"

    def __init__(self, rounding: RoundingOf = no_rounding) -> None:
        super().__init__()
        self._rounding = rounding

    def call(self, name: str, *arguments: Any) -> Any:
        if name == "linear":
            x, weight, *rest = arguments
            x = round_activations(x, self._rounding(weight.format))
            return super().call(name, x, weight, *rest)
        if name == "head_linear" and not arguments[-1]:
            # The other direction is laid out anew, as a rule in float32, and rounds nothing.
            x, weight, *rest = arguments
            rows = x.reshape(-1, x.shape[-1])
            x = round_activations(rows, self._rounding(weight.format)).reshape(x.shape)
            return super().call(name, x, weight, *rest)
        if name == "attention":
            queries, keys, values, rows, scale, window, soft_cap = arguments
            format = state_format(keys, values)
            rounding = self._rounding(format)
            if rounding == "bfloat16" and format.name == "bf16":
                return attend(queries, keys, values, rows, scale, window, soft_cap, rounding)
        if name == "latent_attention":
            queries, entries, value_size, rows, scale = arguments
            format = state_format(entries, entries)
            rounding = self._rounding(format)
            if rounding == "bfloat16" and format.name == "bf16":
                return attend_latents(queries, entries, value_size, rows, scale, rounding)
        if name == "selected_latent_attention":
            queries, entries, value_size, rows, selected, scale = arguments
            format = state_format(entries, entries)
            rounding = self._rounding(format)
            if rounding == "bfloat16" and format.name == "bf16":
                return attend_selected(
                    queries, entries, value_size, rows, selected, scale, rounding
                )
        if name == "compressed_attention":
            _, keys, _, _, entries, *_ = arguments
            format = state_format(keys, entries)
            rounding = self._rounding(format)
            if rounding == "bfloat16" and format.name == "bf16":
                return attend_compressed(*arguments, rounding=rounding)
        return super().call(name, *arguments)
