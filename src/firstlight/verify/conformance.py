"""Whether kernels agree with the definitions: every kernel of a backend, run by itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.backends.base import Backend, Kernel
from firstlight.backends.numpy.backend import NumpyBackend
from firstlight.formats.base import Weight
from firstlight.formats.registry import get_format
from firstlight.ops.attention import read_entries
from firstlight.ops.attention_block import AttentionBlock
from firstlight.ops.contract import Op, Tolerance, get_op
from firstlight.ops.experts_block import Expert, ExpertsBlock
from firstlight.ops.feed_forward_block import FeedForwardBlock
from firstlight.ops.head import Head
from firstlight.ops.head_linear import HeadProduct
from firstlight.ops.latent_attention_block import LatentAttentionBlock
from firstlight.ops.parts import LayerNorm, Norm, Product
from firstlight.ops.rounding import RoundingOf
from firstlight.ops.sparse_latent_attention_block import Indexer, SparseLatentAttentionBlock
from firstlight.verify.cases import Case, StreamArgument, cases_of

_BFLOAT16 = get_format("bf16")

# Arguments that hold tensors and packed weights of their own.
BLOCK_PARTS = (
    AttentionBlock,
    Expert,
    ExpertsBlock,
    FeedForwardBlock,
    Head,
    HeadProduct,
    Indexer,
    LatentAttentionBlock,
    LayerNorm,
    Norm,
    Product,
    SparseLatentAttentionBlock,
)


@dataclass(frozen=True)
class KernelReport:
    """What came of one case on one kernel.

    Attributes:
        op: the op's name.
        kernel: the kernel's name.
        case: the case's name; empty where no case could be run.
        passed: whether the result is within the op's tolerance.
        error: largest absolute difference from the definition; infinite where the results cannot
            be compared.
        allowed: the largest that the tolerance permits for this case.
        note: why the results could not be compared, else empty.
    """

    op: str
    kernel: str
    case: str
    passed: bool
    error: float
    allowed: float
    note: str = ""

    def __str__(self) -> str:
        where = f"{self.op}/{self.kernel}{f' on {self.case!r}' if self.case else ''}"
        if self.note:
            return f"{where}: {self.note}"
        return f"{where}: off by {self.error:.3g}, allowed {self.allowed:.3g}"


def check_kernels(
    backend: Backend, *, quick: bool = False, ops: frozenset[str] | None = None
) -> list[KernelReport]:
    """Run every kernel of a backend on every case that it accepts.

    A kernel that accepts no case at all has shown nothing and is reported as failed.

    Args:
        backend: whose `kernels()` are run, each directly and not through dispatch.
        quick: only the short selection of cases, which takes well under two seconds.
        ops: only kernels of these ops; None: of all.
    """
    reports: list[KernelReport] = []
    by_op: dict[str, list[Kernel]] = {}
    for kernel in backend.kernels():
        if ops is None or kernel.op in ops:
            by_op.setdefault(kernel.op, []).append(kernel)
    for name, kernels in by_op.items():
        reports += _check_op(backend, name, kernels, quick)
    return reports


def check_kernel(backend: Backend, kernel: Kernel) -> list[KernelReport]:
    """The same for one kernel, which need not be the backend's own, on the short selection."""
    return _check_op(backend, kernel.op, [kernel], quick=True)


def _check_op(
    backend: Backend, name: str, kernels: list[Kernel], quick: bool
) -> list[KernelReport]:
    reports: list[KernelReport] = []
    found: dict[str, int] = dict.fromkeys((kernel.name for kernel in kernels), 0)
    for case in cases_of(name):
        if quick and not case.quick:
            continue
        for report in _check_case(backend, kernels, case):
            found[report.kernel] += 1
            reports.append(report)
    reports += [
        KernelReport(name, kernel, "", False, math.inf, 0.0, "it accepts none of the cases")
        for kernel, count in found.items()
        if not count
    ]
    return reports


def _check_case(backend: Backend, kernels: list[Kernel], case: Case) -> Iterator[KernelReport]:
    """A report of each kernel that accepts the case. The definition runs once for a rounding."""
    expected: dict[RoundingOf, tuple[Any, ...]] = {}
    for kernel in kernels:
        # Drawn anew for each kernel, so that none sees what another wrote.
        given = [to_device(backend, argument) for argument in case.arguments()]
        if kernel.accepts is not None and not kernel.accepts(*given):
            continue
        if kernel.rounding not in expected:
            expected[kernel.rounding] = _define(NumpyBackend(kernel.rounding), case)
        yield _run(backend, kernel, case, given, expected[kernel.rounding])


def _define(oracle: NumpyBackend, case: Case) -> tuple[Any, ...]:
    """(result, *arguments afterwards) by the definition."""
    given = [a.pages if isinstance(a, StreamArgument) else a for a in case.arguments()]
    with np.errstate(all="ignore"):
        return (oracle.call(case.op, *given), *given)


