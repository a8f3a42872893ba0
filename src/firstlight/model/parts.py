"""Products and norms of a spec, with a backend's tensors for their sources."""

from __future__ import annotations

from firstlight.model.part_specs import LinearSpec, NormSpec
from firstlight.model.weights import Weights
from firstlight.ops import Norm, Product


def product(spec: LinearSpec, weights: Weights) -> Product:
    """The product, as ops take it."""
    return Product(weights[spec.weight], None if spec.bias is None else weights[spec.bias])


def norm(spec: NormSpec | None, weights: Weights) -> Norm | None:
    """The norm, as ops take it; None where there is none."""
    if spec is None:
        return None
    weight = None if spec.weight is None else weights[spec.weight]
    return Norm(spec.size, spec.epsilon, weight)
