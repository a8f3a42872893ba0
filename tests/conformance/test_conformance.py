"""The conformance check catches kernels that are wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from firstlight.backends.base import Backend, Kernel
from firstlight.backends.numpy.backend import NumpyBackend
from firstlight.formats.base import Format
from firstlight.ops.contract import get_op
from firstlight.ops.rounding import Rounding, no_rounding
from firstlight.verify.conformance import check_kernels


def _backend_with(op: str, run: Callable[..., Any], **kernel: Any) -> Backend:
    return Backend((Kernel(op, "tried", run, **kernel),))


@pytest.mark.parametrize(
    "op",
    [
        *("add", "linear", "attention", "stream_write", "rms_norm", "layer_norm", "take_rows"),
        *("rotary", "select_entries", "selected_latent_attention"),
    ],
)
def test_a_definition_agrees_with_itself(op: str) -> None:
    reports = check_kernels(_backend_with(op, get_op(op).definition), quick=op == "linear")
    assert len(reports) > 3
    assert all(report.passed and report.error == 0 for report in reports)


def _off_by_a_little(x: Any, y: Any, scale: float = 1.0) -> Any:
    return x + np.float32(scale) * y + np.float32(1e-5)


def _wrong_past_a_tile(x: Any, y: Any, scale: float = 1.0) -> Any:
    out = x + np.float32(scale) * y
    out[..., 1024:] = x[..., 1024:]
    return out


def _of_another_shape(x: Any, y: Any, scale: float = 1.0) -> Any:
    return (x + np.float32(scale) * y).reshape(-1)


def _of_another_dtype(x: Any, y: Any, scale: float = 1.0) -> Any:
    return x.astype(np.float64) + scale * y


def _in_place(x: Any, y: Any, scale: float = 1.0) -> Any:
    x += np.float32(scale) * y
    return x


def _hides_what_is_not_a_number(x: Any, y: Any, scale: float = 1.0) -> Any:
    return np.nan_to_num(x + np.float32(scale) * y)


def _raises(x: Any, y: Any, scale: float = 1.0) -> Any:
    raise RuntimeError("the driver gave up")


def _returns_nothing(x: Any, y: Any, scale: float = 1.0) -> Any:
    return None


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (_off_by_a_little, "off by"),
        (_wrong_past_a_tile, "off by"),
        (_of_another_shape, "has shape"),
        (_of_another_dtype, "has dtype"),
        (_in_place, "argument 1 was changed"),
        (_hides_what_is_not_a_number, "off by inf"),
        (_raises, "the driver gave up"),
        (_returns_nothing, "not a tensor"),
    ],
)
def test_a_wrong_kernel_is_caught(run: Callable[..., Any], says: str) -> None:
    reports = check_kernels(_backend_with("add", run))
    failed = [report for report in reports if not report.passed]
    assert failed
    assert any(says in str(report) for report in failed)


def test_a_write_to_the_wrong_place_is_caught() -> None:
    def shifted(pages: Any, values: Any, rows: Any) -> None:
        get_op("stream_write").definition(pages, values, rows)
        if len(rows.positions):
            page = rows.positions[0] // rows.page_tokens
            pages[rows.page_table[0, page]] = np.roll(pages[rows.page_table[0, page]], 1, axis=0)

    assert not all(
        report.passed for report in check_kernels(_backend_with("stream_write", shifted))
    )


def test_ignoring_the_window_is_caught() -> None:
    definition = get_op("attention").definition

    def everything(queries: Any, keys: Any, values: Any, rows: Any, scale: float, *_: Any) -> Any:
        return definition(queries, keys, values, rows, scale, None, None)

    failed = {r.case for r in check_kernels(_backend_with("attention", everything)) if not r.passed}
    assert {"window, float32", "soft cap, bfloat16"} <= failed
    assert "prefill, float32" not in failed


def test_a_kernel_that_accepts_nothing_has_not_passed() -> None:
    backend = _backend_with("add", get_op("add").definition, accepts=lambda *_: False)
    (report,) = check_kernels(backend)
    assert not report.passed
    assert "accepts none" in str(report)


def test_only_the_ops_asked_for_are_run() -> None:
    backend = Backend(
        tuple(Kernel(op, "tried", get_op(op).definition) for op in ("add", "scale", "soft_cap"))
    )
    assert {report.op for report in check_kernels(backend, ops=frozenset({"scale"}))} == {"scale"}


def _fused_feed_forward(x: Any, block: Any) -> Any:
    return get_op("feed_forward_block").definition(NumpyBackend(), x, block)


def test_a_composite_is_checked_with_its_parts_moved_to_the_backend() -> None:
    reports = check_kernels(_backend_with("feed_forward_block", _fused_feed_forward))
    assert all(report.passed and report.error == 0 for report in reports)
    assert len(reports) > 10


def test_a_composite_that_forgets_a_part_is_caught() -> None:
    def without_norm(x: Any, block: Any) -> Any:
        return _fused_feed_forward(x, dataclasses.replace(block, post_norm=None))

    failed = {
        r.case
        for r in check_kernels(_backend_with("feed_forward_block", without_norm))
        if not r.passed
    }
    assert {"norms of heads and of the result", "soft cap"} <= failed
    assert "plain" not in failed


@pytest.mark.parametrize("place", [2, 3])
def test_a_block_that_does_not_write_a_stream_is_caught(place: int) -> None:
    def forgets(*arguments: Any) -> Any:
        before = arguments[place].copy()
        result = get_op("attention_block").definition(NumpyBackend(), *arguments)
        arguments[place][...] = before
        return result

    reports = check_kernels(_backend_with("attention_block", forgets))
    failed = {report.case for report in reports if not report.passed}
    assert {report.case for report in reports} - failed == {"no rows"}


def test_rounding_to_bfloat16_may_tip_a_step_and_nothing_else_may() -> None:
    """Where activations become bfloat16, a block may be off by a step of one; else not nearly."""

    def a_little_off(x: Any, head: Any, wanted: Any) -> Any:
        oracle = NumpyBackend(_to_bfloat16 if rounding else no_rounding)
        out = get_op("logits").definition(oracle, x, head, wanted)
        return out + np.float32(1e-3) * np.abs(out).max(initial=0)

    for rounding in (True, False):
        kernel = {"rounding": _to_bfloat16} if rounding else {}
        reports = check_kernels(_backend_with("logits", a_little_off, **kernel))
        passed = {report.case for report in reports if report.passed}
        assert ("bf16" in passed) == rounding
        assert "plain" not in passed
        assert "no rows" in passed


def _to_bfloat16(format: Format) -> Rounding:
    return "bfloat16" if format.name == "bf16" else "none"
