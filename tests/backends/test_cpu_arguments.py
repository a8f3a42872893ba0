"""Wrong arguments to the cpu backend's kernels raise, and nothing is read out of bounds."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from firstlight.formats.base import Weight
from firstlight.formats.registry import get_format
from firstlight.ops.paging import PagedRows
from firstlight.verify.random_weights import random_weight

backend_module = pytest.importorskip("firstlight.backends.cpu.backend")
stored_matrix = pytest.importorskip("firstlight.backends.cpu.matrices").stored_matrix


@pytest.fixture(scope="module")
def backend() -> Any:
    return backend_module.CpuBackend(threads=2)


@pytest.fixture(scope="module")
def kernels(backend: Any) -> dict[tuple[str, str], Any]:
    return {(kernel.op, kernel.name): kernel.run for kernel in backend.kernels()}


def _floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _weight(name: str, rows: int, columns: int) -> Weight:
    return random_weight(get_format(name), rows, columns, np.random.default_rng(0))


def test_linear_refuses_what_does_not_fit(kernels: dict[tuple[str, str], Any]) -> None:
    linear = kernels["linear", "stored"]
    weight = _weight("q8_0", 5, 64)
    with pytest.raises(ValueError, match="x must be"):
        linear(_floats(2, 32), weight)
    with pytest.raises(ValueError, match="bias must be"):
        linear(_floats(2, 64), weight, _floats(4))
    with pytest.raises(TypeError):
        linear(_floats(2, 64).astype(np.float64), weight)
    with pytest.raises(TypeError):
        linear(_floats(64, 2).T, weight)


def test_weight_data_of_another_size(backend: Any) -> None:
    """`Weight` checks itself; the extension does not rely on it."""
    data = np.zeros((5, 68), np.uint8)
    matrix = backend_module._native.Matrix
    with pytest.raises(ValueError, match="does not hold"):
        matrix("q8_0", data, 5, 96, False)
    with pytest.raises(ValueError, match="whole blocks"):
        matrix("q8_0", data, 5, 65, False)
    for rows, columns in ((5, 1 << 62), (1 << 62, 34), (0, 34), (5, 0)):
        with pytest.raises(ValueError, match="does not hold"):
            matrix("bf16", data, rows, columns, False)
    with pytest.raises(ValueError, match="whole blocks"):
        matrix("bf16", data, -5, 34, False)
    with pytest.raises(ValueError, match="do not know"):
        matrix("q9_9", data, 5, 64, False)
    with pytest.raises(TypeError):
        matrix("bf16", data.view(np.uint16), 5, 34, False)
    with pytest.raises(ValueError, match="out must be"):
        good = matrix("q8_0", data, 5, 64, False)
        backend.native.linear(_floats(2, 64), good, None, np.empty((2, 4), np.float32))


def test_a_matrix_keeps_its_data(backend: Any) -> None:
    matrix = backend_module._native.Matrix("f32", _floats(70, 90).view(np.uint8), 70, 90, False)
    gc.collect()
    out = np.empty((1, 70), np.float32)
    backend.native.linear(_floats(1, 90), matrix, None, out)
    np.testing.assert_allclose(out[0], _floats(70, 90) @ _floats(1, 90)[0], rtol=1e-4, atol=1e-4)


def test_a_tuning_outside_its_range() -> None:
    matrix = backend_module._native.Matrix("f32", _floats(2, 3).view(np.uint8), 2, 3, False)
    matrix.tune(1, 4, block_rows=8)
    for wrong in ((0, 4), (5, 4)):
        with pytest.raises(ValueError, match="rising"):
            matrix.tune(*wrong)
    with pytest.raises(ValueError, match="negative"):
        matrix.tune(1, 4, panels=-1)


def test_a_group_of_products(backend: Any) -> None:
    """More than one parallel_for takes, of several shapes: each as if it were alone."""
    native = backend.native
    x = _floats(7, 64)
    weights = [_weight("q8_0" if i % 2 else "f32", 3 + 40 * i, 64) for i in range(19)]
    matrices = [stored_matrix(weight) for weight in weights]
    biases = [_floats(weight.rows) if i % 3 else None for i, weight in enumerate(weights)]
    for count in (0, 1, 7):
        outs = [np.full((count, weight.rows), np.nan, np.float32) for weight in weights]
        native.linear_group(x[:count], matrices, biases, outs)
        for matrix, bias, out in zip(matrices, biases, outs, strict=True):
            alone = np.empty_like(out)
            native.linear(x[:count], matrix, bias, alone)
            assert out.tobytes() == alone.tobytes()
    with pytest.raises(ValueError, match="as many"):
        native.linear_group(x, matrices, biases, outs[:-1])
    with pytest.raises(ValueError, match="out must be"):
        native.linear_group(x, matrices[:1], biases[:1], outs[1:2])


def test_weights_may_be_read_only(kernels: dict[tuple[str, str], Any]) -> None:
    weight = _weight("q4_k", 5, 256)
    weight.data.flags.writeable = False
    assert kernels["linear", "stored"](_floats(2, 256), weight).shape == (2, 5)


@pytest.mark.parametrize("token", [-1, 29, 2**31 - 1, -(2**31)])
def test_token_ids_outside_the_vocabulary(
    kernels: dict[tuple[str, str], Any], backend: Any, token: int
) -> None:
    table = _weight("bf16", 29, 16)
    ids = np.array([3, token], np.int32)
    with pytest.raises(IndexError, match="vocabulary"):
        kernels["embed", "stored"](table, ids)
    with pytest.raises(IndexError):
        backend.embed(table, ids)


@pytest.mark.parametrize("index", [-1, 4])
def test_rows_that_are_not_there(kernels: dict[tuple[str, str], Any], index: int) -> None:
    with pytest.raises(IndexError, match="outside the rows"):
        kernels["take_rows", "rows"](_floats(4, 3), np.array([index], np.int32))


def test_rotary_refuses_more_angles_than_pairs(kernels: dict[tuple[str, str], Any]) -> None:
    with pytest.raises(ValueError, match="more angles"):
        kernels["rotary", "rows"](_floats(2, 3, 6), _floats(2, 2, 4), False)
    with pytest.raises(ValueError, match="cosine_sine"):
        kernels["rotary", "rows"](_floats(2, 3, 6), _floats(3, 2, 3), False)


def test_shapes_that_differ(kernels: dict[tuple[str, str], Any]) -> None:
    with pytest.raises(ValueError, match="same shape"):
        kernels["add", "vector"](_floats(2, 8192), _floats(8192, 2))
    with pytest.raises(ValueError, match="out must have the shape"):
        kernels["gate", "vector"](_floats(2, 3), _floats(2, 4), "silu")
    with pytest.raises(ValueError, match="activation"):
        kernels["gate", "vector"](_floats(2, 3), _floats(2, 3), "swish")
    with pytest.raises(ValueError, match="weight must be"):
        kernels["rms_norm", "rows"](_floats(2, 3), _floats(2), 1e-6)


def _rows(
    starts: list[int], positions: list[int], table: list[list[int]], page_tokens: int = 4
) -> PagedRows:
    return PagedRows(
        np.array(starts, np.int32),
        np.array(positions, np.int32),
        np.array(table, np.int32).reshape(len(table), -1),
        page_tokens,
    )


_BAD_ROWS = {
    "a page freed": (_rows([0, 1], [5], [[0, -1]]), IndexError, "lacks"),
    "a page not there": (_rows([0, 1], [5], [[0, 3]]), IndexError, "not there"),
    "past the table": (_rows([0, 1], [8], [[0, 1]]), IndexError, "past the end"),
    "a negative position": (_rows([0, 1], [-1], [[0, 1]]), ValueError, "negative"),
    "falling starts": (_rows([0, 2, 1, 2], [0, 0], [[0], [1], [2]]), ValueError, "not fall"),
    "starts beyond": (_rows([0, 3], [0, 1], [[0]]), ValueError, "end with"),
    "starts late": (_rows([1, 2], [0, 1], [[0]]), ValueError, "begin with"),
    "a sequence too many": (_rows([0, 1], [0], [[0], [1]]), ValueError, "each sequence"),
}


@pytest.mark.parametrize("name", _BAD_ROWS)
def test_rows_whose_state_is_not_there(kernels: dict[tuple[str, str], Any], name: str) -> None:
    rows, error, says = _BAD_ROWS[name]
    count = len(rows.positions)
    pages = np.zeros((3, 4, 2, 8), np.float32)
    before = pages.copy()
    with pytest.raises(error, match=says):
        kernels["stream_write", "paged"](pages, _floats(count, 2, 8), rows)
    np.testing.assert_array_equal(pages, before)
    with pytest.raises(error, match=says):
        kernels["attention", "paged"](_floats(count, 4, 8), pages, pages, rows, 1.0, None, None)


def test_attention_refuses_what_does_not_fit(kernels: dict[tuple[str, str], Any]) -> None:
    attention = kernels["attention", "paged"]
    rows = _rows([0, 2], [2, 3], [[0]])
    pages = np.zeros((3, 4, 2, 8), np.float32)
    with pytest.raises(ValueError, match="differ in size"):
        attention(_floats(2, 4, 9), pages, pages, rows, 1.0, None, None)
    with pytest.raises(ValueError, match="multiple"):
        attention(_floats(2, 3, 8), pages, pages, rows, 1.0, None, None)
    with pytest.raises(ValueError, match="queries must be"):
        attention(_floats(3, 4, 8), pages, pages, rows, 1.0, None, None)
    with pytest.raises(ValueError, match="keys and values"):
        attention(_floats(2, 4, 8), pages, pages[:2], rows, 1.0, None, None)
    with pytest.raises(ValueError, match="window"):
        attention(_floats(2, 4, 8), pages, pages, rows, 1.0, 0, None)
    with pytest.raises(ValueError, match="rise by one"):
        attention(_floats(2, 4, 8), pages, pages, _rows([0, 2], [3, 2], [[0]]), 1.0, None, None)


def test_pages_out_of_the_window_need_not_be_there(kernels: dict[tuple[str, str], Any]) -> None:
    pages = _floats(3, 4, 2, 8)
    queries = _floats(1, 4, 8)
    freed = _rows([0, 1], [9], [[-1, 1, 2]])
    kept = _rows([0, 1], [9], [[0, 1, 2]])
    attention = kernels["attention", "paged"]
    np.testing.assert_array_equal(
        attention(queries, pages, pages, freed, 1.0, 6, None),
        attention(queries, pages, pages, kept, 1.0, 6, None),
    )
    with pytest.raises(IndexError, match="lacks"):
        attention(queries, pages, pages, freed, 1.0, 7, None)


def test_arguments_no_kernel_takes_go_to_the_definition(backend: Any) -> None:
    x = _floats(6, 4)
    before = backend.usage().get(("scale", "definition"), (0, 0.0))[0]
    np.testing.assert_array_equal(backend.scale(x.T, 2.0), x.T * 2)
    assert backend.usage()["scale", "definition"][0] == before + 1
