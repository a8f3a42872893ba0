"""The cpu backend's attention under every tuning: the same bits, alone and within a fused block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from firstlight.backends.cpu.backend import CpuBackend
from firstlight.backends.cpu.tuned_attention import TunedAttention
from firstlight.backends.kernel import Choice, choices
from firstlight.ops.contract import get_op
from firstlight.verify.cases import cases_of
from firstlight.verify.conformance import to_device

LAYOUTS = (
    "decode and prefill mixed",
    "many heads a group",
    "many rows",
    "long context",
    "window and soft cap",
)
CASES = [
    case
    for case in cases_of("attention")
    if any(
        case.name == f"{layout}, {stream}"
        for layout in LAYOUTS
        for stream in ("float32", "bfloat16")
    )
]


@pytest.fixture(scope="module")
def backend() -> CpuBackend:
    return CpuBackend(threads=2)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_tuning_changes_a_bit(backend: CpuBackend, case: Any) -> None:
    arguments = [to_device(backend, argument) for argument in case.arguments()]
    default = backend.default_choice("attention", *arguments)
    wanted = backend.attention(*arguments).tobytes()
    (kernel,) = (
        each for each in backend.kernels() if (each.op, each.name) == ("attention", default.kernel)
    )
    tried = 0
    for choice in choices(kernel):
        tuned = backend.ready("attention", choice)
        assert tuned is not None
        if tuned.takes(*arguments):
            assert tuned.run(*arguments).tobytes() == wanted, choice
            tried += 1
    assert tried >= 3


def test_a_fused_block_asks_for_the_shape_that_was_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bits stay as they were, and the choice for its attention's shape reaches it."""
    backend = CpuBackend(threads=2)
    asked: list[Mapping[str, Any]] = []
    values = TunedAttention.values

    def spy(self: TunedAttention, *arguments: Any) -> Mapping[str, Any]:
        asked.append(values(self, *arguments))
        return asked[-1]

    monkeypatch.setattr(TunedAttention, "values", spy)
    case = cases_of("attention_block")[0]

    def run() -> np.ndarray:
        arguments = (to_device(backend, argument) for argument in case.arguments())
        result: np.ndarray = backend.call("attention_block", *arguments)
        return result

    before = run()
    assert asked == [{"tile_queries": 0, "head_parts": 0}]
    x, block, keys, streams, rows, _ = (to_device(backend, a) for a in case.arguments())
    shape_of = get_op("attention").shape
    assert shape_of is not None
    queries = np.zeros((len(x), block.heads, block.head_size), np.float32)
    attention = (queries, keys, streams, rows, block.scale, block.window, block.soft_cap)
    shape = shape_of(*attention)
    kernel = backend.default_choice("attention", *attention).kernel
    backend.apply_tuning("attention", shape, Choice(kernel, (("head_parts", 1),)))
    assert run().tobytes() == before.tobytes()
    assert asked[-1] == {"tile_queries": 0, "head_parts": 1}
    backend.apply_tuning("attention", shape, None)
    run()
    assert asked[-1] == {"tile_queries": 0, "head_parts": 0}
