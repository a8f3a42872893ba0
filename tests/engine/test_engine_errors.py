"""What goes wrong in an engine: said clearly, and without harm to other sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from firstlight.backends.numpy.backend import NumpyBackend
from firstlight.engine.pages import PageTable
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.engine.sequence import Progress
from firstlight.errors import DeviceError, RequestError
from tests.support.tiny_engine import (
    GREEDY,
    SEEDED,
    VOCABULARY,
    free_pages,
    prompt_of,
    random_tensors,
    run_to_end,
    tiny_decoder,
    tiny_engine,
    tiny_spec,
    tokens_alone,
)

STOP = StopConditions(max_tokens=16)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ([], "has no tokens"),
        ([3, -1], r"prompt token -1: the vocabulary has ids 0 to 60"),
        ([VOCABULARY], r"prompt token 61: the vocabulary has ids 0 to 60"),
        ([1 << 70], "the vocabulary has ids"),
        ([1.0], "holds 1.0, which is no token id"),
        (["7"], "holds '7', which is no token id"),
        ([None], "holds None"),
        ("text", "holds 't'"),
        ([[1]], r"holds \[1\]"),
    ],
)
def test_a_wrong_prompt_is_refused(prompt: Any, reason: str) -> None:
    engine = tiny_engine()
    with pytest.raises(RequestError, match=reason):
        engine.add(prompt, GREEDY, STOP)
    with pytest.raises(RequestError, match=reason):
        engine.logits(prompt)
    assert engine.step() == []


def test_ids_of_any_whole_kind_are_taken() -> None:
    prompt = np.array(prompt_of(5), np.uint8)
    assert tokens_alone(prompt) == tokens_alone(prompt_of(5))  # type: ignore[arg-type]
    assert tiny_engine().logits(np.array([1, 2])).shape == (2, VOCABULARY)  # type: ignore[arg-type]


def test_a_bias_outside_the_vocabulary_is_refused_at_once() -> None:
    engine = tiny_engine()
    with pytest.raises(RequestError, match=r"logit_bias\[61\]"):
        engine.add([1], SamplingParameters(logit_bias={61: 1.0}), STOP)
    assert engine.step() == []


@pytest.mark.parametrize(
    "options",
    [
        {"context_length": 0},
        {"context_length": 2.5},
        {"sequences": 0},
        {"token_budget": 0},
        {"token_budget": -3},
        {"state_dtype": "float16"},
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(options)).removesuffix("_dtype")):
        tiny_engine(**options)


def test_a_model_that_gives_nan_ends_that_sequence_only() -> None:
    spec = tiny_spec()
    tensors = random_tensors(spec)
    tensors["embedding"][60] = np.nan
    engine = tiny_engine(tiny_decoder(spec, tensors), sequences=2)
    good = [token for token in prompt_of(9) if token != 60]
    broken, sound = (engine.add(prompt, GREEDY, STOP) for prompt in ([1, 60, 2], good))
    progress = engine.step()
    assert [part.token_id is None for part in progress] == [True, False]
    assert broken.finish == "error"
    assert isinstance(broken.error, DeviceError)
    assert "NaN" in str(broken.error)
    run_to_end(engine)
    assert sound.output_ids == tokens_alone(good)
    assert free_pages(engine) == list(engine.pages.capacities)


class Interrupted(NumpyBackend):
    """Raises KeyboardInterrupt at one call of an op, as Ctrl-C does."""

    def __init__(self) -> None:
        super().__init__()
        self.countdown = -1

    def call(self, name: str, *arguments: Any) -> Any:
        self.countdown -= 1
        if self.countdown == 0:
            raise KeyboardInterrupt
        return super().call(name, *arguments)


@pytest.mark.parametrize("call", [1, 2, 7, 11, 20, 30])
def test_an_interrupted_step_can_be_repeated(call: int) -> None:
    ops = Interrupted()
    engine = tiny_engine(tiny_decoder(tiny_spec(), ops=ops), sequences=2, token_budget=9)
    sequences = [engine.add(prompt_of(length), SEEDED, STOP) for length in (15, 6)]
    for _ in range(8):
        engine.step()
    ops.countdown = call
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    run_to_end(engine)
    assert [each.output_ids for each in sequences] == [
        tokens_alone(prompt_of(n), SEEDED) for n in (15, 6)
    ]
    assert free_pages(engine) == list(engine.pages.capacities)


def test_an_interrupt_right_after_a_token_was_chosen_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = tiny_engine()
    slide = engine.pages.slide
    interrupts = [True]

    def interrupted(table: PageTable, position: int) -> None:
        if position == 10 and interrupts:
            interrupts.pop()
            raise KeyboardInterrupt
        slide(table, position)

    monkeypatch.setattr(engine.pages, "slide", interrupted)
    sequence = engine.add(prompt_of(6), GREEDY, STOP)
    with pytest.raises(KeyboardInterrupt):
        run_to_end(engine)
    run_to_end(engine)
    assert sequence.output_ids == tokens_alone(prompt_of(6))


def test_an_interrupt_between_two_sequences_loses_neither() -> None:
    interrupts = [True]

    def receive(progress: Progress) -> bool:
        if len(progress.sequence.output_ids) == 3 and interrupts:
            interrupts.pop()
            raise KeyboardInterrupt
        return False

    engine = tiny_engine(sequences=2)
    first = engine.add(prompt_of(5), GREEDY, STOP, receive=receive)
    second = engine.add(prompt_of(6), GREEDY, STOP)
    with pytest.raises(KeyboardInterrupt):
        run_to_end(engine)
    run_to_end(engine)
    assert first.output_ids == tokens_alone(prompt_of(5))
    assert second.output_ids == tokens_alone(prompt_of(6))
