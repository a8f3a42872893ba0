"""The kernels of products, experts, norms and gates compile for chips that this machine lacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from firstlight.backends.torch.backend import TorchBackend  # noqa: E402
from firstlight.backends.torch.triton import (  # noqa: E402
    few_rows,
    gates,
    head_columns,
    launching,
    rows,
    tiles,
)
from firstlight.backends.torch.triton.coding import CODINGS  # noqa: E402
from firstlight.backends.torch.triton.grouping import grouped  # noqa: E402
from firstlight.backends.torch.triton.operands import experts_operand, operand_of  # noqa: E402
from firstlight.backends.torch.triton.request import Request  # noqa: E402
from firstlight.formats.base import BlockScales, Weight  # noqa: E402
from firstlight.formats.registry import get_format  # noqa: E402
from firstlight.ops.gating import ClampedSwish  # noqa: E402
from firstlight.ops.parts import Norm, Product  # noqa: E402
from tests.support.triton_compiling import Launches, kept_launches  # noqa: E402

if launching.interpreted():
    pytest.skip("Triton interprets its kernels", allow_module_level=True)

_TARGETS = {"warps of 32": ("cuda", 90, 32), "warps of 64": ("hip", "gfx942", 64)}
_CODE = {"cuda": "ptx", "hip": "amdgcn"}
_SHARED = {"cuda": 99 << 10, "hip": 64 << 10}
"""Bytes that the threads of a program can share on those chips of these makers that have least."""

_GATINGS = ("silu", "gelu", "gelu_tanh", "relu", ClampedSwish(7.0, 1.702, 1.0))

each_target = pytest.mark.parametrize("target", _TARGETS.values(), ids=_TARGETS)


@pytest.fixture(scope="module")
def backend() -> TorchBackend:
    return TorchBackend("cpu")


def _weight(backend: TorchBackend, format: str, scaled: bool = False) -> Any:
    """All zeros: nothing is computed."""
    found = get_format(format)
    data = np.zeros((256, found.row_bytes(512)), np.uint8)
    scales = BlockScales(np.ones((2, 4), np.float32), 128, 128) if scaled else None
    return backend.pack(Weight(found, (256, 512), data, scales=scales))


def _multiplied(launches: Launches, target: tuple[Any, ...]) -> None:
    """Every launch compiles to code that multiplies matrices of bfloat16 in units made for it."""
    for made in launches.compile(*target):
        code = made.asm[_CODE[target[0]]]
        assert "bf16" in code
        assert any(unit in code for unit in ("mma", "mfma"))
        assert made.metadata.shared <= _SHARED[target[0]]


_QUICK = ("q4_1",)
_FORMATS = [
    pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow) for name in CODINGS
]


@each_target
@pytest.mark.parametrize("format", _FORMATS)
def test_both_forms_compile_for_every_format(
    backend: TorchBackend, format: str, target: tuple[Any, ...]
) -> None:
    operand = operand_of(_weight(backend, format))
    assert operand is not None
    with kept_launches(few_rows, "_few_rows") as (few,):
        few_rows.few_rows(Request(torch.zeros(1, 512, dtype=torch.bfloat16), operand))
        few_rows.few_rows(Request(torch.zeros(3, 512), operand, rounds=True))
    with kept_launches(tiles, "_tiles", "_combine") as (many, _):
        for count in (7, 200):
            tiles.tiles(Request(torch.zeros(count, 512, dtype=torch.bfloat16), operand))
    assert len(few.compile(*target)) == len(many.found) == 2
    _multiplied(many, target)


@each_target
@pytest.mark.parametrize(
    ("format", "scaled"),
    [("f8_e4m3", True), pytest.param("bf16", False, marks=pytest.mark.slow)],
)
def test_experts_compile(
    backend: TorchBackend, format: str, scaled: bool, target: tuple[Any, ...]
) -> None:
    experts = [Product(_weight(backend, format, scaled), torch.zeros(256)) for _ in range(3)]
    operand = experts_operand(experts, torch.device("cpu"))
    assert operand is not None
    x = torch.zeros(6, 512, dtype=torch.bfloat16)
    chosen = torch.arange(12) % 3
    request = Request(
        x, operand, operand, _GATINGS[-1], chosen, 2, torch.zeros(12), narrow=True
    )  # fmt: skip
    with kept_launches(few_rows, "_few_rows") as (few,):
        few_rows.few_rows(request)
    with kept_launches(tiles, "_tiles") as (many,):
        tiles.tiles(request, grouped(chosen, 3, 16))
    assert len(few.compile(*target)) == 1
    _multiplied(many, target)


@each_target
@pytest.mark.parametrize("format", _FORMATS)
def test_products_down_the_columns_of_heads_compile(
    backend: TorchBackend, format: str, target: tuple[Any, ...]
) -> None:
    operand = operand_of(_weight(backend, format))
    assert operand is not None
    with kept_launches(head_columns, "_down_columns") as (kept,):
        for count in (1, 4, 9):
            head_columns.down_columns(torch.zeros(count, 2, 100), operand, 16, 100)
    for made in kept.compile(*target):
        assert made.metadata.shared <= _SHARED[target[0]]


@each_target
def test_split_columns_are_combined(backend: TorchBackend, target: tuple[Any, ...]) -> None:
    format = get_format("q8_0")
    data = np.zeros((64, format.row_bytes(2048)), np.uint8)
    operand = operand_of(backend.pack(Weight(format, (64, 2048), data)), torch.zeros(64))
    assert operand is not None
    x = torch.zeros(9, 2048, dtype=torch.bfloat16)
    with kept_launches(tiles, "_tiles", "_combine") as (_, combine):
        tiles.tiles(Request(x, operand, residual=torch.zeros(9, 64)))
    assert len(combine.compile(*target)) == 1


@each_target
def test_norms_and_gates_compile(target: tuple[Any, ...]) -> None:
    x = torch.zeros(3, 5120)
    norm = Norm(5120, 1e-6, torch.zeros(5120))
    with kept_launches(rows, "_normed", "_joined") as (normed, joined):
        rows.normed(x, norm, torch.bfloat16)
        rows.normed(x[:, :128], Norm(128, 1e-6))
        rows.joined(x, torch.zeros(6, 5120), 2, x, torch.zeros(3, 1), norm, 0.5)
        rows.joined(None, torch.zeros(6, 5120), 2, experts=torch.zeros(6, dtype=torch.int64))
        rows.joined(None, x)
    with kept_launches(gates, "_gates") as (made,):
        for gating in _GATINGS:
            if isinstance(gating, ClampedSwish):
                gates.clamped_gate(x, x, gating)
            else:
                gates.gate(x, x, gating)
    assert (len(normed.compile(*target)), len(joined.compile(*target))) == (2, 3)
    assert len(made.compile(*target)) == len(_GATINGS)
