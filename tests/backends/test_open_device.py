"""The door to the backends: what opens, what stands in, which kernels are left out."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import firstlight.backends as backends
from firstlight.backends import DeviceWarning, backend_names, open_device
from firstlight.errors import DeviceError
from firstlight.verify.trust import SKIP_VARIABLE


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(SKIP_VARIABLE, raising=False)
    monkeypatch.setattr(backends, "_warned", set())
    yield


@pytest.fixture
def without_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package had been installed without a C++ compiler."""
    monkeypatch.setattr(backends, "find_spec", lambda _: None)
    monkeypatch.delitem(sys.modules, "firstlight.backends.cpu.backend", raising=False)
    monkeypatch.setitem(sys.modules, "firstlight.backends.cpu._native", None)
    import firstlight.backends.cpu

    monkeypatch.delattr(firstlight.backends.cpu, "_native", raising=False)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(DeviceError, match="Choose one of: numpy, cpu"):
        open_device("abacus")


def test_every_name_opens_or_says_why_not() -> None:
    for name in backend_names():
        try:
            backend = open_device(name)
            found = backend.call("scale", backend.upload(np.ones((1, 2), np.float32)), 3.0)
            assert backend.download(found)[0, 1] == 3.0
        except DeviceError as error:
            assert name in error.subject


@pytest.mark.usefixtures("without_extension")
def test_without_the_extension_numpy_stands_in_and_says_so_once() -> None:
    with pytest.warns(DeviceWarning, match="C\\+\\+20 compiler") as caught:
        first = open_device("cpu")
    assert first.name == "numpy"
    assert len(caught) == 1
    assert "installed without its C++ extension" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_device("cpu").name == "numpy"
    assert backends.available_devices() == ("numpy",)


@pytest.mark.usefixtures("without_extension")
def test_an_extension_that_does_not_load_is_told_from_a_missing_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: name)
    with pytest.warns(DeviceWarning, match="_native does not load"):
        assert open_device("cpu").name == "numpy"


def test_kernels_that_disagree_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("firstlight.backends.cpu.backend")
    from firstlight.backends.cpu.elementwise import ElementwiseKernels

    def wrong(self: Any, x: np.ndarray, cap: float) -> np.ndarray:
        return np.clip(x, -cap, cap)

    monkeypatch.setattr(ElementwiseKernels, "soft_cap", wrong)
    with pytest.warns(DeviceWarning, match="soft_cap/vector"):
        backend = open_device("cpu")
    assert isinstance(backend, module.CpuBackend)
    kernels = {(kernel.op, kernel.name) for kernel in backend.kernels()}
    assert ("soft_cap", "vector") not in kernels
    assert ("linear", "stored") in kernels
    x = np.full((1, 3), 40.0, np.float32)
    np.testing.assert_allclose(backend.soft_cap(x, 30.0), 30 * np.tanh(x / 30), rtol=1e-6)
    assert backend.usage()["soft_cap", "definition"][0] == 1
    trusting = open_device("cpu", check_kernels=False)
    assert ("soft_cap", "vector") in {(kernel.op, kernel.name) for kernel in trusting.kernels()}


def test_the_second_opening_runs_no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("firstlight.backends.cpu.backend")
    import firstlight.verify.conformance as conformance

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = open_device("cpu")

        def unexpected(*_: Any, **__: Any) -> Any:
            raise AssertionError("the check ran again")

        monkeypatch.setattr(conformance, "check_kernels", unexpected)
        second = open_device("cpu")
    assert len(first.kernels()) == len(second.kernels()) > 0
