"""Kernels in Triton over entries give the same where positions are on the device alone."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from firstlight.backends.torch.backend import TorchBackend
from firstlight.backends.torch.triton import launching
from tests.support.deferred_rows import served_and_refused

if not launching.interpreted():
    pytest.skip("Triton would compile its kernels", allow_module_level=True)


def test_rows_that_are_not_known_yet() -> None:
    ops = {"select_entries", "selected_latent_attention", "compressed_attention"}
    served, refused = served_and_refused(TorchBackend("cpu"), ops)
    assert {f"{op}/paged" for op in ops} <= served
    assert not refused
