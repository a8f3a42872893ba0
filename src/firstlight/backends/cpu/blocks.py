"""The cpu backend's kernels of whole blocks: one call of the extension each.

What the extension needs of a block, and of the rows of a step, is checked and handed over once. It
is kept among the attributes of the block, or of the rows, and so lives as long as those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from firstlight.backends.base import Kernel
from firstlight.backends.cpu import _native
from firstlight.backends.cpu.arrays import NO_WINDOW, are_floats, are_integers, are_pages, are_rows
from firstlight.backends.cpu.matrices import matrix_of
from firstlight.backends.cpu.tuned_attention import TunedAttention
from firstlight.formats.base import Floats
from firstlight.ops.attention_block import AttentionBlock
from firstlight.ops.experts_block import Expert, ExpertsBlock
from firstlight.ops.feed_forward_block import FeedForwardBlock
from firstlight.ops.gating import ClampedSwish, Gating
from firstlight.ops.head import Head
from firstlight.ops.paging import PagedRows
from firstlight.ops.parts import Norm, Product
from firstlight.ops.rounding import RoundingOf

Made = TypeVar("Made")
_KEPT = "_cpu_made"


class _CannotMake(Exception):
    """The extension cannot read a part of a block."""


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
            _kept(block, _attention_block) is not None
            and _kept(rows, _rows) is not None
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
        made, made_rows = _kept(block, _attention_block), _kept(rows, _rows)
        assert made is not None and made_rows is not None
        tuning = self._tuned.values(len(x), block.heads, keys, values, rows, block.window)
        self._native.attention_block(made, x, keys, values, made_rows, cosine_sine, out, **tuning)
        return out

    def accepts_feed_forward_block(self, x: Floats, block: FeedForwardBlock) -> bool:
        return _kept(block, _feed_forward_block) is not None and are_floats(x)

    def feed_forward_block(self, x: Floats, block: FeedForwardBlock) -> Floats:
        out = np.empty(x.shape, np.float32)
        made = _kept(block, _feed_forward_block)
        assert made is not None
        self._native.feed_forward_block(made, x, out)
        return out

    def accepts_experts_block(
        self, x: Floats, block: ExpertsBlock, token_ids: NDArray[np.int32]
    ) -> bool:
        return _kept(block, _experts_block) is not None and are_floats(x)

    def experts_block(self, x: Floats, block: ExpertsBlock, token_ids: NDArray[np.int32]) -> Floats:
        out = np.empty(x.shape, np.float32)
        made = _kept(block, _experts_block)
        assert made is not None
        chosen = None if block.hash_table is None else block.hash_table[token_ids]
        self._native.experts_block(made, x, chosen, out)
        return out

    def accepts_logits(self, x: Floats, head: Head, wanted: NDArray[np.int32]) -> bool:
        return _kept(head, _head) is not None and are_floats(x) and are_integers(wanted)

    def logits(self, x: Floats, head: Head, wanted: NDArray[np.int32]) -> Floats:
        out = np.empty((len(wanted), head.product.weight.shape[0]), np.float32)
        made = _kept(head, _head)
        assert made is not None
        self._native.logits(made, x, wanted, out)
        return out


def _kept(given: Any, make: Callable[[Any], Made]) -> Made | None:
    """What `make` makes of it, made at the first use; None where the extension cannot read it."""
    kept = given.__dict__
    if _KEPT not in kept:
        try:
            kept[_KEPT] = make(given)
        except _CannotMake:
            kept[_KEPT] = None
    made: Made | None = kept[_KEPT]
    return made


def _rows(rows: PagedRows) -> _native.PagedRows:
    if not are_rows(rows):
        raise _CannotMake
    return _native.PagedRows(rows.row_starts, rows.positions, rows.page_table, rows.page_tokens)


def _attention_block(block: AttentionBlock) -> _native.AttentionBlock:
    if not (block.sinks is None or (are_floats(block.sinks) and block.soft_cap is None)):
        raise _CannotMake
    return _native.AttentionBlock(
        heads=block.heads,
        key_value_heads=block.key_value_heads,
        head_size=block.head_size,
        query=_product(block.query),
        key=_product(block.key),
        value=_product(block.value),
        output=_product(block.output),
        scale=block.scale,
        pre_norm=_norm(block.pre_norm),
        post_norm=_norm(block.post_norm),
        query_norm=_norm(block.query_norm),
        key_norm=_norm(block.key_norm),
        window=NO_WINDOW if block.window is None else block.window,
        soft_cap=_soft_cap(block.soft_cap),
        interleaved=block.interleaved,
        residual_scale=block.residual_scale,
        sinks=block.sinks,
    )


def _feed_forward_block(block: FeedForwardBlock) -> _native.FeedForwardBlock:
    return _native.FeedForwardBlock(
        gate=_product(block.gate),
        up=_product(block.up),
        down=_product(block.down),
        activation=block.activation,
        pre_norm=_norm(block.pre_norm),
        post_norm=_norm(block.post_norm),
        residual_scale=block.residual_scale,
    )


def _experts_block(block: ExpertsBlock) -> _native.ExpertsBlock:
    if block.weighted_before:
        raise _CannotMake
    if not (block.correction is None or are_floats(block.correction)):
        raise _CannotMake
    routing, gating = block.routing, block.gating
    return _native.ExpertsBlock(
        router=_product(block.router),
        products=[product for expert in block.experts for product in _expert(expert)],
        shared=[] if block.shared is None else _expert(block.shared),
        shared_gate=None if block.shared_gate is None else _product(block.shared_gate),
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
        pre_norm=_norm(block.pre_norm),
        post_norm=_norm(block.post_norm),
        residual_scale=block.residual_scale,
        use=block.use,
        places=block.places,
    )


def _clamp(gating: Gating) -> tuple[float, float, float] | None:
    if not isinstance(gating, ClampedSwish):
        return None
    return gating.limit, gating.slope, gating.offset


def _expert(expert: Expert) -> list[_native.Product]:
    return [_product(each) for each in (expert.gate, expert.up, expert.down)]


def _head(head: Head) -> _native.Head:
    return _native.Head(
        _product(head.product), _norm(head.norm), head.scale, _soft_cap(head.soft_cap)
    )


def _product(product: Product) -> _native.Product:
    weight, bias = product.weight, product.bias
    matrix = matrix_of(weight)
    if matrix is None or not (bias is None or are_floats(bias)):
        raise _CannotMake
    return _native.Product(matrix, bias)


def _norm(norm: Norm | None) -> _native.Norm | None:
    if norm is None:
        return None
    if not (norm.weight is None or are_floats(norm.weight)):
        raise _CannotMake
    return _native.Norm(norm.size, norm.epsilon, norm.weight)


def _soft_cap(cap: float | None) -> float:
    """As the extension takes it, where 0 is none."""
    if cap is not None and not cap > 0:
        raise _CannotMake
    return cap or 0.0
