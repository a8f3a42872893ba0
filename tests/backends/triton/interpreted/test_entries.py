"""Attention over chosen and compressed entries where they lie, and their choice, agree with the
definitions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from firstlight.backends.torch.backend import TorchBackend  # noqa: E402
from firstlight.backends.torch.triton import launching, listed_launch  # noqa: E402
from firstlight.ops.paging import PagedRows  # noqa: E402
from firstlight.verify.cases import Case, cases_of  # noqa: E402
from firstlight.verify.conformance import _check_case, to_device  # noqa: E402

if not launching.interpreted():
    pytest.skip("Triton would compile its kernels", allow_module_level=True)

# Names of cases, or beginnings, that the interpreter has done within a second or two.
_CASES = {
    "compressed_attention": (
        *("no rows, b", "before the first run, b", "a run at a time", "runs of three, b"),
        *("a run a page, f", "fewer runs than are chosen, b", "one to seventeen rows, f"),
    ),
    "selected_latent_attention": (
        *("mixed, 1000", "no rows", "one token", "decode", "one to seventeen rows"),
    ),
    "select_entries": (
        *("runs, no rows", "runs, runs of three, f", "runs, one to seventeen rows, f"),
        *("mixed, 1 ", "no rows", "border", "decode", "one head", "one to seventeen rows"),
    ),
}


def _chosen() -> Iterator[Case]:
    for op, names in _CASES.items():
        yield from (case for case in cases_of(op) if case.name.startswith(names))


@pytest.fixture(scope="module")
def backend() -> TorchBackend:
    return TorchBackend("cpu")


@pytest.mark.parametrize("case", list(_chosen()), ids=lambda case: f"{case.op}, {case.name}")
def test_it_agrees_with_the_definition(backend: TorchBackend, case: Case) -> None:
    kernels = [
        each for each in backend.kernels() if each.op == case.op and each.name.startswith("paged")
    ]
    reports = list(_check_case(backend, kernels, case))
    assert reports
    assert [str(report) for report in reports if not report.passed] == []


def test_its_kernels_are_preferred(backend: TorchBackend) -> None:
    def first(backend: TorchBackend) -> dict[str, str]:
        return {op: next(k.name for k in backend.kernels() if k.op == op) for op in _CASES}

    assert first(backend) == {
        "compressed_attention": "paged_bfloat16",
        "selected_latent_attention": "paged_bfloat16",
        "select_entries": "paged",
    }
    assert set(first(TorchBackend("cpu", exact=True)).values()) == {"paged"}


def _compressed(backend: TorchBackend, dtype: str, chosen: bool, size: int = 20) -> Any:
    """Attention of the rows of sequences that are named by how many positions each has held and
    how many rows follow; each has its own pages, queries and choice, whoever is there beside it."""
    generator = np.random.default_rng(3)
    tables = generator.permutation(60).astype(np.int32).reshape(3, 20)
    far_tables = generator.permutation(60).astype(np.int32).reshape(3, 20)
    near = backend.new_stream(60, 8, (1, size), dtype)
    far = backend.new_stream(60, 2, (size,), dtype)
    near.copy_(torch.from_numpy(generator.standard_normal(near.shape)))
    far.copy_(torch.from_numpy(generator.standard_normal(far.shape)))
    queries = generator.standard_normal((3, 20, 20, size)).astype(np.float32)
    order = np.argsort(generator.random((3, 20, 40)), axis=2)
    sinks = backend.upload(generator.standard_normal(20).astype(np.float32))
    name = "paged_bfloat16" if dtype == "bfloat16" else "paged"
    (kernel,) = (
        each for each in backend.kernels() if (each.op, each.name) == ("compressed_attention", name)
    )

    def attend(sequences: dict[int, tuple[int, int]], **sizes: int) -> list[np.ndarray]:
        which = list(sequences)
        counts = [count for _, count in sequences.values()]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        positions = [np.arange(held, held + count) for held, count in sequences.values()]
        flat = np.concatenate(positions).astype(np.int32)
        rows = PagedRows(starts, flat, tables[which], 8)
        entry_rows = PagedRows(starts, flat, far_tables[which], 8)
        given = np.concatenate([queries[each, :count] for each, (_, count) in sequences.items()])
        choice = None
        if chosen:
            choice = np.full((len(flat), 24), -1, np.int32)
            numbers = [(each, row) for each, (_, n) in sequences.items() for row in range(n)]
            for place, (each, row) in enumerate(numbers):
                seen = order[each, row][order[each, row] < (flat[place] + 1) // 4][:24]
                choice[place, : len(seen)] = np.sort(seen)
            choice = backend.upload(choice)
        arguments = backend.upload(given), near, rows, 11, far, entry_rows, 4, choice, 0.3, sinks
        found = kernel.run(*arguments, **sizes)
        return np.split(backend.download(found), starts[1:-1])

    return attend


@pytest.mark.parametrize(
    ("dtype", "count", "chosen"),
    [("bfloat16", 1, True), ("float32", 2, False), ("bfloat16", 2, False), ("float32", 9, False)],
)
def test_a_row_is_computed_alike_in_every_batch(
    backend: TorchBackend, dtype: str, count: int, chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits beside other sequences, and with as few rows as can be in each launch."""
    monkeypatch.setattr(listed_launch, "LEAST_PART", 64)
    attend = _compressed(backend, dtype, chosen)
    (alone,) = attend({1: (90, count)})
    assert np.isfinite(alone).all()
    monkeypatch.setattr(listed_launch, "MOST_SUMS", 1)
    together = attend({0: (2, 1), 1: (90, count), 2: (140, 2)})
    np.testing.assert_array_equal(alone, together[1])


