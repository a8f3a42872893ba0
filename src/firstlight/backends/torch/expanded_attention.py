"""Latent attention on the device with each head's keys and values made anew of the latents."""

from __future__ import annotations

import torch

from firstlight.backends.base import Kernel
from firstlight.backends.torch.attention import Softmax, gather, mix
from firstlight.backends.torch.matrix import DeviceMatrix
from firstlight.backends.torch.paging import readings
from firstlight.backends.torch.transfer import Transfer
from firstlight.ops.latent_attention import Expansion
from firstlight.ops.paging import PagedRows


class ExpandedAttentionKernels:
    """The kernel of one device; head after head, since expanded entries are large."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer

    def all(self) -> tuple[Kernel, ...]:
        """Every kernel."""
        return (Kernel("expanded_latent_attention", "by heads", self.attention, _pages_fit),)

    def attention(
        self,
        queries: torch.Tensor,
        entries: torch.Tensor,
        key_weight: DeviceMatrix,
        value_weight: DeviceMatrix,
        expansion: Expansion,
        rows: PagedRows,
        scale: float,
    ) -> torch.Tensor:
        count, heads, _ = queries.shape
        shape = count, heads, expansion.value_size
        out = torch.empty(shape, dtype=torch.float32, device=queries.device)
        softmax = Softmax(scale)
        for reading in readings(rows, None, heads, self._transfer):
            seen = gather(entries.unsqueeze(2), reading).float()
            latents, turned = torch.split(
                seen, [value_weight.columns, seen.shape[2] - value_weight.columns], 2
            )
            query = queries.index_select(0, reading.rows)
            for head in range(heads):
                up = _rows_of_head(key_weight, head, heads, expansion.key_first, expansion.key_size)
                plain = latents @ (up.T if expansion.key_transposed else up)
                key = torch.cat((plain, turned), 2)
                up = _rows_of_head(
                    value_weight, head, heads, expansion.value_first, expansion.value_size
                )
                value = latents @ up.T
                mixed = mix(query[:, head : head + 1], key, value, reading.hidden, softmax)
                out[:, head].index_copy_(0, reading.rows, mixed[:, 0])
        return out


def _rows_of_head(
    weight: DeviceMatrix, head: int, heads: int, first: int, size: int
) -> torch.Tensor:
    start = head * (weight.rows // heads) + first
    return weight.decode(start, start + size)


def _pages_fit(
    queries: torch.Tensor,
    entries: torch.Tensor,
    key_weight: DeviceMatrix,
    value_weight: DeviceMatrix,
    expansion: Expansion,
    rows: PagedRows,
    scale: float,
) -> bool:
    return entries.shape[1] == rows.page_tokens
