"""Attention over pages where they lie agrees with the definition."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from firstlight.backends.torch.backend import TorchBackend  # noqa: E402
from firstlight.backends.torch.triton import attention_launch, launching, query_tiles  # noqa: E402
from firstlight.ops.paging import PagedRows  # noqa: E402
from firstlight.verify.cases import Case, cases_of  # noqa: E402
from firstlight.verify.conformance import _check_case  # noqa: E402

if not launching.interpreted():
    pytest.skip("Triton would compile its kernels", allow_module_level=True)

# Names of cases, or beginnings, that the interpreter has done within seconds.
_CASES = {
    "attention": (
        *("one token", "no rows", "a sequence without rows", "prefill", "decode and prefill mixed"),
        *("pages of one token", "page of 7 tokens", "one head", "many heads a group"),
        *("values wider", "window,", "window of one", "window past a block, bf", "soft cap"),
        *("two rows", "three rows", "fifteen rows", "seventeen rows", "odd sizes", "size 96"),
        *("long context, one head, f",),
    ),
    "attention_with_sinks": ("prefill", "decode batch", "window,", "seventeen rows"),
    "latent_attention": ("mixed", "no rows", "decode", "f16", "published sizes", "many heads"),
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
    narrow = "bfloat16" in case.name and case.op != "attention_with_sinks"
    assert len(reports) >= (2 if narrow else 1)
    assert [str(report) for report in reports if not report.passed] == []


def test_its_kernels_are_preferred(backend: TorchBackend) -> None:
    first = {
        op: next(kernel.name for kernel in backend.kernels() if kernel.op == op) for op in _CASES
    }
    assert first == {
        "attention": "paged_bfloat16",
        "attention_with_sinks": "paged",
        "latent_attention": "paged_bfloat16",
    }
    exact = {kernel.name for kernel in TorchBackend("cpu", exact=True).kernels()}
    assert "paged" in exact
    assert "paged_bfloat16" not in exact
    assert "interpreted" in backend.identity()


@pytest.mark.parametrize("form", ["split", "whole"])
def test_a_row_is_computed_alike_in_every_batch(
    backend: TorchBackend, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits beside other sequences, with a longer context among them."""
    monkeypatch.setattr(query_tiles, "LEAST_PART", 32)
    monkeypatch.setattr(attention_launch, "LEAST_PART", 32)
    generator = np.random.default_rng(5)
    count, pages = (2, 40) if form == "split" else (11, 40)
    streams = []
    for _ in range(2):
        stream = backend.new_stream(pages, 8, (2, 20), "float32")
        backend.assign(stream, generator.standard_normal((pages, 8, 2, 20)).astype(np.float32))
        streams.append(stream)
    queries = generator.standard_normal((count + 4, 6, 20)).astype(np.float32)
    table = generator.permutation(pages).astype(np.int32).reshape(2, 20)

    def attend(sequences: list[tuple[int, int]], first: int) -> np.ndarray:
        counts = [rows for _, rows in sequences]
        rows = PagedRows(
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
            np.concatenate([np.arange(at, at + n) for at, n in sequences]).astype(np.int32),
            table[: len(sequences)],
            8,
        )
        given = backend.upload(queries[first : first + sum(counts)])
        return backend.download(backend.attention(given, *streams, rows, 0.3, None, None))

    alone = attend([(70, count)], 0)
    together = attend([(70, count), (150, 4)], 0)
    np.testing.assert_array_equal(alone, together[:count])


def test_pages_that_nobody_holds_may_be_full_of_anything(backend: TorchBackend) -> None:
    generator = np.random.default_rng(0)
    pages = generator.standard_normal((6, 4, 1, 8)).astype(np.float32)
    pages[[0, 3]] = np.nan
    pages[2, 2:] = np.nan
    stream = backend.new_stream(6, 4, (1, 8), "float32")
    backend.assign(stream, pages)
    for window in (None, 2):
        table = np.array([[-1 if window else 1, 2]], np.int32)
        rows = PagedRows(np.array([0, 1], np.int32), np.array([5], np.int32), table, 4)
        queries = backend.upload(generator.standard_normal((1, 2, 8)).astype(np.float32))
        found = backend.attention(queries, stream, stream, rows, 1.0, window, None)
        assert np.isfinite(backend.download(found)).all()
