"""A layer's mixture of experts as one op, from the residual stream back to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from firstlight.ops.contract import Cost, Tolerance, define
from firstlight.ops.gating import Gating, apply_gating
from firstlight.ops.parts import (
    Norm,
    Product,
    apply_norm,
    apply_product,
    join_residual,
    product_bytes,
    product_values,
)
from firstlight.ops.routing import Routing

if TYPE_CHECKING:
    from firstlight.ops.interface import Ops

Tensor = Any
Integers = NDArray[np.int32]

_GATE_OF_SHARED = Routing(1, "sigmoid")


@dataclass(frozen=True, eq=False)
class Expert:
    """One gated network: gate and up [n, hidden_size] -> [n, width], down back again."""

    gate: Product
    up: Product
    down: Product


@dataclass(frozen=True, eq=False)
class ExpertsBlock:
    """What one layer's mixture of experts is made of, on one backend.

    Made once per layer; a backend may keep what it derives from a block for as long as that lives.

    Attributes:
        router: product of the normed stream [n, hidden_size] -> [n, experts].
        routing: from the router's results to weights.
        experts: all of the same sizes; those that are here, where others are elsewhere.
        gating: what joins each expert's gate and up.
        correction: as in `route`.
        hash_table: int32 [vocabulary, top_k] on the host: the experts of each token id, for layers
            whose tokens are not routed by score; None: by score.
        shared: an expert that every token goes to; None: there is none.
        shared_gate: product [n, hidden_size] -> [n, 1] whose sigmoid weighs the shared expert;
            None: its weight is one.
        weighted_before: a weight is the factor of what goes into an expert, not of its result.
        pre_norm, post_norm: of the stream before the block, and of the block's result; None:
            not normed.
        residual_scale: factor of what is added to the stream; None: as in `join_residual`.
        first: number of the first of `experts` among those that the router knows. A row that goes
            to others gets nothing for them here.
        use: int64 [experts] on the host, to which the rows that go to each are added; None: they
            are not counted.
        places: int64 [experts, 3, 2] on the host: address and size of each expert's gate, up and
            down where they lie in a mapped file that memory may not hold, so that a backend can
            have them read before it needs them; size 0 where that is of no use.
    """

    router: Product
    routing: Routing
    experts: tuple[Expert, ...]
    gating: Gating
    correction: Tensor | None = None
    hash_table: Integers | None = None
    shared: Expert | None = None
    shared_gate: Product | None = None
    weighted_before: bool = False
    pre_norm: Norm | None = None
    post_norm: Norm | None = None
    residual_scale: float | None = 1.0
    first: int = 0
    use: NDArray[np.int64] | None = None
    places: NDArray[np.int64] | None = None


def _experts_block_cost(x: Tensor, block: ExpertsBlock, token_ids: Integers) -> Cost:
    rows = x.shape[0]
    here, count, top_k = len(block.experts), block.router.weight.shape[0], block.routing.top_k
    always = [block.router]
    if block.shared is not None:
        always += [block.shared.gate, block.shared.up, block.shared.down]
    expert = block.experts[0]
    each = (expert.gate, expert.up, expert.down)
    # Every expert that a token goes to is read once: so many, if tokens choose independently.
    needed = here * (1 - (1 - top_k / count) ** rows)
    moved = product_bytes(*always) + round(needed * product_bytes(*each)) + 8 * x.size
    multiplied = product_values(*always) + top_k * here // count * product_values(*each)
    return Cost(moved, 2 * rows * multiplied + 12 * x.size)


@define(
    Tolerance(
        relative=1e-5,
        absolute=1e-6,
        reason="two products in a row, each with the tolerance of `linear`, weighed and summed; a "
        "step of fixed16, which the last bit of a norm may tip, is 3e-5 of one value in a row",
        tipped=2.0**-8,
    ),
    _experts_block_cost,
    composite=True,
)
def experts_block(ops: Ops, x: Tensor, block: ExpertsBlock, token_ids: Integers) -> Tensor:
    """x + residual_scale * post_norm(sum_i w_i(y) E_i(y) + w_s(y) E_s(y)) with y = pre_norm(x).

    Shazeer et al. 2017 (arXiv:1701.06538), equation 1, each expert a gated network (Shazeer 2020,
    arXiv:2002.05202, equation 6), the weights w_i those of `route`; the shared expert E_s as in
    DeepSeekMoE (Dai et al. 2024, arXiv:2401.06066, equation 9).

    Where experts lie on several devices, each has the whole router, and the sum is of those that
    are here: E_first, E_first+1 and so on.

    Each row's sum goes through the experts in ascending order, the shared one last, so that it does
    not depend on the other rows. Only experts that some row goes to are computed, each once for all
    of its rows.

    Args:
        ops: whose smaller ops this is made of.
        x: float32 [n, hidden_size], the residual stream.
        block: the layer's tensors and numbers.
        token_ids: int32 [n], on the host; read only where the block has a hash table.

    Returns:
        float32 [n, hidden_size].
    """
    count = x.shape[0]
    normed = apply_norm(ops, x, block.pre_norm)
    chosen = None if block.hash_table is None else block.hash_table[token_ids]
    logits = apply_product(ops, normed, block.router)
    weights = ops.download(ops.route(logits, block.routing, block.correction, chosen))
    weights = weights[:, block.first : block.first + len(block.experts)]
    if block.use is not None:
        block.use[...] += np.count_nonzero(weights, axis=0)
    out = ops.upload(np.zeros(x.shape, np.float32))
    for index in np.flatnonzero(weights.any(axis=0)):
        rows = np.flatnonzero(weights[:, index]).astype(np.int32)
        factors = ops.upload(np.ascontiguousarray(weights[rows, index]))
        given = normed if len(rows) == count else ops.take_rows(normed, rows)
        if block.weighted_before:
            weighed = ops.upload(np.zeros(given.shape, np.float32))
            ops.add_rows(weighed, given, np.arange(len(rows), dtype=np.int32), factors)
            given, factors = weighed, ops.upload(np.ones(len(rows), np.float32))
        result = apply_expert(ops, given, block.experts[index], block.gating)
        ops.add_rows(out, result, rows, factors)
    if block.shared is not None:
        shared = apply_expert(ops, normed, block.shared, block.gating)
        if block.shared_gate is None:
            out = ops.add(out, shared)
        else:
            gate = ops.route(apply_product(ops, normed, block.shared_gate), _GATE_OF_SHARED)
            every = np.arange(count, dtype=np.int32)
            ops.add_rows(out, shared, every, gate.reshape((count,)))
    return join_residual(ops, x, out, block.post_norm, block.residual_scale)


def apply_expert(ops: Ops, x: Tensor, expert: Expert, gating: Gating) -> Tensor:
    """float32 [n, hidden_size] -> [n, hidden_size]."""
    gate, up = apply_product(ops, x, expert.gate), apply_product(ops, x, expert.up)
    return apply_product(ops, apply_gating(ops, gate, up, gating), expert.down)
