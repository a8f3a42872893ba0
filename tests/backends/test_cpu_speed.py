"""No kernel of the cpu backend is slower than the definition, at sizes that models have."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from firstlight.formats.registry import get_format
from firstlight.ops.contract import get_op
from firstlight.ops.paging import PagedRows
from firstlight.verify.cases import cases_of
from firstlight.verify.conformance import to_device
from firstlight.verify.random_weights import random_weight

pytestmark = pytest.mark.speed
backend_module = pytest.importorskip("firstlight.backends.cpu.backend")

_WIDTH = 1024


def _floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _attention(rows: int, held: int, dtype: Any) -> tuple[Any, ...]:
    from firstlight.ops.attention import round_entries

    page_tokens, heads, key_value_heads, size = 16, 8, 2, 128
    pages = -(-(held + rows) // page_tokens)
    shape = (pages, page_tokens, key_value_heads, size)
    keys, values = (round_entries(_floats(*shape), np.dtype(dtype)) for _ in range(2))
    layout = PagedRows(
        np.array([0, rows], np.int32),
        np.arange(held, held + rows, dtype=np.int32),
        np.random.default_rng(1).permutation(pages).astype(np.int32)[None],
        page_tokens,
    )
    return _floats(rows, heads, size), keys, values, layout, size**-0.5, None, None


def _arguments() -> dict[str, tuple[str, tuple[Any, ...]]]:
    """name -> (op, arguments) for one token and for a chunk of a prompt."""
    made: dict[str, tuple[str, tuple[Any, ...]]] = {}
    for rows in (1, 64):
        x = _floats(rows, _WIDTH)
        for name in ("f32", "bf16", "q8_0", "q4_0", "q5_0", "q4_k", "q6_k", "iq4_nl"):
            weight = random_weight(get_format(name), 512, _WIDTH, np.random.default_rng(2))
            made[f"linear {name} {rows}"] = ("linear", (x, weight, None))
        made[f"rms_norm {rows}"] = ("rms_norm", (x, _floats(_WIDTH), 1e-6))
        for activation in ("silu", "gelu", "gelu_tanh"):
            made[f"gate {activation} {rows}"] = ("gate", (x, x, activation))
        cosine_sine = _floats(rows, 2, 32)
        made[f"rotary {rows}"] = ("rotary", (x.reshape(rows, -1, 64), cosine_sine, False))
        made[f"attention {rows}"] = ("attention", _attention(rows, 500, np.float32))
        made[f"attention bfloat16 {rows}"] = ("attention", _attention(rows, 500, np.uint16))
    made["soft_cap 1"] = ("soft_cap", (_floats(1, 50000), 30.0))
    made["embed"] = (
        "embed",
        (
            random_weight(get_format("q8_0"), 999, _WIDTH, np.random.default_rng(3)),
            np.arange(0, 999, 40, dtype=np.int32),
        ),
    )
    return made


ARGUMENTS = _arguments()


def _best(run: Callable[[], Any]) -> float:
    """Seconds of the fastest of some runs, by a clock that does not count other processes."""
    best = float("inf")
    for _ in range(9):
        start = time.thread_time()
        run()
        best = min(best, time.thread_time() - start)
    return best


@pytest.mark.parametrize("name", ARGUMENTS)
def test_not_slower_than_the_definition(name: str) -> None:
    op, arguments = ARGUMENTS[name]
    # One thread: more would hide work from the clock of this one, on both sides.
    backend = backend_module.CpuBackend(threads=1)
    ours = _best(lambda: backend.call(op, *arguments))
    theirs = _best(lambda: get_op(op).definition(*arguments))
    assert any(kernel != "definition" for called, kernel in backend.usage() if called == op)
    # A tenth for the clock's own grain.
    assert ours <= 1.1 * theirs, f"{ours * 1e6:.0f} us against {theirs * 1e6:.0f} us"


@pytest.mark.parametrize("op", ["attention_block", "feed_forward_block", "logits"])
def test_a_block_is_not_slower_than_its_parts(op: str) -> None:
    backend = backend_module.CpuBackend(threads=1)
    for case in cases_of(op):
        if case.name not in ("q4_0, one row", "prefill"):
            continue
        arguments = tuple(to_device(backend, argument) for argument in case.arguments())
        fused = _best(lambda arguments=arguments: backend.call(op, *arguments))
        parts = _best(lambda arguments=arguments: get_op(op).definition(backend, *arguments))
        assert (op, "fused") in backend.usage()
        assert fused <= 1.1 * parts, f"{case.name}: {fused * 1e6:.0f} us, {parts * 1e6:.0f} us"
