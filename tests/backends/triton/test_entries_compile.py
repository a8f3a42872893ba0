"""The kernels over chosen and compressed entries compile for chips that this machine lacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from firstlight.backends.kernel import Kernel  # noqa: E402
from firstlight.backends.torch.transfer import Transfer  # noqa: E402
from firstlight.backends.torch.triton import index_scores, launching, listed_launch  # noqa: E402
from firstlight.backends.torch.triton.listed import listed_kernels  # noqa: E402
from firstlight.ops.paging import PagedRows  # noqa: E402
from tests.support.triton_compiling import kept_launches  # noqa: E402

if launching.interpreted():
    pytest.skip("Triton interprets its kernels", allow_module_level=True)

_TARGETS = {"warps of 32": ("cuda", 90, 32), "warps of 64": ("hip", "gfx942", 64)}
_CODE = {"cuda": "ptx", "hip": "amdgcn"}
_SHARED = {"cuda": 227 << 10, "hip": 64 << 10}
"""Bytes that the threads of a program can share on those chips."""

_HOST = Transfer(torch.device("cpu"))

# What is chosen and the size of values; but for the first as published. `--exact` keeps float32.
_CALLS = {
    "small": ("compressed_attention", "paged_bfloat16", torch.bfloat16, 64, 64),
    "compressed, chosen": ("compressed_attention", "paged_bfloat16", torch.bfloat16, 512, 512),
    "compressed, all runs": ("compressed_attention", "paged_bfloat16", torch.bfloat16, 0, 512),
    "compressed, exact": ("compressed_attention", "paged", torch.bfloat16, 512, 512),
    "compressed, float32": ("compressed_attention", "paged", torch.float32, 512, 512),
    "selected": ("selected_latent_attention", "paged_bfloat16", torch.bfloat16, 2048, 512),
    "selected, exact": ("selected_latent_attention", "paged", torch.bfloat16, 2048, 512),
}
_QUICK = ("small",)


def _rows(page_tokens: int) -> PagedRows:
    """A sequence that decodes, and one that has just begun."""
    starts, positions = np.array([0, 1, 20], np.int32), np.array([4000, *range(19)], np.int32)
    width = -(-4001 // page_tokens)
    table = np.arange(2 * width, dtype=np.int32).reshape(2, width)
    return PagedRows(starts, positions, table, page_tokens)


def _arguments(op: str, dtype: Any, top_k: int, size: int) -> tuple[Any, ...]:
    chosen = torch.zeros(20, top_k, dtype=torch.int32) if top_k else None
    if op == "selected_latent_attention":
        entries = torch.zeros(126, 64, size + 64, dtype=dtype)
        return torch.zeros(20, 128, size + 64), entries, size, _rows(64), chosen, 0.1
    rows, stride = _rows(128), 4 if top_k else 128
    keys = torch.zeros(64, 128, 1, size, dtype=dtype)
    entries = torch.zeros(64, 128 // stride, size, dtype=dtype)
    queries, sinks = torch.zeros(20, 64, size), torch.zeros(64)
    return queries, keys, rows, 128, entries, rows, stride, chosen, 0.1, sinks


@pytest.mark.parametrize("target", _TARGETS.values(), ids=_TARGETS)
@pytest.mark.parametrize(
    "call",
    [pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow) for name in _CALLS],
)
def test_attention_compiles(
    call: str, target: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listed_launch, "shared_memory", lambda _: _SHARED[target[0]])
    op, name, dtype, *sizes = _CALLS[call]
    kernel = _kernel(listed_kernels(_HOST, exact=False), op, name)
    with kept_launches(listed_launch, "attend_listed", "combine") as (attend, combine):
        kernel.run(*_arguments(op, dtype, *sizes))
    if len(attend.found) > 1:
        assert len(combine.compile(*target)) == len(combine.found)
    assert len(attend.found) == 2
    for each in attend.compile(*target):
        assert each.metadata.shared <= _SHARED[target[0]]
        code = each.asm[_CODE[target[0]]]
        if dtype == torch.bfloat16:
            assert any(unit in code for unit in ("mma", "mfma"))
            assert "bf16" in code


@pytest.mark.parametrize("target", _TARGETS.values(), ids=_TARGETS)
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float32, marks=pytest.mark.slow)]
)
def test_scores_compile(dtype: Any, target: tuple[Any, ...]) -> None:
    (kernel,) = index_scores.IndexScores(_HOST).all()
    keys = torch.zeros(126, 64, 128, dtype=dtype)
    with kept_launches(index_scores, "_score_entries") as (score,):
        kernel.run(torch.zeros(20, 64, 128), torch.zeros(20, 64), keys, _rows(64), 1, 2048)
    (made,) = score.compile(*target)
    assert made.metadata.shared <= _SHARED[target[0]]
    if dtype == torch.bfloat16:
        assert any(unit in made.asm[_CODE[target[0]]] for unit in ("mma", "mfma"))


def _kernel(kernels: tuple[Kernel, ...], op: str, name: str) -> Kernel:
    (found,) = [each for each in kernels if (each.op, each.name) == (op, name)]
    return found
