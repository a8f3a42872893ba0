"""Decode steps of the torch backend that replay from a graph, with one that is made in Python."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from firstlight.engine.engine import Engine
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.ops.paging import PagedRows
from tests.support.tiny_engine import (
    GREEDY,
    PAGE_TOKENS,
    SEEDED,
    WINDOW,
    prompt_of,
    run_to_end,
    tiny_decoder,
    tiny_spec,
)

torch = pytest.importorskip("torch")

from tests.support.deferred_rows import deferred, served_and_refused  # noqa: E402


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    from firstlight.backends.torch import backend
    from tests.support.recorded_graph import RecordedGraph

    monkeypatch.setattr(RecordedGraph, "made", [])
    monkeypatch.setattr(backend, "graphs_of", lambda _: RecordedGraph)
    return backend.TorchBackend("cpu", exact=True)


def _engine(ops: Any, **options: Any) -> Engine:
    decoder = tiny_decoder(tiny_spec(), ops=ops)
    return Engine(decoder, 64, page_tokens=PAGE_TOKENS, **{"sequences": 9, **options})


def _texts(engine: Engine, count: int = 6, **options: Any) -> list[list[int]]:
    """Of sequences that begin and end at different times, greedy and drawn."""
    found = [
        engine.add(
            prompt_of(3 + 5 * index, index),
            GREEDY if index % 2 else SEEDED,
            StopConditions(max_tokens=12 + 4 * index),
            **options,
        )
        for index in range(count)
    ]
    run_to_end(engine)
    return [each.output_ids for each in found]


def test_replayed_steps_say_the_same(backend: Any) -> None:
    engine = _engine(backend)
    assert _texts(engine) == _texts(_engine(None))
    calls, _ = backend.usage()[_REPLAYED]
    assert calls > 20
    (remark,) = backend.remarks()
    assert remark.startswith(f"{calls} decode steps were replayed from ")


_REPLAYED = ("decode step", "graph")


def test_graphs_are_recorded_for_few_shapes_and_used_again(backend: Any) -> None:
    from tests.support.recorded_graph import RecordedGraph

    engine = _engine(backend, prefix_caching=False)
    _texts(engine)
    first = len(RecordedGraph.made)
    assert 0 < first < 20
    _texts(engine)
    _texts(engine)
    assert len(RecordedGraph.made) <= first + 4  # shapes that had come once only
    assert sum(graph.replays for graph in RecordedGraph.made) == sum(
        calls for key, (calls, _) in backend.usage().items() if key == _REPLAYED
    )


def test_what_else_is_wanted_of_a_replayed_step(backend: Any) -> None:
    """Log probabilities, logits, masks and bias."""
    found = []
    even = np.arange(61) % 2 == 0
    for ops in (None, backend):
        engine = _engine(ops)
        sequences = [
            engine.add(prompt_of(5), GREEDY, StopConditions(max_tokens=20), **more)
            for more in (
                {"wants_scores": 3},
                {"wants_logits": True},
                {"allowed": lambda output: even if len(output) % 2 else None},
            )
        ]
        biased = SamplingParameters(logit_bias={7: 3.0}, repetition_penalty=1.3)
        sequences.append(engine.add(prompt_of(5), biased, StopConditions(max_tokens=20)))
        progress = list(itertools.chain.from_iterable(iter(engine.step, [])))
        found.append(
            (
                [each.output_ids for each in sequences],
                [p.score for p in progress if p.sequence is sequences[0]],
                [p.logits for p in progress if p.sequence is sequences[1]],
            )
        )
    (plain, scores, logits), (texts, own_scores, own_logits) = found
    assert texts == plain
    assert all(token % 2 == 0 for token in texts[2][1::2])
    for wanted, got in zip(scores, own_scores, strict=True):
        assert got.log_probability == pytest.approx(wanted.log_probability, abs=1e-4)
        assert [token for token, _ in got.likeliest] == [token for token, _ in wanted.likeliest]
    np.testing.assert_allclose(np.stack(own_logits), np.stack(logits), atol=1e-4)
    assert backend.usage()[_REPLAYED][0] > 10


def test_it_can_be_turned_off(backend: Any) -> None:
    backend.forgo_replay()
    assert _texts(_engine(backend)) == _texts(_engine(None))
    assert _REPLAYED not in backend.usage()
    assert backend.remarks() == ("decode steps are not replayed from graphs, as asked",)


def test_other_kernels_are_recorded_anew(backend: Any) -> None:
    from tests.support.recorded_graph import RecordedGraph

    engine = _engine(backend)
    expected = _texts(_engine(None))
    assert _texts(engine) == expected
    before = len(RecordedGraph.made)
    backend.leave_out("gate", "plain")  # which then waits for the device
    assert _texts(engine) == expected
    assert len(RecordedGraph.made) == before
    assert any("waits for the device" in line for line in backend.remarks())


class _Guesses:
    """Every other guess of a text that is known is right."""

    def __init__(self, texts: list[list[int]]) -> None:
        self._texts = texts

    def propose(self, sequence: Any, count: int) -> list[int]:
        done = len(sequence.output_ids)
        mine = next(t for t in self._texts if t[:done] == sequence.output_ids)[done:]
        return [
            token if done % 2 else (token + 1) % 61 for token in mine[: min(count, 1 + done % 4)]
        ]


@pytest.mark.parametrize("heavy", [False, True])
def test_guesses_are_replayed_where_they_cost_little(
    backend: Any, heavy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each as a row by itself, which reads its sequence's state once more."""
    from firstlight.engine import decode_step

    monkeypatch.setattr(decode_step, "_WEIGHTS_OF_GUESSES", 10**9 if heavy else 0)
    expected = _texts(_engine(None))
    engine = _engine(backend, speculation=3, proposer=_Guesses(expected))
    assert _texts(engine) == expected
    done = engine.statistics()
    assert 0 < done.accepted_tokens < done.proposed_tokens
    replays, _ = backend.usage().get(_REPLAYED, (0, 0.0))
    if heavy:
        assert not replays
    else:
        assert replays > done.steps // 3


