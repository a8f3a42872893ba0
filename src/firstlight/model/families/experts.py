"""Mixtures of experts, in the layouts that they are published in.

The tensors of a layer's experts lie one by one, or stacked in one tensor for all experts; gate and
up of an expert lie apart, or fused in one tensor, one after the other or row by row in turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from firstlight.model.families.config import shown
from firstlight.model.families.parts import Parts
from firstlight.model.feed_forward_spec import ExpertSpec, ExpertsSpec, RoutingSpec
from firstlight.model.part_specs import LinearSpec
from firstlight.model.tensor_source import Stack, TensorSource
from firstlight.ops.gating import Gating
from firstlight.ops.routing import GroupScore, Routing, Score

# In all layers together: three times the most of any published model. A config that asks for more
# is damaged or hostile.
MOST_EXPERTS = 1 << 16

# The names that configs give to scores (`scoring_func`) -> ours.
_SCORES: Mapping[str, Score] = {
    "softmax": "softmax",
    "sigmoid": "sigmoid",
    "sqrtsoftplus": "sqrt_softplus",
}

# A router's weight is small, and what it decides is not: it is kept as exact as it is stored.
ROUTER_KEPT = "f32"


@dataclass(frozen=True)
class Sizes:
    """How many experts a layer has, and how wide each is."""

    count: int
    width: int


def sizes(parts: Parts, count_key: str, width_key: str) -> Sizes:
    """The sizes as the config has them under these keys."""
    most = max(1, MOST_EXPERTS // parts.layers)
    return Sizes(parts.config.integer(count_key, most=most), parts.config.integer(width_key))


def routing_numbers(
    parts: Parts,
    count: int,
    *,
    score: Score = "softmax",
    renormalised: bool,
    scale: float = 1.0,
    group_score: GroupScore = "largest",
    grouped: bool = False,
) -> Routing:
    """The numbers of routing among `count` experts, those the config has being checked.

    Args:
        score: where the config does not say (`scoring_func`).
        grouped: the family's config has groups (`n_group`, `topk_group`).
    """
    config = parts.config
    if config.has("scoring_func"):
        name = config.text("scoring_func")
        if name not in _SCORES:
            known = ", ".join(_SCORES)
            raise config.unsupported("scoring_func", f"is {shown(name)}, not one of {known}")
        score = _SCORES[name]
    top_k = config.integer("num_experts_per_tok", most=count)
    groups = config.integer("n_group", 1, most=count) if grouped else 1
    kept = config.integer("topk_group", groups, most=groups) if grouped else 1
    if count % groups:
        raise config.error("n_group", f"is {groups}, which does not divide {count} experts")
    members = count // groups
    if kept * members < top_k:
        raise config.error(
            "topk_group", f"keeps {kept} groups of {members} experts, and {top_k} are to be chosen"
        )
    if kept < groups and group_score == "two_largest" and members < 2:
        raise config.error("n_group", f"is {groups}, and leaves one expert in a group, not two")
    return Routing(top_k, score, groups, kept, group_score, renormalised, scale)


def experts_spec(
    parts: Parts,
    layer: int,
    sizes: Sizes,
    numbers: Routing,
    *,
    gating: Gating | None = None,
    router_bias: bool = False,
    bias: bool = False,
    correction: bool = False,
    shared_width: int = 0,
    shared_weight: bool = False,
) -> ExpertsSpec:
    """A layer's experts.

    Args:
        gating: the config's activation if None.
        router_bias, bias: of the router, and of every product of an expert; GGUF files say of a
            bias by having it.
        correction: scores are corrected for the choice.
        shared_width: of the shared expert, or of all shared experts together; 0: there is none.
        shared_weight: the shared expert has a weight of its own.
    """
    hidden = parts.hidden_size
    router = parts.linear("router", sizes.count, hidden, layer, bias=router_bias)
    router = replace(router, weight=replace(router.weight, kept=ROUTER_KEPT))
    corrected = None
    if correction:
        corrected = TensorSource(parts.tensor_name("correction", layer), (sizes.count,))
    shared, weight = None, None
    if shared_width:
        shared = ExpertSpec(
            parts.linear("shared_gate", shared_width, hidden, layer),
            parts.linear("shared_up", shared_width, hidden, layer),
            parts.linear("shared_down", hidden, shared_width, layer),
        )
    if shared_weight:
        weight = parts.linear("shared_weight", 1, hidden, layer)
        weight = replace(weight, weight=replace(weight.weight, kept=ROUTER_KEPT))
    return ExpertsSpec(
        RoutingSpec(router, numbers, corrected),
        tuple(_expert(parts, layer, index, sizes, bias) for index in range(sizes.count)),
        parts.activation() if gating is None else gating,
        shared,
        weight,
    )


def _expert(parts: Parts, layer: int, index: int, sizes: Sizes, bias: bool) -> ExpertSpec:
    if parts.gguf and parts.has("experts_gate", layer):
        return _stacked_apart(parts, layer, index, sizes)
    # Those with biases are published in no other layout; quantised ones are one by one.
    stacked = parts.tensor_name("experts_gate_up", layer) in parts.files.tensors
    if not parts.gguf and (stacked or (bias and not _one_by_one(parts, layer))):
        return _stacked_and_fused(parts, layer, index, sizes, bias)
    hidden = parts.hidden_size

    def product(role: str, rows: int, columns: int) -> LinearSpec:
        name = parts.tensor_name(role, layer, index)
        weight = TensorSource(f"{name}.weight", (rows, columns))
        return LinearSpec(weight, TensorSource(f"{name}.bias", (rows,)) if bias else None)

    return ExpertSpec(
        product("expert_gate", sizes.width, hidden),
        product("expert_up", sizes.width, hidden),
        product("expert_down", hidden, sizes.width),
    )


def _one_by_one(parts: Parts, layer: int) -> bool:
    first = f"{parts.tensor_name('expert_gate', layer, 0)}.weight"
    return parts.apart or first in parts.files.tensors


def _stacked_apart(parts: Parts, layer: int, index: int, sizes: Sizes) -> ExpertSpec:
    """GGUF's layout: gate, up and down of all experts, [experts, rows, columns] each."""
    stack, hidden = Stack(index, sizes.count), parts.hidden_size

    def product(role: str, rows: int, columns: int) -> LinearSpec:
        name = parts.tensor_name(role, layer)
        weight = TensorSource(f"{name}.weight", (rows, columns), stack=stack)
        if not parts.has(role, layer, "bias"):
            return LinearSpec(weight)
        return LinearSpec(weight, TensorSource(f"{name}.bias", (rows,), stack=stack))

    return ExpertSpec(
        product("experts_gate", sizes.width, hidden),
        product("experts_up", sizes.width, hidden),
        product("experts_down", hidden, sizes.width),
    )


