"""What else is in a batch leaves a sequence's logits as they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.formats.base import Floats
from firstlight.model.decoder import Decoder
from tests.fidelity.conftest import TinyCheckpoint
from tests.support.decode import continuations, new_engine
from tests.support.tiny_models import FAMILIES, prompt

# On numpy a product's float64 sum may be ordered otherwise for another number of rows; the last
# bit of its float32 rounding is then all that moves. PyTorch orders float32 sums by a
# product's sizes.
TOLERANCES = {"numpy": 1e-6, "cpu": 0.0, "torch:cpu": 2e-5}
# Of one token, within the smallest windows, past them, and past several pages.
LENGTHS = (1, 9, 41, 70)


@pytest.mark.parametrize("name", [*FAMILIES, "llama-dynamic", "phi3-long"])
def test_sequences_in_one_batch_are_as_alone(
    tiny: Callable[..., TinyCheckpoint], name: str, device: str
) -> None:
    """Prompts of all lengths in one step, then twenty steps of one token each."""
    decoder = tiny(name).decoder(device)
    prompts = [prompt(length, seed=length) for length in LENGTHS]
    together = continuations(decoder, prompts, 20)
    for tokens, found in zip(prompts, together, strict=True):
        (alone,) = continuations(decoder, [tokens], 20)
        assert found.token_ids == alone.token_ids
        _assert_close(found.logits, alone.logits, device)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_that_joins_sequences_already_decoding(
    tiny: Callable[..., TinyCheckpoint], name: str, device: str
) -> None:
    decoder = tiny(name).decoder(device)
    first, second = prompt(30, seed=1), prompt(50, seed=2)
    found = _join(decoder, first, second, steps_before=5)
    for tokens, logits in zip((first, second), found, strict=True):
        (alone,) = continuations(decoder, [tokens], 15)
        _assert_close(logits, alone.logits, device)


def _join(decoder: Decoder, first: list[int], second: list[int], steps_before: int) -> list[Floats]:
    """Logits of 15 new tokens each, where `second` comes when `first` has some tokens already."""
    engine = new_engine(decoder, chunk=128, sequences=2)
    greedy, stop = SamplingParameters(), StopConditions(max_tokens=15)
    running = [engine.add(first, greedy, stop, wants_logits=True)]
    rows: list[list[Floats]] = [[], []]
    for step in range(40):
        if step == steps_before:
            running.append(engine.add(second, greedy, stop, wants_logits=True))
        for progress in engine.step():
            assert progress.logits is not None
            rows[running.index(progress.sequence)].append(progress.logits)
    return [np.stack(found) for found in rows]


def _assert_close(found: Floats, expected: Floats, device: str) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCES[device]
