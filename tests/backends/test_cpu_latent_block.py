"""What the cpu backend's latent attention block takes, and what it leaves to its parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from firstlight.verify.cases import Case, cases_of
from firstlight.verify.conformance import to_device

backend_module = pytest.importorskip("firstlight.backends.cpu.backend")

CASES = {case.name: case for case in cases_of("latent_attention_block")}


@pytest.fixture(scope="module")
def backend() -> Any:
    return backend_module.CpuBackend(threads=1)


def _arguments(backend: Any, case: Case) -> list[Any]:
    """x, block, entries, rows, cosine_sine."""
    return [to_device(backend, argument) for argument in case.arguments()]


def _kernel(backend: Any) -> Any:
    (found,) = (kernel for kernel in backend.kernels() if kernel.op == "latent_attention_block")
    return found


@pytest.mark.parametrize("name", ["mixed", "bf16", "q4_0, separate"])
def test_it_serves(backend: Any, name: str) -> None:
    assert _kernel(backend).accepts(*_arguments(backend, CASES[name]))


@pytest.mark.parametrize("change", [{"expanded": True}, {"residual_scale": None}])
def test_other_forms_are_left_to_the_parts(backend: Any, change: dict[str, Any]) -> None:
    x, block, *others = _arguments(backend, CASES["mixed"])
    assert not _kernel(backend).accepts(x, replace(block, **change), *others)


def test_packed_heads_that_are_no_panels_are_left_to_the_parts(backend: Any) -> None:
    assert not _kernel(backend).accepts(*_arguments(backend, CASES["q8_0"]))


@pytest.mark.parametrize(
    "place, wrong, message",
    [
        (0, lambda x: x[:, :-1].copy(), "x must be"),
        (0, lambda x: x[:-1].copy(), "row for each position"),
        (2, lambda entries: entries[:, :, :-1].copy(), "entries must be"),
        (2, lambda entries: entries[:, :-1].copy(), "entries must be"),
        (4, lambda table: table[:-1].copy(), "cosine_sine must be"),
        (4, lambda table: np.repeat(table, 2, axis=2), "cosine_sine must be"),
    ],
)
def test_arguments_that_do_not_fit(backend: Any, place: int, wrong: Any, message: str) -> None:
    arguments = _arguments(backend, CASES["mixed"])
    arguments[place] = wrong(arguments[place])
    with pytest.raises(ValueError, match=message):
        _kernel(backend).run(*arguments)


def test_pages_that_are_not_there(backend: Any) -> None:
    arguments = _arguments(backend, CASES["mixed"])
    arguments[2] = arguments[2][:3].copy()
    with pytest.raises(IndexError):
        _kernel(backend).run(*arguments)


@pytest.mark.parametrize(
    "change",
    [
        {"latent_size": 39},
        {"plain_size": 11},
        {"rope_size": 5},
        {"value_size": 13},
        {"query_down": None, "query_down_norm": None},
        {"latent_norm": "pre_norm"},
        {"query_down_norm": "pre_norm"},
        {"output": "query"},
    ],
)
def test_parts_that_do_not_fit_together(backend: Any, change: dict[str, Any]) -> None:
    _, block, *_ = _arguments(backend, CASES["mixed"])
    changed = {
        name: getattr(block, to) if isinstance(to, str) else to for name, to in change.items()
    }
    with pytest.raises(ValueError):
        _kernel(backend).accepts(*_with_block(backend, replace(block, **changed)))


def _with_block(backend: Any, block: Any) -> list[Any]:
    arguments = _arguments(backend, CASES["mixed"])
    arguments[1] = block
    return arguments
