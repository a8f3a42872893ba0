"""Feed-forward networks as data: gated ones, and mixtures of experts."""

from __future__ import annotations

from dataclasses import dataclass

from firstlight.model.part_specs import LinearSpec
from firstlight.model.tensor_source import TensorSource
from firstlight.ops.elementwise import Activation
from firstlight.ops.gating import Gating
from firstlight.ops.routing import Routing


@dataclass(frozen=True)
class GatedFeedForwardSpec:
    """down(activation(gate(x)) * up(x))."""

    gate: LinearSpec
    up: LinearSpec
    down: LinearSpec
    activation: Activation

    @property
    def width(self) -> int:
        """Intermediate values of a token."""
        return self.up.weight.shape[0]


@dataclass(frozen=True)
class ExpertSpec:
    """down(gating(gate(x), up(x))); the gating is that of all experts of a layer."""

    gate: LinearSpec
    up: LinearSpec
    down: LinearSpec


@dataclass(frozen=True)
class RoutingSpec:
    """Which experts a token goes to.

    Attributes:
        router: product [n, hidden_size] -> [n, experts].
        numbers: what is made of its results; see `route`.
        correction: [experts], added to scores for the choice alone; None: nothing.
        hash_table: whole numbers [vocabulary_size, top_k]: the experts of each token id, instead of
            a choice by score (DeepSeek-V4's first layers); None: by score.
    """

    router: LinearSpec
    numbers: Routing
    correction: TensorSource | None = None
    hash_table: TensorSource | None = None


@dataclass(frozen=True)
class ExpertsSpec:
    """A mixture of experts; the formula is that of `experts_block`.

    Attributes:
        experts: all of one size.
        gating: what joins gate and up, of the shared expert too.
        shared: an expert that every token goes to (several are one that is as wide as they are
            together); None: there is none.
        shared_gate: product [n, hidden_size] -> [n, 1], whose sigmoid weighs the shared expert.
        weighted_before: a weight is the factor of what goes into an expert, not of its result.
        first: number of the first of `experts` among those that the router knows, where it is one
            rank that has these and others have the rest.
    """

    routing: RoutingSpec
    experts: tuple[ExpertSpec, ...]
    gating: Gating
    shared: ExpertSpec | None = None
    shared_gate: LinearSpec | None = None
    weighted_before: bool = False
    first: int = 0

    @property
    def count(self) -> int:
        """Experts that the router knows, on all ranks."""
        return self.routing.router.weight.shape[0]

    @property
    def width(self) -> int:
        """Intermediate values of a token, in all the experts that it goes to."""
        each = self.experts[0].up.weight.shape[0] * self.routing.numbers.top_k
        shared = 0 if self.shared is None else self.shared.up.weight.shape[0]
        return each + shared + len(self.experts)

    @property
    def share(self) -> float:
        """Of its experts, those that a token goes to."""
        return self.routing.numbers.top_k / self.count


FeedForwardSpec = GatedFeedForwardSpec | ExpertsSpec
