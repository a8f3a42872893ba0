"""The cpu backend as a whole: levels, threads, forks, formats, ceilings."""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

import numpy as np
import pytest

from firstlight.errors import DeviceError
from firstlight.formats.codes import E2M1
from firstlight.formats.registry import get_format, known_formats
from firstlight.verify.random_weights import random_weight

backend_module = pytest.importorskip("firstlight.backends.cpu.backend")
CpuBackend = backend_module.CpuBackend
LEVELS = backend_module.available_levels()


# All but bare codes, which are no weight without scales.
NAMED = sorted(set(backend_module._native.formats()) - {E2M1.name})


def test_every_format_of_the_kernels_is_one_of_ours() -> None:
    formats = backend_module._native.formats()
    for name in NAMED:
        format = get_format(name)
        assert (format.block_values, format.block_bytes) == formats[name]
    assert formats[E2M1.name] == (8 * E2M1.block_values, 8 * E2M1.block_bytes)


@pytest.mark.parametrize("name", known_formats())
@pytest.mark.parametrize("level", LEVELS)
def test_every_format_has_a_kernel(level: str, name: str) -> None:
    backend = CpuBackend(level=level)
    weight = random_weight(get_format(name), 7, 512, np.random.default_rng(1))
    x = np.ones((2, 512), np.float32)
    assert [k for k in backend.kernels() if k.op == "linear" and k.accepts(x, weight, None)]


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("level", LEVELS)
def test_weights_decode_to_the_same_bits_as_the_formats(level: str, name: str) -> None:
    """Any block whatever: random bytes hold scales of every size, infinite ones and NaN too."""
    format = get_format(name)
    generator = np.random.default_rng(2)
    rows, columns = 64, 512 + (5 if format.block_values == 1 else 0)
    data = generator.integers(0, 256, (rows, format.row_bytes(columns)), dtype=np.uint8)
    table = _weight(format, (rows, columns), data)
    decoded = CpuBackend(level=level).embed(table, np.arange(rows, dtype=np.int32))
    with np.errstate(all="ignore"):
        expected = np.array(format.decode(data))
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(decoded), ~number)
    np.testing.assert_array_equal(decoded.view(np.uint32)[number], expected.view(np.uint32)[number])


def _weight(format: Any, shape: tuple[int, int], data: np.ndarray) -> Any:
    from firstlight.formats.base import Weight

    return Weight(format, shape, data)


def test_every_float16_and_bfloat16() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(64, 1024)
    for name in ("f16", "bf16"):
        format = get_format(name)
        table = _weight(format, (64, 1024), bits.view(np.uint8))
        with np.errstate(all="ignore"):
            expected = format.decode(table.data)
        for level in LEVELS:
            decoded = CpuBackend(level=level).embed(table, np.arange(64, dtype=np.int32))
            np.testing.assert_array_equal(decoded, expected)
            np.testing.assert_array_equal(np.signbit(decoded), np.signbit(expected))


def test_the_level_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CpuBackend().level == LEVELS[-1]
    monkeypatch.setenv("FIRSTLIGHT_CPU_LEVEL", "baseline")
    assert CpuBackend().level == "baseline"
    assert CpuBackend(level=LEVELS[-1]).level == LEVELS[-1]
    monkeypatch.setenv("FIRSTLIGHT_CPU_LEVEL", "abacus")
    with pytest.raises(DeviceError, match="baseline"):
        CpuBackend()


def test_the_identity_names_the_level() -> None:
    identities = {CpuBackend(level=level).identity() for level in LEVELS}
    assert len(identities) == len(LEVELS)
    assert CpuBackend().identity() == CpuBackend().identity()


def _product_in_a_child(backend: Any, x: Any, weight: Any, queue: Any) -> None:
    queue.put(backend.linear(x, weight))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own() -> None:
    generator = np.random.default_rng(3)
    backend = CpuBackend(threads=2)
    weight = random_weight(get_format("q8_0"), 400, 512, generator)
    x = generator.standard_normal((8, 512), dtype=np.float32)
    expected = backend.linear(x, weight)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_product_in_a_child, args=(backend, x, weight, queue))
    child.start()
    child.join(timeout=60)
    assert child.exitcode == 0
    np.testing.assert_array_equal(queue.get(), expected)
    np.testing.assert_array_equal(backend.linear(x, weight), expected)


def test_backends_come_and_go() -> None:
    """A backend that is dropped ends its threads."""
    import threading

    import psutil

    generator = np.random.default_rng(4)
    weight = random_weight(get_format("f32"), 300, 300, generator)
    x = generator.standard_normal((4, 300), dtype=np.float32)
    expected = CpuBackend(threads=1).linear(x, weight)
    before = psutil.Process().num_threads()
    for _ in range(20):
        np.testing.assert_array_equal(CpuBackend(threads=4).linear(x, weight), expected)
    assert psutil.Process().num_threads() <= before + 3
    assert threading.active_count() >= 1


def test_ceilings_are_measured() -> None:
    backend = CpuBackend(threads=2)
    bandwidth, way = backend.native.measure_bandwidth(8 << 20)
    assert 1e8 < bandwidth < 1e14
    assert "stream" in way
    with pytest.raises(ValueError, match="1 MiB"):
        backend.native.measure_bandwidth(0)
    with pytest.raises(ValueError, match="positive"):
        backend.native.measure_multiply_add("f32", 0.0)
    with pytest.raises(ValueError, match="no multiply-add of that type"):
        backend.native.measure_multiply_add("f64", 0.01)


@pytest.mark.parametrize("level", LEVELS)
def test_multiply_adds_are_measured(level: str) -> None:
    native = CpuBackend(level=level, threads=2).native
    types = native.multiply_add_types()
    assert types[0] == "f32"
    assert ("bf16" in types) == (level in ("avx512_bf16", "amx"))
    for dtype in types:
        assert 1e8 < native.measure_multiply_add(dtype, 0.02) < 1e15


def test_ceilings_name_every_type_and_the_best_way_to_read_memory() -> None:
    backend = CpuBackend(threads=2)
    ceilings = backend.measure_ceilings()
    assert set(backend.native.multiply_add_types()) <= set(ceilings.matrix_operations_per_second)
    assert "memory best read by" in ceilings.how


def test_fast_formats_are_those_of_the_kernels() -> None:
    fast = CpuBackend().fast_formats()
    assert {"f32", "f16", "bf16", "q4_0", "q8_0", "q4_k", "q6_k", "f8_e4m3"} <= fast
    assert fast <= {*known_formats(), E2M1.name}


def test_ceilings_of_other_levels_and_threads_are_kept_apart() -> None:
    keys = {CpuBackend(level=level, threads=n).device_key() for level in LEVELS for n in (1, 2)}
    assert len(keys) == 2 * len(LEVELS)
