"""Groups of ranks over PyTorch's tensors, where one process can tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import distributed  # noqa: E402

from firstlight.backends import open_device, rank_devices  # noqa: E402
from firstlight.errors import DeviceError  # noqa: E402
from firstlight.ops import RanksError  # noqa: E402


@pytest.mark.parametrize("known", [True, False])
def test_a_group_of_one_is_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """`known`: whether PyTorch has a library for the device, or sums go through the host."""
    ask, asked = distributed.get_default_backend_for_device, []

    def answer(device: object) -> str:
        asked.append(device)
        if known or len(asked) > 1:
            return ask(device)
        raise ValueError("no such device")

    monkeypatch.setattr(distributed, "get_default_backend_for_device", answer)
    backend = open_device("torch:cpu", check_kernels=False)
    threads = torch.get_num_threads()
    group = backend.join_ranks(0, 1, tmp_path, 30.0)
    try:
        values = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
        assert np.array_equal(backend.download(group.sum(backend.upload(values.copy()))), values)
        joined = group.join_columns(backend.upload(values), [5])
        assert np.array_equal(backend.download(joined), values)
        with pytest.raises(DeviceError, match="has a group"):
            backend.join_ranks(0, 1, tmp_path / "other", 30.0)
    finally:
        group.leave()
    assert len(asked) == (1 if known else 2)
    with pytest.raises((RanksError, ValueError)):
        group.sum(backend.upload(values))
    group.leave()
    assert torch.get_num_threads() == threads
    assert not distributed.is_initialized()


def test_ranks_that_do_not_come_are_not_waited_for_forever(tmp_path: Path) -> None:
    backend = open_device("torch:cpu", check_kernels=False)
    with pytest.raises(RanksError):
        backend.join_ranks(0, 2, tmp_path, 0.5)
    assert not distributed.is_initialized()


def test_only_some_backends_have_ranks(tmp_path: Path) -> None:
    assert rank_devices("torch:cpu:0-1") == ("torch:cpu", "torch:cpu")
    assert rank_devices("torch:cpu:0-0") == ("torch:cpu",)
    assert rank_devices("numpy") == ("numpy",)
    with pytest.raises(DeviceError, match="it computes by itself"):
        open_device("numpy").join_ranks(0, 2, tmp_path, 1.0)
