"""Models as they run by default, activations and state rounded, beside the reference's own noise.

The bound is what transformers itself loses when it computes in bfloat16, as models are published
and served: by the mean Kullback-Leibler divergence from its float32 logits. Where a token goes to
experts it is the median over tokens: among random experts some nearly tie, any rounding decides
such a choice, and the few tokens where it falls the other way make up all of the mean, in the
reference as here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import firstlight
from firstlight.formats.base import Floats
from firstlight.model.feed_forward_spec import ExpertsSpec
from tests.fidelity.conftest import TinyCheckpoint
from tests.support.reference import load_reference, reference_logits
from tests.support.tiny_models import FAMILIES, prompt

Tiny = Callable[..., TinyCheckpoint]


def _divergences(expected: Floats, found: Floats) -> np.ndarray:
    """Of each token."""

    def logs(logits: Floats) -> np.ndarray:
        wide = logits.astype(np.float64)
        wide -= wide.max(axis=-1, keepdims=True)
        return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))

    p, q = logs(expected), logs(found)
    return (np.exp(p) * (p - q)).sum(axis=-1)


@pytest.mark.parametrize("weights", [None, "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_less_is_lost_than_by_the_reference_in_bfloat16(
    tiny: Tiny, family: str, weights: str | None
) -> None:
    checkpoint = tiny(family, "bfloat16")
    exact = firstlight.load(checkpoint.folder, weights=weights, exact=True)
    found = firstlight.load(checkpoint.folder, weights=weights).logits(prompt())
    rounded = load_reference(checkpoint.folder).to(torch.bfloat16)
    noise = _divergences(checkpoint.logits, reference_logits(rounded, prompt()))
    experts = any(isinstance(layer.feed_forward, ExpertsSpec) for layer in exact.spec.layers)
    typical = np.median if experts else np.mean
    assert 0 < typical(_divergences(exact.logits(prompt()), found)) < typical(noise)
