"""The cpu backend's kernel of a layer's latent attention: one call of the extension."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.backends.base import Kernel
from firstlight.backends.cpu import _native
from firstlight.backends.cpu.arrays import are_floats, are_pages
from firstlight.backends.cpu.block_parts import (
    CannotMake,
    made_of,
    norm_of,
    product_of,
    rows_of,
)
from firstlight.backends.cpu.latent import HeadPart, in_panels, matrices_of_heads
from firstlight.backends.cpu.packed import PackedMatrix
from firstlight.formats.base import Floats
from firstlight.ops.head_linear import HeadProduct
from firstlight.ops.latent_attention_block import LatentAttentionBlock
from firstlight.ops.paging import PagedRows
from firstlight.ops.rounding import RoundingOf


class LatentBlockKernels:
    """The kernel of one instruction level, with the signature of its op.

    Args:
        native: the extension's kernels.
        rounding: how products round their activations, with the weights that `pack` gives.
    """

    def __init__(self, native: _native.Kernels, rounding: RoundingOf) -> None:
        self._native = native
        self._rounding = rounding

    def all(self) -> tuple[Kernel, ...]:
        """Every kernel."""
        return (
            Kernel(
                "latent_attention_block",
                "fused",
                self.latent_attention_block,
                self.accepts_latent_attention_block,
                self._rounding,
            ),
        )

    def accepts_latent_attention_block(
        self,
        x: Floats,
        block: LatentAttentionBlock,
        entries: NDArray[Any],
        rows: PagedRows,
        cosine_sine: Floats,
    ) -> bool:
        return (
            made_of(block, _latent_block) is not None
            and made_of(rows, rows_of) is not None
            and are_floats(x)
            and are_pages(entries)
            and are_floats(cosine_sine)
        )

    def latent_attention_block(
        self,
        x: Floats,
        block: LatentAttentionBlock,
        entries: NDArray[Any],
        rows: PagedRows,
        cosine_sine: Floats,
    ) -> Floats:
        out = np.empty(x.shape, np.float32)
        made, made_rows = made_of(block, _latent_block), made_of(rows, rows_of)
        assert made is not None and made_rows is not None
        self._native.latent_block(made, x, entries, made_rows, cosine_sine, out)
        return out


def _latent_block(block: LatentAttentionBlock) -> _native.LatentBlock:
    if block.expanded or block.residual_scale is None:
        raise CannotMake
    return _native.LatentBlock(
        latent_size=block.latent_size,
        plain_size=block.plain_size,
        rope_size=block.rope_size,
        value_size=block.value_size,
        query_down=None if block.query_down is None else product_of(block.query_down),
        query_down_norm=norm_of(block.query_down_norm),
        query=product_of(block.query),
        latent=product_of(block.latent),
        latent_norm=norm_of(block.latent_norm),
        key_up=_up(block.heads, block.key_up),
        value_up=_up(block.heads, block.value_up),
        output=product_of(block.output),
        scale=block.scale,
        interleaved=block.interleaved,
        pre_norm=norm_of(block.pre_norm),
        post_norm=norm_of(block.post_norm),
        residual_scale=block.residual_scale,
    )


def _up(heads: int, product: HeadProduct) -> list[_native.Product]:
    """Each head's part of an up-projection.

    One that is packed, and yet not used so, rounds nothing, unlike all others of its format: it is
    left to the parts.
    """
    weight = product.weight
    part = HeadPart(heads, product.first, product.size, product.transposed)
    if isinstance(weight, PackedMatrix) and not part.transposed and not in_panels(weight, part):
        raise CannotMake
    return [_native.Product(matrix, None) for matrix in matrices_of_heads(weight, part)]
