"""The kernels of attention compile for chips that this machine lacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from firstlight.backends.torch.transfer import Transfer  # noqa: E402
from firstlight.backends.torch.triton import attention_launch, launching  # noqa: E402
from firstlight.backends.torch.triton.attention import attention_kernels  # noqa: E402
from firstlight.ops.paging import PagedRows  # noqa: E402
from tests.support.triton_compiling import kept_launches  # noqa: E402

if launching.interpreted():
    pytest.skip("Triton interprets its kernels", allow_module_level=True)

_TARGETS = {"warps of 32": ("cuda", 90, 32), "warps of 64": ("hip", "gfx942", 64)}
_CODE = {"cuda": "ptx", "hip": "amdgcn"}
_SHARED = {"cuda": 227 << 10, "hip": 64 << 10}
"""Bytes that the threads of a program can share on those chips."""

_CALLS = {
    "window and soft cap": ("attention", "paged_bfloat16", (2, 80), torch.bfloat16),
    "latents": ("latent_attention", "paged_bfloat16", (576,), torch.bfloat16),
    "sinks": ("attention_with_sinks", "paged", (2, 64), torch.bfloat16),
    "float32": ("attention", "paged", (2, 64), torch.float32),
}
_QUICK = ("window and soft cap",)


@pytest.mark.parametrize("target", _TARGETS.values(), ids=_TARGETS)
@pytest.mark.parametrize(
    "call",
    [pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow) for name in _CALLS],
)
def test_it_compiles(call: str, target: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_launch, "shared_memory", lambda _: _SHARED[target[0]])
    op, name, entry, dtype = _CALLS[call]
    kernels = attention_kernels(Transfer(torch.device("cpu")), exact=False)
    (kernel,) = [each for each in kernels if (each.op, each.name) == (op, name)]
    # A sequence that decodes, and one that has just begun.
    starts, positions = np.array([0, 1, 20], np.int32), np.array([4000, *range(19)], np.int32)
    rows = PagedRows(starts, positions, np.arange(126, dtype=np.int32).reshape(2, 63), 64)
    queries, keys = torch.zeros(20, 8, entry[-1]), torch.zeros(126, 64, *entry, dtype=dtype)
    arguments = {
        "attention": (queries, keys, keys, rows, 0.1, 512, 50.0),
        "attention_with_sinks": (queries, keys, keys, rows, 0.1, None, torch.zeros(8)),
        "latent_attention": (queries, keys, 512, rows, 0.1),
    }
    with kept_launches(attention_launch, "attend", "combine") as (attend, combine):
        kernel.run(*arguments[op])
    assert len(combine.compile(*target)) == 1
    made = attend.compile(*target)
    assert len(made) == 2
    for each in made:
        assert each.metadata.shared <= _SHARED[target[0]]
        code = each.asm[_CODE[target[0]]]
        if dtype == torch.bfloat16:
            assert any(unit in code for unit in ("mma", "mfma"))
            assert "bf16" in code