def _stacked_and_fused(
    parts: Parts, layer: int, index: int, sizes: Sizes, bias: bool
) -> ExpertSpec:
    """transformers' layout: gate and up fused, [experts, 2 * width, columns], and down.

    Those with biases are gpt-oss's: rows of gate and up lie in turn, and every matrix is transposed
    unless it is in mxfp4 (see `formats/mxfp4_pair.py`).
    """
    gate_up, down = (parts.tensor_name(f"experts_{role}", layer) for role in ("gate_up", "down"))
    hidden, width = parts.hidden_size, sizes.width
    # One of them is enough to say so: which is missing is then found out by name.
    paired = any(
        f"{name}_{part}" in parts.files.tensors
        for name in (gate_up, down)
        for part in ("blocks", "scales")
    )
    # Of gate and up, which come in turn, or else one after the other.
    second, step = (1, 2) if bias else (width, 1)

    def product(name: str, rows: int, columns: int, first: int | None) -> LinearSpec:
        fused = None if first is None else 2 * width
        steps = 1 if first is None else step
        weight = TensorSource(
            f"{name}_blocks" if paired else name,
            (rows, columns),
            first,
            fused,
            row_step=steps,
            stack=Stack(index, sizes.count, transposed=bias and not paired),
            scales=f"{name}_scales" if paired else None,
        )
        if not bias:
            return LinearSpec(weight)
        stack = Stack(index, sizes.count)
        name_of_bias = f"{name}_bias"
        return LinearSpec(
            weight,
            TensorSource(name_of_bias, (rows,), first, fused, row_step=steps, stack=stack),
        )

    return ExpertSpec(
        product(gate_up, width, hidden, 0),
        product(gate_up, width, hidden, second),
        product(down, hidden, width, None),
    )
