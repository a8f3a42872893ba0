"""Chosen and compressed entries on PyTorch's devices: what no case of an op shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from firstlight.backends import open_device
from firstlight.ops.paging import PagedRows
from firstlight.verify.cases import cases_of
from firstlight.verify.conformance import check_kernels, to_device

torch = pytest.importorskip("torch")

_OPS = frozenset(
    (
        "compressed_attention",
        "expanded_latent_attention",
        "pool_runs",
        "select_entries",
        "selected_latent_attention",
    )
)


@pytest.fixture(scope="module")
def backend() -> Any:
    return open_device("torch:cpu", check_kernels=False)


def test_rows_that_are_too_many_for_memory_are_computed_in_parts(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from firstlight.backends.torch import paging, runs

    for module in (paging, runs):
        monkeypatch.setattr(module, "MOST_ROWS", 4)
        monkeypatch.setattr(module, "MOST_SCORES", 1500)
    parts: list[int] = []
    made = runs._run_reading

    def counted(pieces: Any, *rest: Any) -> Any:
        parts.append(len(pieces) * pieces[0].count)
        return made(pieces, *rest)

    monkeypatch.setattr(runs, "_run_reading", counted)
    reports = check_kernels(backend, quick=True, ops=_OPS)
    assert {report.op for report in reports} == _OPS
    assert [str(report) for report in reports if not report.passed] == []
    assert parts and max(parts) <= 8


@pytest.mark.parametrize("op", sorted(_OPS - {"expanded_latent_attention"}))
def test_entries_that_nobody_wrote_stay_unseen(backend: Any, op: str) -> None:
    """Pages that nobody holds, and places of a page that are not written yet, may be full of
    anything."""
    checked = 0
    for case in cases_of(op):
        if not case.quick and "before the first run" not in case.name:
            continue
        results = []
        for poisoned in (False, True):
            given = [to_device(backend, argument) for argument in case.arguments()]
            if poisoned:
                for pages, rows, stride in _streams(op, given):
                    _poison(pages, rows, stride)
            results.append(backend.call(op, *given))
        np.testing.assert_array_equal(*(backend.download(each) for each in results))
        assert torch.isfinite(results[1].float()).all()
        checked += results[0].numel() > 0
    assert checked >= 2


def _streams(op: str, given: list[Any]) -> list[tuple[Any, PagedRows, int]]:
    """Each stream among an op's arguments, with its rows and the positions of an entry."""
    if op == "select_entries":
        return [(given[2], given[3], given[4])]
    if op == "selected_latent_attention":
        return [(given[1], given[3], 1)]
    if op == "compressed_attention":
        return [(given[1], given[2], 1), (given[4], given[5], given[6])]
    before = [] if given[3] is None else [(given[3], given[4], 1)]
    return [(given[0], given[1], 1), *before]


def _poison(pages: Any, rows: PagedRows, stride: int) -> None:
    """Everything but the entries that a sequence's last row may see becomes NaN."""
    written = torch.zeros(pages.shape[:2], dtype=torch.bool)
    size = rows.page_tokens // stride
    for sequence in range(rows.sequences):
        last = int(rows.positions[rows.row_starts[sequence + 1] - 1])
        for entry in range((last + 1) // stride):
            page = int(rows.page_table[sequence, entry // size])
            if page >= 0:
                written[page, entry % size] = True
    assert not written.all()
    pages[~written] = np.nan


def test_a_choice_may_lie_on_the_host_or_on_the_device(backend: Any) -> None:
    for op, place in (("selected_latent_attention", 4), ("compressed_attention", 7)):
        (case, *_) = (case for case in cases_of(op) if case.quick)
        given = [to_device(backend, argument) for argument in case.arguments()]
        assert isinstance(given[place], np.ndarray)
        on_host = backend.call(op, *given)
        given[place] = backend.upload(given[place])
        assert torch.equal(on_host, backend.call(op, *given))


def test_scores_that_are_no_numbers_choose_nothing_and_harm_nobody(backend: Any) -> None:
    (case, *_) = (case for case in cases_of("select_entries") if case.quick)
    given = [to_device(backend, argument) for argument in case.arguments()]
    queries, rows, top_k = given[0], given[3], given[5]
    expected = backend.call("select_entries", *given)
    (row, *_) = np.flatnonzero(rows.positions >= top_k).tolist()
    queries[row] = np.nan
    found = backend.call("select_entries", *given)
    assert (found[row] == -1).all()
    others = [each for each in range(len(queries)) if each != row]
    assert torch.equal(found[others], expected[others])
