"""The cpu backend's blocks give the bits of their parts, whatever else is in the batch."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from firstlight.formats.registry import get_format
from firstlight.ops import AttentionBlock, FeedForwardBlock, Norm, PagedRows, Product
from firstlight.ops.contract import get_op
from firstlight.ops.experts_block import experts_block
from firstlight.verify.cases import Case, StreamArgument, cases_of
from firstlight.verify.conformance import to_device
from firstlight.verify.random_weights import random_weight

backend_module = pytest.importorskip("firstlight.backends.cpu.backend")
CpuBackend = backend_module.CpuBackend
LEVELS = backend_module.available_levels()
BLOCKS = (
    "attention_block",
    "experts_block",
    "feed_forward_block",
    "latent_attention_block",
    "logits",
)
EVERY_CASE = [case for op in BLOCKS for case in cases_of(op)]


def _floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _same_bits(left: Any, right: Any) -> bool:
    return left.shape == right.shape and left.tobytes() == right.tobytes()


def _kernel(backend: Any, op: str) -> Any:
    (found,) = (kernel for kernel in backend.kernels() if kernel.op == op)
    return found


def _run(backend: Any, case: Case, fused: bool) -> list[np.ndarray]:
    """The result, and the streams as they are afterwards."""
    given = case.arguments()
    passed = [to_device(backend, argument) for argument in given]
    if fused:
        kernel = _kernel(backend, case.op)
        if not kernel.accepts(*passed):
            pytest.skip("a format that the kernels do not read")
        result = kernel.run(*passed)
    else:
        result = get_op(case.op).definition(backend, *passed)
    streams = [
        after
        for before, after in zip(given, passed, strict=True)
        if isinstance(before, StreamArgument)
    ]
    return [result, *streams]


@pytest.mark.parametrize("case", EVERY_CASE, ids=lambda case: f"{case.op}-{case.name}")
@pytest.mark.parametrize("level", LEVELS)
def test_a_block_has_the_bits_of_its_parts(level: str, case: Case) -> None:
    backend = CpuBackend(level=level, threads=2)
    for fused, parts in zip(_run(backend, case, True), _run(backend, case, False), strict=True):
        assert _same_bits(fused, parts)


@pytest.mark.parametrize(
    "name", ["bf16", "formats mixed", "groups, corrected, and a shared expert"]
)
def test_what_experts_make_of_a_row_does_not_depend_on_the_others(name: str) -> None:
    """Alone, where its experts' products are done together, and among rows that share experts."""
    backend = CpuBackend(threads=2)
    (case,) = (case for case in cases_of("experts_block") if case.name == name)
    x, block, tokens = (to_device(backend, argument) for argument in case.arguments())
    together = backend.experts_block(x, block, tokens)
    for start, stop in [*((row, row + 1) for row in range(len(x))), (1, 3), (2, len(x))]:
        part = backend.experts_block(x[start:stop].copy(), block, tokens[start:stop])
        assert _same_bits(part, together[start:stop].copy())


@pytest.mark.parametrize("rows", [1, 7])
def test_the_rows_of_each_expert_are_counted(rows: int) -> None:
    backend = CpuBackend(threads=2)
    (case,) = (case for case in cases_of("experts_block") if case.name == "bf16")
    x, block, tokens = (to_device(backend, argument) for argument in case.arguments())
    x, tokens = x[:rows].copy(), tokens[:rows]
    counts = []
    for fused in (True, False):
        use = np.zeros(len(block.experts), np.int64)
        counted = replace(block, use=use)
        for _ in range(2):
            if fused:
                backend.experts_block(x, counted, tokens)
            else:
                experts_block(backend, x, counted, tokens)
        assert use.sum() == 2 * rows * block.routing.top_k
        counts.append(use)
    assert (counts[0] == counts[1]).all()


def test_reading_ahead_changes_nothing() -> None:
    """The system is asked for what it may know nothing of: results are the same."""
    backend = CpuBackend(threads=2)
    (case,) = (case for case in cases_of("experts_block") if case.name == "bf16")
    x, block, tokens = (to_device(backend, argument) for argument in case.arguments())
    expected = backend.experts_block(x, block, tokens)
    places = np.zeros((len(block.experts), 3, 2), np.int64)
    for place, expert in zip(places, block.experts, strict=True):
        for row, product in zip(place, (expert.gate, expert.up, expert.down), strict=True):
            data = product.weight.data
            row[...] = data.ctypes.data, data.nbytes
    places[0, 1] = 0
    places[-1, 2, 0] = 12345  # where nothing is mapped
    ahead = replace(block, places=places)
    assert _same_bits(backend.experts_block(x, ahead, tokens), expected)


