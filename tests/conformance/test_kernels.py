"""Every kernel of every backend that opens here agrees with the definition of its op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from firstlight.backends import available_devices, backend_names, open_device
from firstlight.backends.base import Backend
from firstlight.errors import DeviceError
from firstlight.ops.contract import all_ops, get_op
from firstlight.verify.cases import cases_of
from firstlight.verify.conformance import check_kernels


@dataclass(frozen=True)
class _Subject:
    """One backend as it can be opened here, and one op that it has kernels for."""

    label: str
    op: str
    open: Callable[[], Backend]


def _openers() -> dict[str, Callable[[], Backend]]:
    """Every backend that opens here; the cpu backend at every level of this machine."""
    openers: dict[str, Callable[[], Backend]] = {}
    # Of those that reach several devices, every device.
    for name in dict.fromkeys((*backend_names(), *available_devices())):
        try:
            backend = open_device(name, check_kernels=False)
        except DeviceError:
            continue
        if name != "cpu":
            openers[name] = lambda name=name: open_device(name, check_kernels=False)
        elif backend.name == "cpu":
            from firstlight.backends.cpu.backend import CpuBackend, available_levels

            for level in available_levels():
                openers[f"cpu {level}"] = lambda level=level: CpuBackend(level=level)
            # Without packed weights, so that each format's decoding in place is checked too.
            openers["cpu exact"] = lambda: CpuBackend(exact=True)
    return openers


def _subjects() -> list[_Subject]:
    return [
        _Subject(label, op, opener)
        for label, opener in _openers().items()
        for op in dict.fromkeys(kernel.op for kernel in opener().kernels())
    ]


@pytest.mark.parametrize("subject", _subjects(), ids=lambda s: f"{s.label}-{s.op}")
def test_kernels_agree_with_the_definition(subject: _Subject) -> None:
    reports = check_kernels(subject.open(), ops=frozenset({subject.op}))
    assert reports
    failed = [str(report) for report in reports if not report.passed]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("op", [op.name for op in all_ops()])
def test_every_op_has_cases(op: str) -> None:
    cases = cases_of(op)
    assert any(case.quick for case in cases)
    names = [case.name for case in cases]
    assert len(names) == len(set(names))
    assert all(case.op == op for case in cases)


@pytest.mark.parametrize("op", [op.name for op in all_ops()])
def test_every_op_has_a_case_without_rows(op: str) -> None:
    """The first argument with rows is x, queries, a table's token ids, a stream's values, or says
    which rows there are."""
    place = 1 if op in ("embed", "pool_runs", "stream_write", "take_rows") else 0
    found = [case.arguments()[place] for case in cases_of(op)]
    assert any(len(getattr(each, "positions", each)) == 0 for each in found)


def test_cases_are_the_same_every_time() -> None:
    import numpy as np

    first, second = (cases_of("linear")[1].arguments() for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1].data, second[1].data)
    assert get_op("linear").definition(*first).std() > 0
