"""Rows of steps that are being recorded, and which kernels can do with them."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np
import torch

from firstlight.backends.torch.deferred import Deferred
from firstlight.ops.contract import get_op
from firstlight.ops.paging import PagedRows
from firstlight.verify.cases import cases_of
from firstlight.verify.conformance import to_device


def deferred(rows: PagedRows, width: int) -> PagedRows:
    """The same rows with what they are not known yet, and `width` more pages in the table."""
    table = np.pad(rows.page_table, ((0, 0), (0, width)), constant_values=-1)
    positions, table = (
        Deferred(torch.from_numpy(array.copy()), array.dtype) for array in (rows.positions, table)
    )
    return PagedRows(rows.row_starts, positions, table, rows.page_tokens)  # type: ignore[arg-type]


def served_and_refused(
    backend: Any, ops: Container[str] | None = None
) -> tuple[set[str], set[str]]:
    """Kernels ("op/kernel") that have computed a case of the conformance check with one row a
    sequence though its rows were deferred, each checked to give the same; and those that would not.

    Args:
        ops: None: all of them.
    """
    served, refused = set(), set()
    for kernel in backend.kernels():
        if ops is not None and kernel.op not in ops:
            continue
        for case in cases_of(kernel.op):
            groups = [each for each in case.arguments() if isinstance(each, PagedRows)]
            if not groups or not all(_decodes(rows) for rows in groups):
                continue
            given = [to_device(backend, each) for each in case.arguments()]
            if not kernel.takes(*given):
                continue
            expected = kernel.run(*given)
            again = [to_device(backend, each) for each in case.arguments()]
            again = [deferred(each, 2) if isinstance(each, PagedRows) else each for each in again]
            try:
                with backend._transfer.deferring(backend._transfer.upload):
                    found = kernel.run(*again)
            except Exception:
                refused.add(f"{kernel.op}/{kernel.name}")
                continue
            served.add(f"{kernel.op}/{kernel.name}")
            if kernel.op == "pool_runs":
                # Runs that are not complete are made as well.
                found = found[groups[0].completing(given[2])]
            for wanted, got in ((expected, found), *zip(given, again, strict=True)):
                if isinstance(wanted, torch.Tensor):
                    _check(kernel.op, wanted, got)
    return served, refused


def _check(op: str, wanted: torch.Tensor, got: torch.Tensor) -> None:
    tolerance, right = get_op(op).tolerance, wanted.float().numpy()
    scale = np.abs(right[np.isfinite(right)]).max(initial=0.0)
    allowed = tolerance.absolute + tolerance.relative * scale
    np.testing.assert_allclose(got.float().numpy(), right, rtol=0, atol=allowed)


def _decodes(rows: PagedRows) -> bool:
    return len(rows.positions) > 0 and np.array_equal(
        rows.row_starts, np.arange(len(rows.row_starts))
    )
