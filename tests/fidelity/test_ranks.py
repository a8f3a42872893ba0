"""Two processes that share a model through PyTorch say what one says."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import psutil
import pytest

import firstlight
from firstlight.backends import available_devices
from firstlight.engine.engine import Engine
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.engine.state_size import page_bytes
from tests.fidelity.conftest import TinyCheckpoint
from tests.support.tiny_models import prompt

pytestmark = pytest.mark.skipif(
    "torch:cpu" not in available_devices(), reason="PyTorch is not there"
)

PROMPTS = [prompt(30), prompt(47, seed=1), prompt(5, seed=2)]


def greedy(engine: Engine, count: int = 24) -> list[list[int]]:
    """The likeliest continuations of several prompts, computed together."""
    stop = StopConditions(max_tokens=count)
    sequences = [engine.add(each, SamplingParameters(), stop) for each in PROMPTS]
    while engine.step():
        pass
    return [list(each.output_ids) for each in sequences]


# Grouped queries; experts beside a shared one; latent attention, with a dense layer and experts.
@pytest.mark.parametrize("name", ["llama", "qwen2_moe", "deepseek_v3"])
def test_two_ranks_give_the_logits_and_tokens_of_one(
    tiny: Callable[..., TinyCheckpoint], name: str
) -> None:
    folder = tiny(name).folder
    options = {"exact": True, "cache": False, "tune": None, "context_length": 128}
    alone = firstlight.load(folder, "torch:cpu", token_budget=32, **options)
    shared = firstlight.load(folder, "torch:cpu:0-1", token_budget=32, **options)
    expected, found = alone.logits(prompt(70)), shared.logits(prompt(70))
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max(), rtol=0)
    assert greedy(shared.engine) == greedy(alone.engine)
    tokens = page_tokens = alone.engine.pages.page_tokens
    whole, part = (
        page_bytes(each.streams, each.groups[0], "float32", tokens)
        for each in (alone.engine.decoder, shared.engine.decoder)
    )
    assert page_tokens == shared.engine.pages.page_tokens
    assert part == (whole if name == "deepseek_v3" else whole // 2)
    # Whoever lets go of a model lets go of its processes.
    (process,) = shared.engine.decoder.followers.processes
    del shared
    gc.collect()
    assert not psutil.pid_exists(process)