@pytest.mark.parametrize("why", ["waits", "uploads an array that is another in every step"])
def test_what_cannot_be_recorded_runs_without(backend: Any, why: str) -> None:
    from firstlight.backends.base import Kernel

    numbers = itertools.count(1)

    def gate(x: Any, y: Any, activation: str) -> Any:
        if why == "waits":
            return x * y * float(x.sum().item() > -1e30)
        return x * y * backend.upload(np.array([next(numbers)], np.float32)).sign()

    backend._kernels["gate"] = [Kernel("gate", "odd", gate)]
    engine = _engine(backend)
    texts = _texts(engine, 3)
    assert _REPLAYED not in backend.usage()
    assert any(why in line for line in backend.remarks())
    backend.forgo_replay()
    assert _texts(_engine(backend), 3) == texts


# Ops with rows that are not known yet --------------------------------------------------------


def _rows(generator: np.random.Generator, count: int, group_pages: int) -> PagedRows:
    positions = generator.integers(0, group_pages * 4, count).astype(np.int32)
    table = generator.permutation(count * group_pages).reshape(count, group_pages)
    table = table.astype(np.int32)
    table[np.arange(group_pages) > (positions // 4)[:, None]] = -1
    return PagedRows(np.arange(count + 1, dtype=np.int32), positions, table, 4)


@pytest.mark.parametrize("window", [None, WINDOW, 1, 100])
@pytest.mark.parametrize("kind", ["plain", "sinks", "latent"])
@pytest.mark.parametrize("scores", [1 << 25, 64])
def test_attention_of_rows_that_are_not_known_yet(
    backend: Any, window: int | None, kind: str, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from firstlight.backends.torch import paging

    monkeypatch.setattr(paging, "MOST_SCORES", scores)
    generator = np.random.default_rng(7)
    rows = _rows(generator, 5, 6)
    entry = (8,) if kind == "latent" else (2, 8)
    streams = [backend.new_stream(30, 4, entry, "float32") for _ in range(2)]
    for stream in streams:
        values = generator.standard_normal((30, 4, *entry), np.float32)
        backend.assign(stream, values)
    queries = backend.upload(generator.standard_normal((5, 4, 8), np.float32))
    new = backend.upload(generator.standard_normal((5, *entry), np.float32))
    found = []
    for each in (rows, deferred(rows, 3)):
        backend.stream_write(streams[0], new, each)
        if kind == "latent":
            out = backend.latent_attention(queries, streams[0], 5, each, 0.4)
        elif kind == "sinks":
            sinks = backend.upload(np.arange(4, dtype=np.float32))
            out = backend.attention_with_sinks(queries, *streams, each, 0.4, window, sinks)
        else:
            out = backend.attention(queries, *streams, each, 0.4, window, None)
        found.append((backend.download(out), backend.download(streams[0]).copy()))
        streams[0].add_(0)
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found[1][1], found[0][1])


def test_every_kernel_refuses_rows_that_are_not_known_yet_or_is_right(backend: Any) -> None:
    served, refused = served_and_refused(backend)
    assert {
        "stream_write/scattered",
        "attention/gathered",
        "attention_with_sinks/gathered",
        "latent_attention/gathered",
        "select_entries/counted",
        "selected_latent_attention/gathered",
        "pool_runs/gathered",
        "compressed_attention/gathered",
    } <= served
    assert not served & refused


def test_values_that_are_not_known_yet_cannot_be_looked_at() -> None:
    from firstlight.backends.torch.deferred import Deferred, NotReplayable

    array: Any = Deferred(torch.zeros((3, 2), dtype=torch.int32), np.dtype(np.int32))
    assert (len(array), array.shape, array.ndim, array.size) == (3, (3, 2), 2, 6)
    cast = array.astype(np.int64)
    assert (cast.dtype, cast.tensor.dtype) == (np.int64, torch.int64)
    looks = (
        lambda: np.asarray(array), lambda: array[0], lambda: array // array, lambda: array + 1,
        lambda: int(array), lambda: array.max(), lambda: list(array), lambda: np.diff(array),
        lambda: np.arange(9)[array], lambda: bool(array), lambda: array.tolist(),
        lambda: np.arange(3) + array, lambda: array == 3,
    )  # fmt: skip
    for look in looks:
        with pytest.raises(NotReplayable):
            look()
    rows = PagedRows(np.arange(4, dtype=np.int32), array, array, 4)
    assert not rows.known
    for ask in (lambda: rows.completing(4), lambda: rows.part(array)):
        with pytest.raises(NotReplayable):
            ask()


def test_the_runs_of_rows_that_are_not_known_yet_are_those_they_are_in() -> None:
    from firstlight.backends.torch.deferred import Deferred

    positions = torch.tensor([0, 3, 4, 11], dtype=torch.int32)
    deferred: Any = Deferred(positions, np.dtype(np.int32))
    rows = PagedRows(np.arange(5, dtype=np.int32), deferred, deferred, 8)
    runs = rows.runs(4)
    assert (runs.positions.tensor.tolist(), runs.page_tokens) == ([0, 0, 1, 2], 2)
    within: Any = deferred % 4
    assert within.tensor.tolist() == [0, 3, 0, 3]
    assert within.tensor.dtype == torch.int32


# Mixtures of experts ---------------------------------------------------------------------------


def test_a_mixture_of_experts_that_waits_is_not_recorded(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel in plain PyTorch waits once, to learn which experts are needed."""
    from firstlight.verify.cases import cases_of
    from firstlight.verify.conformance import to_device

    case = next(case for case in cases_of("experts_block") if case.quick)
    x, block, token_ids = (to_device(backend, each) for each in case.arguments())
    waits = []
    download = backend._transfer.download
    monkeypatch.setattr(
        backend._transfer, "download", lambda tensor: waits.append(0) or download(tensor)
    )
    backend.experts_block(x, block, token_ids)
    assert len(waits) == 1
    replayer = backend.replayer(lambda ids: backend.experts_block(x, block, ids))
    assert replayer(token_ids) is None
    assert "waits for the device" in replayer.why_not
    assert not replayer.possible


def test_experts_by_a_table_of_tokens_that_are_not_known_yet(backend: Any) -> None:
    from firstlight.backends.torch.experts import ExpertsKernels
    from firstlight.backends.torch.products import ProductKernels
    from firstlight.ops.rounding import no_rounding
    from firstlight.verify.cases import cases_of
    from firstlight.verify.conformance import to_device

    (case,) = (case for case in cases_of("experts_block") if case.name == "by a table")
    x, block, token_ids = (to_device(backend, each) for each in case.arguments())
    transfer = backend._transfer
    kernels = ExpertsKernels(transfer, ProductKernels(transfer, False), no_rounding)
    replayer = backend.replayer(lambda ids: torch.cat(kernels.choose_for(x, block, ids), 1))
    for shift in range(4):
        ids = (token_ids + shift) % len(block.hash_table)
        wanted = torch.cat(kernels.choose_for(x, block, ids), 1)
        np.testing.assert_array_equal(replayer(ids).numpy(), wanted.numpy())
    assert replayer.replays == 3


# What an accelerator has -------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["", "raises", "computes at once", "only other modes"])
def test_graphs_of_an_accelerator_are_tried_first(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """With a stand-in for `torch.accelerator.Graph`, which is used as its manual says."""
    from firstlight.backends.torch import graphs, quirks
    from tests.support.recorded_graph import RecordedGraph, Recorder

    made: list[Any] = []

    class Graph(RecordedGraph):
        def __init__(self, *, pool: Any, capture_error_mode: str) -> None:
            super().__init__()
            if fault == "raises" or (fault == "only other modes" and capture_error_mode[0] == "t"):
                raise RuntimeError("not on this device")
            self.shared, self.mode = pool, capture_error_mode
            made.append(self)

        def __enter__(self) -> None:
            self.recorder = Recorder(self.calls)
            self.recorder.__enter__()

        def __exit__(self, *error: Any) -> None:
            self.recorder.__exit__(*error)
            if fault == "computes at once":
                self.calls.clear()

        def pool(self) -> tuple[int, int]:
            return 7, 7

    monkeypatch.setattr(torch.accelerator, "Graph", Graph)
    monkeypatch.setattr(torch.accelerator, "device_index", lambda _: nullcontext())
    monkeypatch.setattr(torch, "Stream", lambda _: nullcontext())
    monkeypatch.setitem(quirks._QUIRKS, "cpu", quirks.Quirk())
    monkeypatch.setattr(graphs, "is_accelerator", lambda _: True)
    make = graphs.graphs_of(torch.device("cpu"))
    if fault in ("raises", "computes at once"):
        assert make is None
        return
    assert make is not None
    graph = make()
    numbers = torch.zeros(2)
    result = graph.capture(lambda: numbers * 2 + 1)
    for number in (3.0, -1.0):
        numbers.fill_(number)
        graph.replay()
        assert result.tolist() == [2 * number + 1] * 2
    assert made[-1].mode == ("default" if fault else "thread_local")
    assert [each.shared for each in made][-2:] == [(7, 7)] * 2


def test_a_device_of_the_host_has_no_graphs() -> None:
    from firstlight.backends.torch.backend import TorchBackend

    backend = TorchBackend("cpu")
    assert backend.replayer(lambda ids: ids) is None
    assert backend.remarks() == ()
