"""The cpu backend's products under every tuning: the same bits, told to the weights' handles."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest

from firstlight.backends.cpu import tuned_matrices
from firstlight.backends.cpu.backend import CpuBackend, available_levels
from firstlight.backends.cpu.matrices import matrix_of
from firstlight.backends.kernel import Choice, choices
from firstlight.formats.registry import get_format
from firstlight.ops.contract import get_op
from firstlight.ops.shape import Shape
from firstlight.verify.random_weights import random_weight

Told = list[tuple[object, str, dict[str, int]]]


@pytest.fixture(scope="module")
def backend() -> CpuBackend:
    return CpuBackend(threads=2)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    """What handles are told: (handle, range of rows, values)."""
    found: Told = []
    monkeypatch.setattr(
        tuned_matrices, "tune_matrix", lambda matrix, rows, v: found.append((matrix, rows, dict(v)))
    )
    yield found


def product(name: str, count: int, rows: int = 150, columns: int = 512) -> tuple[object, object]:
    generator = np.random.default_rng(count)
    weight = random_weight(get_format(name), rows, columns, generator)
    return generator.standard_normal((count, columns), dtype=np.float32), weight


@pytest.mark.parametrize("name", ["f32", "bf16", "q8_0", "q4_k", "q5_0"])
@pytest.mark.parametrize("count", [1, 2, 16, 70, 200])
def test_no_tuning_changes_a_bit(backend: CpuBackend, name: str, count: int) -> None:
    x, weight = product(name, count)
    packed = backend.pack(weight)
    default = backend.default_choice("linear", x, packed)
    wanted = backend.linear(x, packed).tobytes()
    (kernel,) = [each for each in backend.kernels() if each.name == default.kernel][:1]
    tried = 0
    for choice in choices(kernel):
        tuned = backend.ready("linear", choice)
        assert tuned is not None
        if tuned.takes(x, packed):
            assert tuned.run(x, packed).tobytes() == wanted, choice
            tried += 1
    assert tried >= 6


def _choice(backend: CpuBackend, x: object, packed: object) -> tuple[Shape, Choice]:
    shape = get_op("linear").shape
    assert shape is not None
    kernel = backend.default_choice("linear", x, packed).kernel
    return shape(x, packed), Choice(kernel, (("panels", 4),))


def test_every_weight_of_a_shape_is_told(told: Told) -> None:
    backend = CpuBackend(threads=1)
    x, weight = product("q8_0", 3)
    early, other = backend.pack(weight), backend.pack(product("q8_0", 3, rows=151)[1])
    shape, choice = _choice(backend, x, early)
    backend.apply_tuning("linear", shape, choice)
    late = backend.pack(product("q8_0", 3)[1])
    values = {"block_rows": 0, "panels": 4, "fetch_ahead": 0}
    handles = [matrix_of(each) for each in (early, late)]
    assert told == [(handle, "2-4", values) for handle in handles]
    assert matrix_of(other) not in handles
    assert backend.tuning() == {("linear", shape): choice}
    told.clear()
    backend.apply_tuning("linear", shape, None)
    assert told == [(handle, "2-4", {**values, "panels": 0}) for handle in handles]
    assert backend.tuning() == {}


def test_a_choice_that_is_no_matter_of_handles_goes_through_dispatch(told: Told) -> None:
    backend = CpuBackend(threads=1)
    x, weight = product("q8_0", 1)
    packed = backend.pack(weight)
    shape, choice = _choice(backend, x, packed)
    backend.apply_tuning("linear", shape, choice)
    backend.apply_tuning("linear", shape, Choice("definition"))
    assert backend.tuning() == {("linear", shape): Choice("definition")}
    backend.linear(x, packed)
    assert backend.usage()["linear", "definition"][0] == 1
    backend.apply_tuning("linear", shape, choice)
    assert backend.tuning() == {("linear", shape): choice}
    backend.linear(x, packed)
    assert backend.usage()["linear", "definition"][0] == 1


def test_weights_are_not_kept_alive(told: Told) -> None:
    backend = CpuBackend(threads=1)
    x, weight = product("q8_0", 1)
    shape, choice = _choice(backend, x, backend.pack(weight))
    backend.apply_tuning("linear", shape, choice)
    del weight
    gc.collect()
    told.clear()
    backend.apply_tuning("linear", shape, None)
    assert told == []


@pytest.mark.parametrize("place", [0, -1])
def test_rows_of_a_batch_agree_under_tunings_of_their_own(place: int) -> None:
    """One row is tuned otherwise than seventy: its bits must be those that it has among them."""
    backend = CpuBackend(level=available_levels()[place], threads=2)
    x, weight = product("q4_k", 70)
    packed = backend.pack(weight)
    assert isinstance(x, np.ndarray)
    for rows, panels in (("1", 8), ("65+", 1)):
        shape = (*_choice(backend, x, packed)[0][:-1], rows)
        kernel = backend.default_choice("linear", x, packed).kernel
        backend.apply_tuning("linear", shape, Choice(kernel, (("panels", panels),)))
    together = backend.linear(x, packed)
    for row in (0, 33, 69):
        alone = backend.linear(x[row : row + 1], packed)
        assert alone.tobytes() == together[row : row + 1].tobytes()
