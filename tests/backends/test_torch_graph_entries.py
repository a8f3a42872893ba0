"""Replayed decode steps of attention over chosen and compressed entries, whose numbers of entries
differ from step to step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from firstlight.engine.engine import Engine
from firstlight.engine.parameters import StopConditions
from firstlight.model.spec import ModelSpec
from tests.support.tiny_engine import (
    GREEDY,
    PAGE_TOKENS,
    SEEDED,
    prompt_of,
    run_to_end,
    tiny_decoder,
)
from tests.support.tiny_entries import compressed_spec, selecting_spec

torch = pytest.importorskip("torch")

each_kind = pytest.mark.parametrize("make_spec", [selecting_spec, compressed_spec])


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One whose state holds no numbers until they are written."""
    from firstlight.backends.torch import backend
    from tests.support.recorded_graph import RecordedGraph

    monkeypatch.setattr(RecordedGraph, "made", [])
    monkeypatch.setattr(backend, "graphs_of", lambda _: RecordedGraph)
    made = backend.TorchBackend("cpu", exact=True)
    zeros = made.new_stream
    monkeypatch.setattr(made, "new_stream", lambda *shape: zeros(*shape).fill_(torch.nan))
    return made


def _engine(make_spec: Callable[[], ModelSpec], ops: Any, **options: Any) -> Engine:
    decoder = tiny_decoder(make_spec(), ops=ops)
    return Engine(decoder, 64, page_tokens=PAGE_TOKENS, sequences=5, **options)


def _texts(engine: Engine) -> list[list[int]]:
    """Of sequences that begin within runs and before any is complete."""
    found = [
        engine.add(
            prompt_of(length, length),
            GREEDY if length % 2 else SEEDED,
            StopConditions(max_tokens=20 + length),
        )
        for length in (1, 2, 7, 16, 21)
    ]
    run_to_end(engine)
    return [each.output_ids for each in found]


class _Guesses:
    """Guesses of which some are wrong."""

    def __init__(self, texts: list[list[int]]) -> None:
        self._texts = texts

    def propose(self, sequence: Any, count: int) -> list[int]:
        done = len(sequence.output_ids)
        mine = next(text for text in self._texts if text[:done] == sequence.output_ids)
        right = 1 + done % 3
        guesses = mine[done : done + min(count, 3)]
        return [(g + (place >= right)) % 61 for place, g in enumerate(guesses)]


@each_kind
@pytest.mark.parametrize("guesses", [False, True])
def test_replayed_steps_say_the_same(
    backend: Any, make_spec: Any, guesses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from firstlight.engine import decode_step

    monkeypatch.setattr(decode_step, "_WEIGHTS_OF_GUESSES", 0)
    expected = _texts(_engine(make_spec, None))
    options = {"speculation": 3, "proposer": _Guesses(expected)} if guesses else {}
    engine = _engine(make_spec, backend, **options)
    assert _texts(engine) == expected
    assert engine.statistics().accepted_tokens > (10 if guesses else -1)
    (remark,) = backend.remarks()
    assert "were replayed from" in remark
    # Each number of rows and of pages is computed once before it is recorded.
    assert backend.usage()["decode step", "graph"][0] > engine.statistics().steps // 3


@each_kind
def test_steps_that_are_not_replayed_say_the_same(backend: Any, make_spec: Any) -> None:
    backend.forgo_replay()
    assert _texts(_engine(make_spec, backend)) == _texts(_engine(make_spec, None))