@pytest.mark.parametrize("format", ["q8_0", "bf16"])
def test_large_blocks_are_shared_among_threads_without_a_change(format: str) -> None:
    """Large enough that norms, heads, gates and sums are shared as well, and not products alone."""
    backends = [CpuBackend(threads=count) for count in (1, 2, 5)]
    model = _Model(format, hidden=512, heads=8, head_size=64, width=1024)
    parts = [(0, 0, 300), (1, 0, 70)]

    def step(backend: Any) -> list[np.ndarray]:
        return model.step(backend, parts, [np.zeros(model.shape, np.uint16) for _ in range(2)])

    first, *others = map(step, backends)
    assert all(
        _same_bits(mine, theirs)
        for other in others
        for mine, theirs in zip(first, other, strict=True)
    )


class _Model:
    """One layer of a model with per-head norms, and sequences whose rows can come in any batch."""

    page_tokens = 16
    length = 320

    def __init__(self, format: str, hidden: int, heads: int, head_size: int, width: int) -> None:
        generator = np.random.default_rng(3)

        def product(rows: int, columns: int) -> Product:
            return Product(random_weight(get_format(format), rows, columns, generator))

        entry = heads // 2 * head_size
        self.attention = AttentionBlock(
            heads,
            heads // 2,
            head_size,
            query=product(heads * head_size, hidden),
            key=product(entry, hidden),
            value=product(entry, hidden),
            output=product(hidden, heads * head_size),
            scale=head_size**-0.5,
            pre_norm=Norm(hidden, 1e-6, _floats(hidden)),
            post_norm=Norm(hidden, 1e-6, _floats(hidden)),
            query_norm=Norm(head_size, 1e-6, _floats(head_size)),
            key_norm=Norm(head_size, 1e-6),
            window=100,
        )
        self.feed_forward = FeedForwardBlock(
            product(width, hidden),
            product(width, hidden),
            product(hidden, width),
            "gelu_tanh",
            pre_norm=Norm(hidden, 1e-6),
            residual_scale=0.5,
        )
        self.pages_each = self.length // self.page_tokens
        self.shape = (2 * self.pages_each, self.page_tokens, heads // 2, head_size)
        self.x = generator.standard_normal((2, self.length, hidden), dtype=np.float32)
        self.angles = generator.uniform(0, 6, (self.length, 2, head_size // 2)).astype(np.float32)

    def step(
        self, backend: Any, parts: list[tuple[int, int, int]], state: Any = None
    ) -> list[np.ndarray]:
        """(sequence, begin, end) of each part -> its rows after the layer. `state`: the streams."""
        keys, values = state or (np.zeros(self.shape, np.float32) for _ in range(2))
        counts = [end - begin for _, begin, end in parts]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        positions = np.concatenate([np.arange(b, e) for _, b, e in parts]).astype(np.int32)
        table = np.stack([np.arange(self.pages_each) * 2 + s for s, _, _ in parts])
        rows = PagedRows(starts, positions, table.astype(np.int32), self.page_tokens)
        x = np.concatenate([self.x[s, b:e] for s, b, e in parts])
        packed = to_device(backend, self.attention), to_device(backend, self.feed_forward)
        table = np.ascontiguousarray(np.cos(self.angles[positions]))
        x = backend.attention_block(x, packed[0], keys, values, rows, table)
        return np.split(backend.feed_forward_block(x, packed[1]), starts[1:-1])


@pytest.mark.parametrize("format", ["f32", "bf16", "q4_0"])
@pytest.mark.parametrize("level", LEVELS)
def test_rows_alone_and_together(level: str, format: str) -> None:
    backend = CpuBackend(level=level, threads=2)
    model = _Model(format, hidden=96, heads=4, head_size=32, width=160)
    (whole, other) = model.step(backend, [(0, 0, 320), (1, 0, 320)])
    # Decoded alone, from a state that holds what came before; and beside a chunk of a prompt.
    state = tuple(np.zeros(model.shape, np.float32) for _ in range(2))
    model.step(backend, [(0, 0, 150)], state)
    for row in range(150, 170):
        assert _same_bits(model.step(backend, [(0, row, row + 1)], state)[0][0], whole[row])
    begin = 0
    for row, size in zip(range(170, 190), (1, 2, 17, 40, 3) * 4, strict=True):
        alone, chunk = model.step(backend, [(0, row, row + 1), (1, begin, begin + size)], state)
        assert _same_bits(alone[0], whole[row])
        assert _same_bits(chunk, other[begin : begin + size])
        begin += size


def _rows(positions: list[int], pages: list[int]) -> PagedRows:
    return PagedRows(
        np.array([0, len(positions)], np.int32),
        np.array(positions, np.int32),
        np.array([pages], np.int32),
        16,
    )


@pytest.fixture(scope="module")
def small() -> tuple[Any, _Model]:
    return CpuBackend(threads=2), _Model("f32", hidden=32, heads=2, head_size=8, width=48)


@pytest.mark.parametrize(
    ("positions", "pages", "error", "says"),
    [
        ([0, 1], [99], IndexError, "not there"),
        ([0, 1], [-1], IndexError, "lacks"),
        ([16, 17], [0], IndexError, "past the end"),
        ([3, 5], [0], ValueError, "rise by one"),
        ([-1, 0], [0], ValueError, "negative"),
        ([0], [0], ValueError, "a row for each position"),
    ],
)
def test_wrong_rows_change_nothing(
    small: tuple[Any, _Model], positions: list[int], pages: list[int], error: Any, says: str
) -> None:
    backend, model = small
    keys, values = (np.zeros(model.shape, np.float32) for _ in range(2))
    with pytest.raises(error, match=says):
        backend.attention_block(
            _floats(2, 32), model.attention, keys, values, _rows(positions, pages), None
        )
    assert not keys.any()
    assert not values.any()


def test_arguments_that_do_not_fit(small: tuple[Any, _Model]) -> None:
    backend, model = small
    rows = _rows([0, 1], [0])
    x, keys = _floats(2, 32), np.zeros(model.shape, np.float32)

    def attend(x: Any = x, k: Any = keys, v: Any = keys, table: Any = None) -> Any:
        return backend.attention_block(x, model.attention, k, v, rows, table)

    with pytest.raises(ValueError, match="x must be"):
        attend(_floats(2, 31))
    with pytest.raises(ValueError, match="keys and values must be"):
        attend(k=np.zeros((3, 16, 1, 9), np.float32))
    with pytest.raises(ValueError, match="as many pages"):
        attend(v=keys[:3])
    with pytest.raises(ValueError, match="cosine_sine must be"):
        attend(table=_floats(3, 2, 4))
    with pytest.raises(ValueError, match="more angles"):
        attend(table=_floats(2, 2, 5))
    with pytest.raises(ValueError, match="x must be"):
        backend.feed_forward_block(_floats(2, 31), model.feed_forward)


def test_blocks_that_do_not_fit_together(small: tuple[Any, _Model]) -> None:
    backend, model = small
    block, other = model.attention, model.feed_forward
    keys, rows = np.zeros(model.shape, np.float32), _rows([0, 1], [0])
    for wrong, says in (
        (replace(block, key_value_heads=3), "multiple"),
        (replace(block, head_size=4), "a row for each value"),
        (replace(block, output=block.key), "output product"),
        (replace(block, pre_norm=Norm(31, 1e-6)), "stream's columns"),
        (replace(block, query_norm=Norm(7, 1e-6)), "must divide"),
        (replace(block, window=0), "window"),
        (replace(block, query=replace(block.query, bias=_floats(3))), "bias must be"),
    ):
        with pytest.raises(ValueError, match=says):
            backend.attention_block(_floats(2, 32), wrong, keys, keys.copy(), rows, None)
    for wrong, says in (
        (replace(other, up=other.down), "one shape"),
        (replace(other, down=other.up), "down must lead"),
        (replace(other, post_norm=Norm(31, 1e-6)), "stream's columns"),
    ):
        with pytest.raises(ValueError, match=says):
            backend.feed_forward_block(_floats(2, 32), wrong)


def test_a_block_that_the_kernels_cannot_read_runs_as_its_parts(small: tuple[Any, _Model]) -> None:
    backend, model = small
    strided = replace(model.feed_forward, pre_norm=Norm(32, 1e-6, _floats(64)[::2]))
    straight = replace(model.feed_forward, pre_norm=Norm(32, 1e-6, _floats(64)[::2].copy()))
    before = backend.usage().get(("feed_forward_block", "fused"), (0, 0.0))[0]
    found = backend.feed_forward_block(_floats(3, 32), strided)
    assert backend.usage().get(("feed_forward_block", "fused"), (0, 0.0))[0] == before
    expected = backend.feed_forward_block(_floats(3, 32), straight)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_several_threads_may_call_at_once() -> None:
    """Each has memory of its own for what lies between products, of any size."""
    backend = CpuBackend(threads=2)
    model = _Model("f32", hidden=64, heads=4, head_size=16, width=96)
    parts = [[(0, 0, count)] for count in (1, 3, 40, 200)]
    expected = [model.step(backend, part)[0] for part in parts]
    failures: list[str] = []

    def work(index: int) -> None:
        for _ in range(30):
            if not _same_bits(model.step(backend, parts[index])[0], expected[index]):
                failures.append(f"thread {index}")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert not failures


def test_a_step_of_blocks_calls_the_backend_once_each(small: tuple[Any, _Model]) -> None:
    backend, model = small
    before = {key: calls for key, (calls, _) in backend.usage().items()}
    model.step(backend, [(0, 0, 5)])
    after = {key: calls for key, (calls, _) in backend.usage().items()}
    changed = {key: calls - before.get(key, 0) for key, calls in after.items()}
    assert {key: calls for key, calls in changed.items() if calls} == {
        ("attention_block", "fused"): 1,
        ("feed_forward_block", "fused"): 1,
    }
