"""Whole models of DeepSeek's whose decode steps replay, with and without guesses to be checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from firstlight.backends.torch import backend as backend_module
from firstlight.backends.torch.experts import ExpertsKernels
from firstlight.engine.engine import Engine
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.ops.experts_block import ExpertsBlock
from tests.fidelity.conftest import TinyCheckpoint
from tests.support.decode import PAGE_TOKENS, load_decoder
from tests.support.recorded_graph import RecordedGraph
from tests.support.tiny_engine import run_to_end
from tests.support.tiny_models import prompt

Tiny = Callable[..., TinyCheckpoint]


def _every_expert(
    self: Any,
    x: torch.Tensor,
    block: ExpertsBlock,
    places: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """All of them, needed or not: nothing waits to learn which, as with Triton's kernels."""
    factors = torch.zeros((len(x), len(block.experts))).scatter_add_(1, places, weights)
    results = [self.expert(x, each, block.gating) for each in block.experts]
    return torch.stack([f[:, None] * r for f, r in zip(factors.T, results, strict=True)]).sum(0)


@pytest.mark.parametrize("name", ["deepseek_v4", "deepseek_v32"])
def test_replayed_steps_say_the_same(
    tiny: Tiny, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, guesses = tiny(name), ("off", "off", 2)
    devices = ("cpu", "torch:cpu", "torch:cpu")
    decoders = [load_decoder(checkpoint.folder, device) for device in devices]
    # From here on, so that loading checks the kernel that there is.
    monkeypatch.setattr(ExpertsKernels, "_experts", _every_expert)
    monkeypatch.setattr(RecordedGraph, "made", [])
    monkeypatch.setattr(backend_module, "graphs_of", lambda _: RecordedGraph)
    found = []
    for decoder, device, speculation in zip(decoders, devices, guesses, strict=True):
        engine = Engine(decoder, 128, 3, page_tokens=PAGE_TOKENS, speculation=speculation)
        sequences = [
            engine.add(prompt(length, length), SamplingParameters(), StopConditions(max_tokens=40))
            for length in (3, 20, 37)
        ]
        run_to_end(engine)
        found.append([each.output_ids for each in sequences])
        assert (speculation == "off") == (engine.statistics().proposed_tokens == 0)
        if device != "cpu":
            replays, _ = decoder.ops.usage()["decode step", "graph"]
            assert replays > engine.statistics().steps // 2
    assert found[1] == found[2] == found[0]
