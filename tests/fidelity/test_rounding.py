"""Models as they run by default, activations and state rounded, beside the reference's own noise.

The bound is what transformers itself loses when it computes in bfloat16, as models are published
and served: by the mean Kullback-Leibler divergence from its float32 logits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import firstlight
from firstlight.formats.base import Floats
from tests.fidelity.conftest import TinyCheckpoint
from tests.support.reference import load_reference, reference_logits
from tests.support.tiny_models import FAMILIES, prompt

Tiny = Callable[..., TinyCheckpoint]


def _divergence(expected: Floats, found: Floats) -> float:
    def logs(logits: Floats) -> np.ndarray:
        wide = logits.astype(np.float64)
        wide -= wide.max(axis=-1, keepdims=True)
        return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))

    p, q = logs(expected), logs(found)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


@pytest.mark.parametrize("weights", [None, "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_less_is_lost_than_by_the_reference_in_bfloat16(
    tiny: Tiny, family: str, weights: str | None
) -> None:
    checkpoint = tiny(family, "bfloat16")
    exact = firstlight.load(checkpoint.folder, weights=weights, exact=True).logits(prompt())
    found = firstlight.load(checkpoint.folder, weights=weights).logits(prompt())
    rounded = load_reference(checkpoint.folder).to(torch.bfloat16)
    noise = _divergence(checkpoint.logits, reference_logits(rounded, prompt()))
    assert 0 < _divergence(exact, found) < noise
