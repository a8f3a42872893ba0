"""On the cpu backend a row's result is the same, bit for bit, whatever else is in the batch."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from firstlight.formats.registry import get_format, known_formats
from firstlight.ops.attention import round_entries
from firstlight.ops.paging import PagedRows
from firstlight.verify.cases import cases_of
from firstlight.verify.random_weights import random_weight

backend_module = pytest.importorskip("firstlight.backends.cpu.backend")
CpuBackend = backend_module.CpuBackend
LEVELS = backend_module.available_levels()
# Without bare codes, which are no weight without scales.
FORMATS = sorted(set(backend_module._native.formats()) & set(known_formats()))


def _same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.shape == right.shape and left.tobytes() == right.tobytes()


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("level", LEVELS)
def test_linear_rows_alone_and_together(level: str, format_name: str) -> None:
    generator = np.random.default_rng(5)
    backend = CpuBackend(level=level, threads=2)
    columns = 2304 if format_name not in ("f32", "f16", "bf16") else 2051
    weight = random_weight(get_format(format_name), 75, columns, generator)
    bias = generator.standard_normal(75, dtype=np.float32)
    x = generator.standard_normal((61, columns), dtype=np.float32)
    together = backend.linear(x, weight, bias)
    for row in range(0, 61, 7):
        assert _same_bits(backend.linear(x[row : row + 1], weight, bias)[0], together[row])
    for size in (2, 3, 5, 17, 40):
        rows = generator.choice(61, size, replace=False)
        assert _same_bits(backend.linear(x[rows], weight, bias), together[rows])


@pytest.mark.parametrize("case", ["f8_e4m3 23 x 1030", "f8_e4m3 29 x 640", "nvfp4 in place 19"])
@pytest.mark.parametrize("level", LEVELS)
def test_linear_rows_with_scales_in_tensors_of_their_own(level: str, case: str) -> None:
    x, weight, bias = _arguments_of(case)
    alone, backend = CpuBackend(level=level, threads=1), CpuBackend(level=level, threads=3)
    together = backend.linear(x, weight, bias)
    for row in range(len(x)):
        assert _same_bits(alone.linear(x[row : row + 1], weight, bias)[0], together[row])
    for size in (2, 3, 4, 5, 8):
        rows = np.random.default_rng(size).choice(len(x), size, replace=False)
        assert _same_bits(alone.linear(x[rows], weight, bias), together[rows])


def _arguments_of(name: str) -> tuple[Any, ...]:
    (case,) = (each for each in cases_of("linear") if each.name.startswith(name))
    return case.arguments()


def test_linear_rows_in_many_random_batches() -> None:
    generator = np.random.default_rng(6)
    backend = CpuBackend(threads=2)
    weight = random_weight(get_format("q4_0"), 130, 1056, generator)
    x = generator.standard_normal((97, 1056), dtype=np.float32)
    together = backend.linear(x, weight)
    for _ in range(200):
        rows = generator.choice(97, generator.integers(1, 90), replace=True)
        assert _same_bits(backend.linear(x[rows], weight), together[rows])


@pytest.mark.parametrize("level", LEVELS)
def test_threads_do_not_change_results(level: str) -> None:
    generator = np.random.default_rng(7)
    one, two, five = (CpuBackend(level=level, threads=count) for count in (1, 2, 5))
    weight = random_weight(get_format("q6_k"), 210, 1280, generator)
    for count in (1, 6, 70):
        x = generator.standard_normal((count, 1280), dtype=np.float32)
        expected = one.linear(x, weight)
        assert _same_bits(two.linear(x, weight), expected)
        assert _same_bits(five.linear(x, weight), expected)
        x = x - x.mean()
        assert _same_bits(two.rms_norm(x, None, 1e-6), one.rms_norm(x, None, 1e-6))


class _Context:
    """Sequences with state, and any of their rows computed in any batch."""

    heads, key_value_heads, key_size, value_size, page_tokens = 6, 2, 40, 24, 16

    def __init__(self, lengths: list[int], dtype: Any, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.lengths = lengths
        pages = sum(-(-length // self.page_tokens) for length in lengths)
        width = -(-max(lengths) // self.page_tokens)
        order = iter(generator.permutation(pages))
        self.table = np.full((len(lengths), width), -1, np.int32)
        for sequence, length in enumerate(lengths):
            for page in range(-(-length // self.page_tokens)):
                self.table[sequence, page] = next(order)
        shape = (pages, self.page_tokens, self.key_value_heads)
        keys = generator.standard_normal((*shape, self.key_size), dtype=np.float32)
        values = generator.standard_normal((*shape, self.value_size), dtype=np.float32)
        self.keys = round_entries(keys, np.dtype(dtype))
        self.values = round_entries(values, np.dtype(dtype))
        self.queries = [
            generator.standard_normal((length, self.heads, self.key_size), dtype=np.float32)
            for length in lengths
        ]

    def random_parts(
        self, generator: np.random.Generator, most_rows: int
    ) -> list[tuple[int, int, int]]:
        """Some of the sequences, with some of their rows."""
        parts = []
        sequences = len(self.lengths)
        chosen = generator.choice(sequences, generator.integers(1, sequences + 1), replace=False)
        for sequence in chosen:
            length = self.lengths[sequence]
            count = int(generator.integers(1, min(length, most_rows) + 1))
            begin = int(generator.integers(0, length - count + 1))
            parts.append((int(sequence), begin, begin + count))
        return parts

    def attend(
        self, backend: Any, parts: list[tuple[int, int, int]], window: int | None, cap: float | None
    ) -> list[np.ndarray]:
        """The results of rows (sequence, begin, end), computed in one batch."""
        counts = [end - begin for _, begin, end in parts]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        positions = np.concatenate([np.arange(b, e) for _, b, e in parts]).astype(np.int32)
        table = np.ascontiguousarray(self.table[[sequence for sequence, _, _ in parts]])
        rows = PagedRows(starts, positions, table, self.page_tokens)
        queries = np.concatenate([self.queries[s][b:e] for s, b, e in parts])
        out = backend.attention(queries, self.keys, self.values, rows, 0.158, window, cap)
        return np.split(out, starts[1:-1])


@pytest.mark.parametrize("dtype", [np.float32, np.uint16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("window", "cap"), [(None, None), (33, None), (700, 20.0)])
@pytest.mark.parametrize("level", LEVELS)
def test_attention_rows_alone_and_together(
    level: str, window: int | None, cap: float | None, dtype: Any
) -> None:
    context = _Context([70, 1300, 2100, 17], dtype)
    backend = CpuBackend(level=level, threads=2)
    single = CpuBackend(level=level, threads=1)
    assert ("attention", "paged") in {(k.op, k.name) for k in backend.kernels()}
    generator = np.random.default_rng(8)
    whole = [
        context.attend(backend, [(sequence, 0, length)], window, cap)[0]
        for sequence, length in enumerate(context.lengths)
    ]
    for trial in range(12):
        parts = context.random_parts(generator, 60 if trial % 2 else 1)
        for opened in (backend, single):
            results = context.attend(opened, parts, window, cap)
            for (sequence, begin, end), result in zip(parts, results, strict=True):
                assert _same_bits(result, whole[sequence][begin:end])


@pytest.mark.parametrize("dtype", [np.float32, np.uint16], ids=["float32", "bfloat16"])
def test_attention_rows_in_many_random_batches(dtype: Any) -> None:
    context = _Context([40, 75, 1100, 130], dtype, seed=3)
    backends = [CpuBackend(threads=count) for count in (1, 2, 3)]
    generator = np.random.default_rng(11)
    whole = [
        context.attend(backends[0], [(sequence, 0, length)], 900, None)[0]
        for sequence, length in enumerate(context.lengths)
    ]
    for trial in range(200):
        parts = context.random_parts(generator, 23)
        results = context.attend(backends[trial % 3], parts, 900, None)
        for (sequence, begin, end), result in zip(parts, results, strict=True):
            assert _same_bits(result, whole[sequence][begin:end])


@pytest.mark.parametrize("rounds", [False, True], ids=["kept", "rounded"])
@pytest.mark.parametrize("dtype", [np.float32, np.uint16], ids=["float32", "bfloat16"])
def test_what_a_tuner_may_choose_changes_no_bit(dtype: Any, rounds: bool) -> None:
    context = _Context([1500], dtype, seed=4)
    backend = CpuBackend(threads=2)
    for begin in (0, 1490, 1499):
        count = 1500 - begin
        queries = context.queries[0][begin:]
        results = []
        for tile_queries, head_parts in ((0, 0), (1, 1), (7, 2), (48, 9), (500, 1)):
            out = np.empty((count, context.heads, context.value_size), np.float32)
            backend.native.attention(
                queries,
                context.keys,
                context.values,
                np.array([0, count], np.int32),
                np.arange(begin, 1500, dtype=np.int32),
                context.table,
                context.page_tokens,
                0.158,
                1 << 31,
                0.0,
                out,
                round_to_bfloat16=rounds,
                tile_queries=tile_queries,
                head_parts=head_parts,
            )
            results.append(out)
        assert all(_same_bits(out, results[0]) for out in results)


@pytest.mark.parametrize("dtype", [np.float32, np.uint16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("level", LEVELS)
def test_values_that_a_row_does_not_see_do_not_reach_it(level: str, dtype: Any) -> None:
    """Not even when they are not numbers, and computed beside it."""
    context = _Context([80], dtype)
    backend = CpuBackend(level=level)
    expected = context.attend(backend, [(0, 0, 80)], None, None)[0]
    last_page = context.table[0, 4]
    not_numbers = round_entries(np.array([np.nan, np.inf], np.float32), np.dtype(dtype))
    context.values[last_page, 15], context.keys[last_page, 15] = not_numbers
    changed = context.attend(backend, [(0, 0, 80)], None, None)[0]
    assert _same_bits(changed[:79], expected[:79])
    assert np.isnan(changed[79]).all()


def test_a_row_that_is_not_a_number_stays_alone() -> None:
    generator = np.random.default_rng(9)
    backend = CpuBackend()
    weight = random_weight(get_format("bf16"), 40, 1100, generator)
    x = generator.standard_normal((9, 1100), dtype=np.float32)
    expected = backend.linear(x, weight)
    x[4, 1099] = np.nan
    changed = backend.linear(x, weight)
    assert np.isnan(changed[4]).all()
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert _same_bits(changed[others], expected[others])


def test_several_threads_may_call_at_once() -> None:
    generator = np.random.default_rng(10)
    backend = CpuBackend(threads=2)
    weight = random_weight(get_format("q8_0"), 300, 512, generator)
    inputs = [generator.standard_normal((count, 512), dtype=np.float32) for count in (1, 3, 9, 30)]
    expected = [backend.linear(x, weight) for x in inputs]
    failures: list[str] = []

    def work(index: int) -> None:
        for _ in range(60):
            if not _same_bits(backend.linear(inputs[index], weight), expected[index]):
                failures.append(f"thread {index}")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert not failures
