"""A generation that begins on one backend goes on on another, with the tokens it would have had.

Each computes exactly, so that they differ by the rounding and the order of sums alone.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from firstlight.backends import available_devices
from firstlight.engine.parameters import SamplingParameters, StopConditions
from tests.fidelity.conftest import TinyCheckpoint
from tests.support.decode import new_engine, run
from tests.support.tiny_engine import run_to_end
from tests.support.tiny_models import prompt

LENGTH, MOVED = 24, 9
DRAWN = SamplingParameters(temperature=0.8, top_p=0.95, seed=5)

pytestmark = pytest.mark.skipif(
    not {"cpu", "torch:cpu"} <= set(available_devices()), reason="both are needed"
)


@pytest.mark.parametrize(("begun", "ended"), [("torch:cpu", "cpu"), ("cpu", "torch:cpu")])
@pytest.mark.parametrize("name", ["gpt_oss", "qwen3_moe", "deepseek_v32", "deepseek_v4"])
def test_a_generation_moves_to_another_backend(
    tiny: Callable[..., TinyCheckpoint], name: str, begun: str, ended: str
) -> None:
    checkpoint = tiny(name)
    for sampling in (SamplingParameters(), DRAWN):
        stop = StopConditions(max_tokens=LENGTH)
        first = new_engine(checkpoint.decoder(begun), 64)
        sequence = first.add(prompt(47), sampling, stop)
        while len(sequence.output_ids) < MOVED:
            first.step()
        second = new_engine(checkpoint.decoder(ended), 64)
        moved = second.add(prompt(47), sampling, stop, output_ids=sequence.output_ids)
        run_to_end(second)
        undisturbed = new_engine(checkpoint.decoder("numpy"), 64)
        assert list(moved.output_ids) == run(undisturbed, prompt(47), LENGTH, sampling)
