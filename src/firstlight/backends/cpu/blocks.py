"""The cpu backend's kernels of whole blocks: one call of the extension each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.backends.base import Kernel
from firstlight.backends.cpu import _native
from firstlight.backends.cpu.arrays import NO_WINDOW, are_floats, are_integers, are_pages
from firstlight.backends.cpu.block_parts import (
    CannotMake,
    made_of,
    norm_of,
    product_of,
    rows_of,
)
from firstlight.backends.cpu.tuned_attention import TunedAttention
from firstlight.formats.base import Floats
from firstlight.ops.attention_block import AttentionBlock
from firstlight.ops.experts_block import Expert, ExpertsBlock
from firstlight.ops.feed_forward_block import FeedForwardBlock
from firstlight.ops.gating import ClampedSwish, Gating
from firstlight.ops.head import Head
from firstlight.ops.paging import PagedRows
from firstlight.ops.rounding import RoundingOf


class BlockKernels:
    """The kernels of one instruction level, each with the signature of its op.

    Args:
        native: the extension's kernels.
        rounding: how products round their activations, with the weights that `pack` gives.
        tuned: how attention is cut.
    """

    def __init__(
        self, native: _native.Kernels, rounding: RoundingOf, tuned: TunedAttention
    ) -> None:
        self._native = native
        self._rounding = rounding
        self._tuned = tuned

    def all(self) -> tuple[Kernel, ...]:
        """Every kernel."""
        return (
            Kernel(
                "attention_block",
                "fused",
                self.attention_block,
                self.accepts_attention_block,
                self._rounding,
            ),
            Kernel(
                "feed_forward_block",
                "fused",
                self.feed_forward_block,
                self.accepts_feed_forward_block,
                self._rounding,
            ),
            Kernel(
                "experts_block",
                "fused",
                self.experts_block,
                self.accepts_experts_block,
                self._rounding,
            ),
            Kernel("logits", "fused", self.logits, self.accepts_logits, self._rounding),
        )

    def accepts_attention_block(
        self,
        x: Floats,
        block: AttentionBlock,
        keys: NDArray[Any],
        values: NDArray[Any],
        rows: PagedRows,
        cosine_sine: Floats | None,
    ) -> bool:
        return (
            made_of(block, _attention_block) is not None
            and made_of(rows, rows_of) is not None
            and are_floats(x)
            and are_pages(keys)
            and are_pages(values)
            and (cosine_sine is None or are_floats(cosine_sine))
        )

    def attention_block(
        self,
        x: Floats,
        block: AttentionBlock,
        keys: NDArray[Any],
        values: NDArray[Any],
        rows: PagedRows,
        cosine_sine: Floats | None,
    ) -> Floats:
        out = np.empty(x.shape, np.float32)
        made, made_rows = made_of(block, _attention_block), made_of(rows, rows_of)
        assert made is not None and made_rows is not None
        tuning = self._tuned.values(len(x), block.heads, keys, values, rows, block.window)
        self._native.attention_block(made, x, keys, values, made_rows, cosine_sine, out, **tuning)
        return out

    def accepts_feed_forward_block(self, x: Floats, block: FeedForwardBlock) -> bool:
        return made_of(block, _feed_forward_block) is not None and are_floats(x)

    def feed_forward_block(self, x: Floats, block: FeedForwardBlock) -> Floats:
        out = np.empty(x.shape, np.float32)
        made = made_of(block, _feed_forward_block)
        assert made is not None
        self._native.feed_forward_block(made, x, out)
        return out

    def accepts_experts_block(
        self, x: Floats, block: ExpertsBlock, token_ids: NDArray[np.int32]
    ) -> bool:
        return made_of(block, _experts_block) is not None and are_floats(x)

    def experts_block(self, x: Floats, block: ExpertsBlock, token_ids: NDArray[np.int32]) -> Floats:
        out = np.empty(x.shape, np.float32)
        made = made_of(block, _experts_block)
        assert made is not None
        chosen = None if block.hash_table is None else block.hash_table[token_ids]
        self._native.experts_block(made, x, chosen, out)
        return out

    def accepts_logits(self, x: Floats, head: Head, wanted: NDArray[np.int32]) -> bool:
        return made_of(head, _head) is not None and are_floats(x) and are_integers(wanted)

    def logits(self, x: Floats, head: Head, wanted: NDArray[np.int32]) -> Floats:
        out = np.empty((len(wanted), head.product.weight.shape[0]), np.float32)
        made = made_of(head, _head)
        assert made is not None
        self._native.logits(made, x, wanted, out)
        return out


def _attention_block(block: AttentionBlock) -> _native.AttentionBlock:
    if not (block.sinks is None or (are_floats(block.sinks) and block.soft_cap is None)):
        raise CannotMake
    return _native.AttentionBlock(
        heads=block.heads,
        key_value_heads=block.key_value_heads,
        head_size=block.head_size,
        query=product_of(block.query),
        key=product_of(block.key),
        value=product_of(block.value),
        output=product_of(block.output),
        scale=block.scale,
        pre_norm=norm_of(block.pre_norm),
        post_norm=norm_of(block.post_norm),
        query_norm=norm_of(block.query_norm),
        key_norm=norm_of(block.key_norm),
        window=NO_WINDOW if block.window is None else block.window,
        soft_cap=_soft_cap(block.soft_cap),
        interleaved=block.interleaved,
        residual_scale=block.residual_scale,
        sinks=block.sinks,
    )


def _feed_forward_block(block: FeedForwardBlock) -> _native.FeedForwardBlock:
    return _native.FeedForwardBlock(
        gate=product_of(block.gate),
        up=product_of(block.up),
        down=product_of(block.down),
        activation=block.activation,
        pre_norm=norm_of(block.pre_norm),
        post_norm=norm_of(block.post_norm),
        residual_scale=block.residual_scale,
    )


def _experts_block(block: ExpertsBlock) -> _native.ExpertsBlock:
    if block.weighted_before:
        raise CannotMake
    if not (block.correction is None or are_floats(block.correction)):
        raise CannotMake
    if len(block.experts) != block.router.weight.shape[0]:
        raise CannotMake
    routing, gating = block.routing, block.gating
    return _native.ExpertsBlock(
        router=product_of(block.router),
        products=[product for expert in block.experts for product in _expert(expert)],
        shared=[] if block.shared is None else _expert(block.shared),
        shared_gate=None if block.shared_gate is None else product_of(block.shared_gate),
        activation="silu" if isinstance(gating, ClampedSwish) else gating,
        clamp=_clamp(gating),
        top_k=routing.top_k,
        score=routing.score,
        groups=routing.groups,
        groups_kept=routing.groups_kept,
        group_counted=1 if routing.group_score == "largest" else 2,
        renormalised=routing.renormalised,
        scale=routing.scale,
        correction=block.correction,
        pre_norm=norm_of(block.pre_norm),
        post_norm=norm_of(block.post_norm),
        residual_scale=block.residual_scale,
        use=block.use,
        places=block.places,
    )


def _clamp(gating: Gating) -> tuple[float, float, float] | None:
    if not isinstance(gating, ClampedSwish):
        return None
    return gating.limit, gating.slope, gating.offset


def _expert(expert: Expert) -> list[_native.Product]:
    return [product_of(each) for each in (expert.gate, expert.up, expert.down)]


def _head(head: Head) -> _native.Head:
    return _native.Head(
        product_of(head.product), norm_of(head.norm), head.scale, _soft_cap(head.soft_cap)
    )


def _soft_cap(cap: float | None) -> float:
    """As the extension takes it, where 0 is none."""
    if cap is not None and not cap > 0:
        raise CannotMake
    return cap or 0.0
