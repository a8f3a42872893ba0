"""Which candidates may serve at all: a fast wrong answer is no answer.

A candidate must give, on the arguments at hand, the very bits that the default gives there: it is
chosen for some numbers of rows and not for others, and a token must not depend on its batch. Its
kernel with those parameters must also agree with the definition on those cases of the conformance
check that it takes; for the default the trust check has asked that already.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.backends.base import Backend
from firstlight.backends.kernel import Choice, Tuned
from firstlight.ops.contract import get_op
from firstlight.verify.conformance import check_kernel

Arguments = tuple[Any, ...]


class Agreement:
    """Asks whether candidates agree, and remembers what does not depend on the shape."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._conforms: dict[tuple[str, Choice], str] = {}

    def objection(
        self, op: str, default: Tuned, candidate: Tuned, samples: Iterable[Arguments]
    ) -> str:
        """Why a candidate must not serve, or ""."""
        for arguments in samples:
            why = self.differs(op, default, candidate, arguments)
            if why:
                return why
        return self.disagrees(op, candidate)

    def differs(self, op: str, default: Tuned, candidate: Tuned, arguments: Arguments) -> str:
        """How a candidate's result differs from the default's on these arguments, or ""."""
        wanted = self._bits(op, default, arguments)
        try:
            found = self._bits(op, candidate, arguments)
        except Exception as raised:
            # Whatever a kernel or its driver raises is a finding about the kernel.
            return f"raised {type(raised).__name__}: {raised}"
        if len(found) != len(wanted):
            return "returned a value where the default returns none, or the other way round"
        for got, expected in zip(found, wanted, strict=True):
            if got.shape != expected.shape or got.dtype != expected.dtype:
                return f"gives {got.dtype} {list(got.shape)}"
            if got.tobytes() != expected.tobytes():
                return "gives other bits than the default"
        return ""

    def disagrees(self, op: str, candidate: Tuned) -> str:
        """Where a candidate strays from the definition on the cases of the conformance check, or
        "". Cases that it does not take are left out: it may be meant for large sizes only."""
        if candidate.kernel is None:
            return ""
        key = op, candidate.choice
        if key not in self._conforms:
            # With the parameters bound, it is a kernel like any other.
            bound = replace(candidate.kernel, run=candidate.run, accepts=candidate.takes)
            reports = check_kernel(self._backend, bound)
            failed = [report for report in reports if report.case and not report.passed]
            self._conforms[key] = str(failed[0]) if failed else ""
        return self._conforms[key]

    def _bits(self, op: str, tuned: Tuned, arguments: Arguments) -> list[NDArray[Any]]:
        """Copies of the result and of what was written, with the arguments as they were."""
        backend, writes = self._backend, get_op(op).writes
        before = [np.array(backend.download(arguments[place])) for place in writes]
        result = tuned.run(*arguments)
        found = [] if result is None else [np.array(backend.download(result))]
        for place, array in zip(writes, before, strict=True):
            found.append(np.array(backend.download(arguments[place])))
            backend.assign(arguments[place], array)
        return found