def _run(
    backend: Backend, kernel: Kernel, case: Case, given: list[Any], expected: tuple[Any, ...]
) -> KernelReport:
    op = get_op(case.op)

    def report(error: float, allowed: float, note: str = "") -> KernelReport:
        passed = not note and error <= allowed
        return KernelReport(op.name, kernel.name, case.name, passed, error, allowed, note)

    try:
        with np.errstate(all="ignore"):
            result = kernel.run(*given)
        found = [_to_host(backend, value) for value in (result, *given)]
    except Exception as raised:
        # Whatever a kernel or its driver raises is a finding about the kernel.
        return report(math.inf, 0.0, f"raised {type(raised).__name__}: {raised}")
    worst, allowed = 0.0, 0.0
    tips = _tips(op, kernel.rounding, case.arguments())
    for place, (got, wanted) in enumerate(zip(found, expected, strict=True)):
        if not isinstance(wanted, np.ndarray):
            if place == 0 and got is not None:
                return report(math.inf, 0.0, "returned a value where the op returns none")
            continue
        note = _incomparable(got, wanted)
        if note:
            return report(math.inf, 0.0, f"{_place_name(op, place)} {note}")
        error, limit = _difference(got, wanted, _tolerance_at(op, place, tips))
        if not error <= limit:
            note = "" if place in _outputs(op) else f"{_place_name(op, place)} was changed"
            return report(error, limit, note)
        if place in _outputs(op):
            worst, allowed = error, limit
    return report(worst, allowed)


def _outputs(op: Op) -> tuple[int, ...]:
    """Places in (result, *arguments) that the op may give new content."""
    return (0, *(place + 1 for place in op.writes))


def _tolerance_at(op: Op, place: int, tips: bool) -> Tolerance:
    if place not in _outputs(op):
        return Tolerance(0.0, 0.0, "an input")
    tolerance = op.tolerance
    if not tips:
        return tolerance
    return dataclasses.replace(tolerance, relative=tolerance.relative + tolerance.tipped)


def _tips(op: Op, rounding: RoundingOf, arguments: tuple[Any, ...]) -> bool:
    """Whether values that the op makes on its way are rounded."""
    streams = [
        argument.dtype_name == "bfloat16" and (place in op.writes or rounding(_BFLOAT16) != "none")
        for place, argument in enumerate(arguments)
        if isinstance(argument, StreamArgument)
    ]
    return any(streams) or any(_rounds_inputs(argument, rounding) for argument in arguments)


def _rounds_inputs(argument: Any, rounding: RoundingOf) -> bool:
    """Whether an argument has weights whose inputs are rounded."""
    if isinstance(argument, Weight):
        return rounding(argument.format) != "none"
    if isinstance(argument, tuple):
        return any(_rounds_inputs(part, rounding) for part in argument)
    if isinstance(argument, BLOCK_PARTS):
        parts = (getattr(argument, each.name) for each in dataclasses.fields(argument))
        return any(_rounds_inputs(part, rounding) for part in parts)
    return False


def _place_name(op: Op, place: int) -> str:
    return "the result" if place in _outputs(op) else f"argument {place}"


def _incomparable(got: Any, wanted: NDArray[Any]) -> str:
    """What makes a comparison value by value impossible, or empty."""
    if not isinstance(got, np.ndarray):
        return f"is a {type(got).__name__}, not a tensor"
    if got.shape != wanted.shape:
        return f"has shape {list(got.shape)}, not {list(wanted.shape)}"
    if got.dtype != wanted.dtype:
        return f"has dtype {got.dtype}, not {wanted.dtype}"
    return ""


def _difference(
    got: NDArray[Any], wanted: NDArray[Any], tolerance: Tolerance
) -> tuple[float, float]:
    """(largest absolute difference, largest allowed); values that are not finite must be alike."""
    if wanted.dtype == np.uint16:
        got, wanted = read_entries(got), read_entries(wanted)
    finite = np.isfinite(wanted)
    alike = np.array_equal(got[~finite], wanted[~finite], equal_nan=wanted.dtype.kind == "f")
    exact = wanted[finite].astype(np.float64)
    with np.errstate(all="ignore"):
        error = float(np.abs(got[finite].astype(np.float64) - exact).max(initial=0.0))
    allowed = tolerance.absolute + tolerance.relative * float(np.abs(exact).max(initial=0.0))
    return (error if alike and not math.isnan(error) else math.inf), allowed


def to_device(backend: Backend, argument: Any) -> Any:
    """A case's argument as the backend keeps it. Integers stay on the host, as ops take them."""
    if isinstance(argument, StreamArgument):
        pages, page_tokens, *entry = argument.pages.shape
        stream = backend.new_stream(pages, page_tokens, tuple(entry), argument.dtype_name)
        backend.assign(stream, argument.pages)
        return stream
    if isinstance(argument, Weight):
        return backend.pack(argument)
    if isinstance(argument, np.ndarray) and argument.dtype == np.float32:
        return backend.upload(argument)
    if isinstance(argument, tuple):
        return tuple(to_device(backend, part) for part in argument)
    if isinstance(argument, BLOCK_PARTS):
        parts = {each.name: getattr(argument, each.name) for each in dataclasses.fields(argument)}
        return type(argument)(**{name: to_device(backend, part) for name, part in parts.items()})
    return argument


def _to_host(backend: Backend, value: Any) -> Any:
    return backend.download(value) if backend.is_tensor(value) else value
