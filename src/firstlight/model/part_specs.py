"""The parts that blocks are made of, as data: products and norms."""

from __future__ import annotations

from dataclasses import dataclass

from firstlight.model.tensor_source import TensorSource


@dataclass(frozen=True)
class LinearSpec:
    """A product with a weight [rows, columns], and a bias [rows] or none."""

    weight: TensorSource
    bias: TensorSource | None = None


@dataclass(frozen=True)
class NormSpec:
    """Root mean square norm over the last `size` values; without a weight where it is None."""

    size: int
    epsilon: float
    weight: TensorSource | None


@dataclass(frozen=True)
class LayerNormSpec:
    """Layer norm over the last `size` values, as the op `layer_norm`."""

    size: int
    epsilon: float
    weight: TensorSource
    bias: TensorSource


@dataclass(frozen=True)
class HeadLinearSpec:
    """A product of each head with a part of a weight's rows of its own, as the op `head_linear`.

    Attributes:
        weight: [heads * rows of a head, columns].
        first, size: the rows of each head that are meant.
        transposed: `size` values become `columns`, not the other way round.
    """

    weight: TensorSource
    first: int
    size: int
    transposed: bool = False
