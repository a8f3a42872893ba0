"""Divergence, agreement and perplexity beside PyTorch's, and where they are undefined."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from firstlight.verify.divergence import Divergence, log_softmax, total


def pair(rows: int = 20, columns: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    expected = 5 * generator.standard_normal((rows, columns), dtype=np.float32)
    return expected, expected + generator.standard_normal(expected.shape, dtype=np.float32)


def measured(expected: np.ndarray, found: np.ndarray, following: list[int]) -> Divergence:
    divergence = Divergence()
    divergence.add(expected, found, following)
    return divergence


def test_figures_are_pytorchs() -> None:
    expected, found = pair()
    following = np.random.default_rng(1).integers(0, 300, 19).tolist()
    ours = measured(expected, found, following)
    p, q = (torch.log_softmax(torch.tensor(x).double(), -1) for x in (expected, found))
    divergences = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    np.testing.assert_allclose(ours.divergences, divergences.numpy(), rtol=1e-12)
    assert ours.mean == pytest.approx(float(divergences.mean()))
    assert ours.most == pytest.approx(float(divergences.max()))
    assert ours.agreement == float((p.argmax(-1) == q.argmax(-1)).double().mean())
    assert 0 < ours.agreement < 1
    losses = torch.nn.functional.nll_loss(q[:19], torch.tensor(following))
    assert ours.perplexity == pytest.approx(math.exp(losses))
    losses = torch.nn.functional.nll_loss(p[:19], torch.tensor(following))
    assert ours.reference_perplexity == pytest.approx(math.exp(losses))
    assert (ours.tokens, len(ours.losses)) == (20, 19)


def test_of_itself_there_is_none() -> None:
    expected, _ = pair()
    same = measured(expected, expected, [])
    assert (same.mean, same.most, same.agreement) == (0, 0, 1)
    # What is added to all logits alike does not change the distribution.
    shifted = measured(expected, expected + np.float32(8), [])
    assert 0 <= shifted.most < 1e-10


def test_chunks_and_texts_add_up() -> None:
    expected, found = pair()
    following = list(range(19))
    whole = measured(expected, found, following)
    chunked = Divergence()
    for start in range(0, 20, 7):
        stop = min(start + 7, 20)
        chunked.add(expected[start:stop], found[start:stop], following[start:stop])
    assert chunked == whole
    parts = [
        measured(expected[:5], found[:5], following[:5]),
        measured(expected[5:], found[5:], following[5:]),
    ]
    assert total(parts) == whole


def test_masked_tokens() -> None:
    """A token that neither allows adds nothing; one that only the reference allows is infinite."""
    expected = np.array([[0, 1, -np.inf]], np.float32)
    assert measured(expected, np.array([[1, 0, -np.inf]], np.float32), []).mean < 1
    assert measured(expected, np.array([[1, 0, 5]], np.float32), []).mean < math.inf
    assert measured(np.array([[0, 1, 2]], np.float32), expected, []).mean == math.inf


def test_what_is_not_a_number_is_not_hidden() -> None:
    expected, found = pair(4)
    found[2, 7] = np.nan
    broken = measured(expected, found, [1, 2, 3])
    assert math.isnan(broken.mean)
    assert math.isnan(broken.most)
    assert math.isnan(broken.perplexity)


def test_nothing_measured() -> None:
    empty = Divergence()
    assert empty.tokens == 0
    for figure in (empty.mean, empty.most, empty.agreement, empty.perplexity):
        assert math.isnan(figure)


def test_log_softmax_of_large_logits() -> None:
    probabilities = np.exp(log_softmax(np.array([1e30, 1e30, 0], np.float32)))
    np.testing.assert_allclose(probabilities, [0.5, 0.5, 0])
