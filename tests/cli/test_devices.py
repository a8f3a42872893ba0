"""`firstlight devices`: measured once, then remembered."""

from __future__ import annotations

import json

import pytest

from firstlight.backends import available_devices, open_device
from firstlight.backends.base import Backend


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Nothing measured before, nothing left behind."""
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FIRSTLIGHT_SKIP_KERNEL_CHECK", "1")
    return tmp_path / "cache"


def test_measured_once_and_then_remembered(commands, monkeypatch, cache):
    first = json.loads(commands("devices", "--json").out)["devices"]
    assert [device["device"] for device in first] == list(available_devices())
    for device in first:
        assert 1e8 < device["bandwidth_bytes_per_second"] < 1e14
        assert 1e8 < device["matrix_operations_per_second"]["f32"] < 1e16
        assert 0 < device["available_memory"] <= device["memory"]
        assert device["cores"] >= 1
        assert device["how"]
        assert {"linear", "attention", "embed"} <= device["kernels"].keys()
    assert any(cache.rglob("*.json"))

    def never(self: Backend) -> None:
        raise AssertionError("measured again")

    for name in available_devices():
        monkeypatch.setattr(type(open_device(name)), "measure_ceilings", never)
    second = json.loads(commands("devices", "--json").out)["devices"]
    assert [device["measured_at"] for device in second] == [d["measured_at"] for d in first]
    with pytest.raises(AssertionError, match="measured again"):
        commands("devices", "--refresh")


@pytest.fixture
def measured(monkeypatch):
    """Figures that take no time to get."""
    from firstlight.host.ceilings import Ceilings

    figures = Ceilings(
        "chip", 12.5e9, {"f32": 80e9, "f64": 40e9}, "2026-01-01T00:00:00Z", "by test"
    )
    monkeypatch.setattr(Backend, "ceilings", lambda self, refresh=False: figures)
    return figures


def test_as_text(commands, measured):
    done = commands("devices")
    assert done.code == 0
    for name in available_devices():
        assert f"{name:<12}" in done.out
    for words in ("12.5 GB/s", "f32 80 GFLOP/s", "2026-01-01T00:00:00Z: by test", "available"):
        assert words in done.out


def test_kernels_that_disagree_are_named_and_fail(commands, measured, monkeypatch):
    from firstlight.verify import conformance
    from firstlight.verify.conformance import KernelReport

    reports = [
        KernelReport("linear", "one", "odd", True, 0.0, 0.1),
        KernelReport("linear", "other", "empty", False, 0.5, 0.1),
    ]
    monkeypatch.setattr(conformance, "check_kernels", lambda backend: reports)
    done = commands("devices", "--check")
    assert done.code == 1
    assert "2 cases" in done.out
    assert "linear/other on 'empty': off by 0.5, allowed 0.1" in done.out
    assert "linear/one" not in done.out
    found = json.loads(commands("devices", "--check", "--json").out)["devices"][0]
    assert found["checked"] == 2
    assert len(found["disagreeing"]) == 1