_SHORT = {
    "compressed_attention": "a run at a time, float32",
    "selected_latent_attention": "decode, 16 of them",
    "select_entries": "decode, 16 of them",
}


@pytest.mark.parametrize("chosen", [True, False])
def test_sizes_of_tiles_leave_results_as_they_are(backend: TorchBackend, chosen: bool) -> None:
    attend = _compressed(backend, "float32", chosen)
    sequences = {0: (2, 1), 1: (90, 2)}
    expected = np.concatenate(attend(sequences))
    found = np.concatenate(attend(sequences, tile=16, warps=8, stages=1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("op", _SHORT)
def test_entries_that_nobody_wrote_stay_unseen(backend: TorchBackend, op: str) -> None:
    """Pages that nobody holds, and places of a page that are not written yet, may be full of
    anything."""
    (case,) = (case for case in cases_of(op) if case.name == _SHORT[op])
    results = []
    for poisoned in (False, True):
        given = [to_device(backend, argument) for argument in case.arguments()]
        if poisoned:
            for pages, rows, stride in _streams(op, given):
                _poison(pages, rows, stride)
        results.append(backend.download(backend.call(op, *given)))
    np.testing.assert_array_equal(*results)


def _streams(op: str, given: list[Any]) -> list[tuple[Any, PagedRows, int]]:
    if op == "select_entries":
        return [(given[2], given[3], given[4])]
    if op == "selected_latent_attention":
        return [(given[1], given[3], 1)]
    return [(given[1], given[2], 1), (given[4], given[5], given[6])]


def _poison(pages: Any, rows: PagedRows, stride: int) -> None:
    """Everything but the entries that a sequence's last row may see becomes NaN."""
    kept = torch.zeros(pages.shape[:2], dtype=torch.bool)
    size = rows.page_tokens // stride
    for sequence in range(rows.sequences):
        last = int(rows.positions[rows.row_starts[sequence + 1] - 1])
        for entry in range((last + 1) // stride):
            page = int(rows.page_table[sequence, entry // size])
            if page >= 0:
                kept[page, entry % size] = True
    assert not kept.all()
    pages[~kept] = torch.nan


def test_scores_that_are_no_numbers_choose_nothing_and_harm_nobody(backend: TorchBackend) -> None:
    (case, *_) = (case for case in cases_of("select_entries") if case.quick)
    given = [to_device(backend, argument) for argument in case.arguments()]
    queries, rows, top_k = given[0], given[3], given[5]
    expected = backend.call("select_entries", *given)
    (row, *_) = np.flatnonzero(rows.positions >= top_k).tolist()
    queries[row] = torch.nan
    found = backend.call("select_entries", *given)
    assert (found[row] == -1).all()
    others = [each for each in range(len(queries)) if each != row]
    assert torch.equal(found[others], expected[others])
