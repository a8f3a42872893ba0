"""A real model: Gemma 3 270M in 4-bit GGUF, beside transformers reading the same file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import firstlight
from firstlight.language_model import LanguageModel
from firstlight.model.decoder import Decoder
from tests.support.decode import continuations
from tests.support.gemma import gemma_path, transformers_gemma
from tests.support.reference import (
    Floats,
    reference_continuations,
    reference_logits,
)
from tests.support.texts import CHINESE, CODE, PROSE

# Nats. What is rounded by default costs 3e-4 over many texts (docs/fidelity.md); the mean of 150
# tokens alone has a standard error of up to 8e-5. With `exact` the two compute the same sums in
# float32, in another order.
MOST_DIVERGENCE = 5e-4
# Of logits: where the first is no further above the second than this, rounding may choose.
UNDECIDED = 0.15
NEW_TOKENS = 64
PROMPTS = (
    "The oldest bridge in the town was built by",
    "She opened the letter, read it twice, and then",
    "To make bread you need flour, water, salt and",
    "In the year 2050, most people will live",
    "def fibonacci(n: int) -> int:\n    if n",
    "SELECT customers.name, orders.total FROM orders",
    "Le petit village se trouve au bord de la",
    "Im Winter liegt der See still unter dem Eis",
    "从前有一个渔夫，他每天清晨都要到海边去",
    "1, 1, 2, 3, 5, 8, 13,",
)
PROMPT_TOKENS = 9


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return firstlight.load(gemma_path(), context_length=1024, state="float32")


@pytest.fixture(scope="module")
def reference() -> Any:
    return transformers_gemma()


@pytest.mark.parametrize("text", [PROSE, CODE, CHINESE], ids=["prose", "code", "Chinese"])
def test_next_token_distributions_agree(model: LanguageModel, reference: Any, text: str) -> None:
    tokens = model.encode(text)
    assert len(tokens) > 100
    found, expected = model.logits(tokens), reference_logits(reference, tokens)
    assert found.shape == expected.shape == (len(tokens), model.spec.vocabulary_size)
    assert divergences(expected, found).mean() < MOST_DIVERGENCE


def test_next_token_distributions_agree_past_the_sliding_window(
    model: LanguageModel, reference: Any
) -> None:
    """All texts in one, whose first tokens are out of the sliding layers' sight at the end."""
    tokens = model.encode(PROSE + CODE + CHINESE + PROSE)
    windows = {layer.attention.window for layer in model.spec.layers}
    assert windows == {None, 512}
    assert len(tokens) > 600
    (expected,) = reference_continuations(reference, [tokens], 16)
    (found,) = continuations(_decoder(model), [tokens], 16, chunk=200, context_length=1024)
    assert found.token_ids == expected.token_ids
    assert divergences(expected.logits, found.logits).mean() < MOST_DIVERGENCE


def test_the_definitions_agree_too() -> None:
    """The numpy backend, which is slow, over the start of the prose."""
    model = firstlight.load(gemma_path(), device="numpy", context_length=64, state="float32")
    tokens = model.encode(PROSE)[:32]
    found, expected = model.logits(tokens), reference_logits(transformers_gemma(), tokens)
    assert divergences(expected, found).mean() < MOST_DIVERGENCE


def test_greedy_continuations_are_equal(reference: Any) -> None:
    """To the last token, where no activation is rounded."""
    model = firstlight.load(gemma_path(), context_length=1024, exact=True)
    prompts = [model.encode(prompt)[:PROMPT_TOKENS] for prompt in PROMPTS]
    expected = reference_continuations(reference, prompts, NEW_TOKENS)
    found = continuations(_decoder(model), prompts, NEW_TOKENS)
    for prompt, ours, theirs in zip(PROMPTS, found, expected, strict=True):
        assert ours.token_ids == theirs.token_ids, prompt
    alone = model.generate(prompts[0], max_tokens=NEW_TOKENS, ignore_end=True, temperature=0)
    assert alone.token_ids == expected[0].token_ids


def test_rounded_activations_change_only_what_the_reference_is_undecided_about(
    model: LanguageModel, reference: Any
) -> None:
    prompts = [model.encode(prompt)[:PROMPT_TOKENS] for prompt in PROMPTS]
    expected = reference_continuations(reference, prompts, NEW_TOKENS)
    found = continuations(_decoder(model), prompts, NEW_TOKENS)
    compared = 0
    for prompt, ours, theirs in zip(PROMPTS, found, expected, strict=True):
        pairs = zip(ours.token_ids, theirs.token_ids, strict=True)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), NEW_TOKENS)
        compared += same
        if same < NEW_TOKENS:
            second, first = np.partition(theirs.logits[same], -2)[-2:]
            assert first - second < UNDECIDED, (prompt, same)
    assert compared > NEW_TOKENS * len(PROMPTS) // 2


def _decoder(model: LanguageModel) -> Decoder:
    return model.engine.decoder


def divergences(expected: Floats, found: Floats) -> np.ndarray:
    """Kullback-Leibler divergence of each row's distribution, float64 [rows], in nats."""
    rows = zip(expected, found, strict=True)  # one at a time: a row has 262,144 entries
    return np.array([_divergence(theirs, ours) for theirs, ours in rows])


def _divergence(expected: Floats, found: Floats) -> float:
    p, q = _log_softmax(expected), _log_softmax(found)
    return float(np.sum(np.exp(p) * (p - q)))


def _log_softmax(logits: Floats) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.sum(np.exp(shifted)))
