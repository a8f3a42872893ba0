"""Measured ceilings and how they are kept."""

from __future__ import annotations

import json
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from firstlight.host.ceilings import Ceilings, cached_ceilings, measure_ceilings
from firstlight.host.processor import processor

SOME = Ceilings(
    device="chip",
    bandwidth_bytes_per_second=1e10,
    matrix_operations_per_second={"f32": 1e11},
    measured_at="2026-01-01T00:00:00+00:00",
    how="guessed",
)


def test_numpy_measures_plausible_figures():
    measured = measure_ceilings(buffer_bytes=64 << 20, threads=2, seconds=0.6)
    # No absolute timings: only that units are right, from the slowest board to the largest server.
    assert 1e8 < measured.bandwidth_bytes_per_second < 1e14
    assert set(measured.matrix_operations_per_second) == {"f32", "f64"}
    assert all(1e7 < s < 1e16 for s in measured.matrix_operations_per_second.values())
    assert measured.device == processor().name
    assert datetime.fromisoformat(measured.measured_at).tzinfo is not None
    assert "64 MiB" in measured.how


def test_callables_of_a_backend():
    asked: list[tuple[str, object]] = []

    def bandwidth(size: int, threads: int) -> float:
        asked.append(("bandwidth", (size, threads)))
        return 123.0

    def bf16(seconds: float) -> float:
        asked.append(("bf16", seconds))
        return 7.0

    measured = measure_ceilings(
        "chip",
        bandwidth=bandwidth,
        matrix={"bf16": bf16, "f64": lambda seconds: 1e30, "f32": lambda seconds: 1e-30},
        buffer_bytes=1000,
        threads=3,
        seconds=0.12,
        how="native kernels",
    )
    assert measured.device == "chip"
    assert measured.bandwidth_bytes_per_second == 123.0
    speeds = measured.matrix_operations_per_second
    assert (speeds["bf16"], speeds["f64"]) == (7.0, 1e30)
    assert speeds["f32"] > 1.0, "the better of NumPy and the callable"
    assert measured.how.endswith("native kernels")
    assert asked == [("bandwidth", (1000, 3)), ("bf16", pytest.approx(0.02))]


def test_the_buffer_is_large_but_fits(monkeypatch):
    import firstlight.host.ceilings as module

    sizes: list[int] = []

    def bandwidth(size: int, threads: int) -> float:
        sizes.append(size)
        return 1.0

    monkeypatch.setattr(module, "available_memory", lambda: 1 << 40)
    measure_ceilings(bandwidth=bandwidth, seconds=0.01)
    monkeypatch.setattr(module, "available_memory", lambda: 64 << 20)
    measure_ceilings(bandwidth=bandwidth, seconds=0.01)
    assert sizes[0] >= max(512 << 20, 4 * processor().last_level_cache_bytes)
    assert sizes[1] == 32 << 20


def test_progress_is_reported():
    seen: list[tuple[int | None, int]] = []

    @contextmanager
    def recorder(description: str, total: int | None = None, *, unit: str = "bytes"):
        done: list[int] = []
        yield done.append
        seen.append((total, sum(done)))

    measure_ceilings(bandwidth=lambda size, threads: 1.0, seconds=0.01, progress=recorder)
    assert seen == [(3, 3)]


class Measured:
    """Counts how often it measures."""

    def __init__(self, ceilings: Ceilings = SOME) -> None:
        self.count = 0
        self.ceilings = ceilings

    def __call__(self) -> Ceilings:
        self.count += 1
        return self.ceilings


def test_measured_once(tmp_path):
    measure = Measured()
    for _ in range(3):
        assert cached_ceilings("chip", "1", measure, directory=tmp_path) == SOME
    assert measure.count == 1
    cached_ceilings("chip", "1", measure, directory=tmp_path, refresh=True)
    assert measure.count == 2
    cached_ceilings("chip", "2", measure, directory=tmp_path)
    cached_ceilings("another/../chip", "1", measure, directory=tmp_path)
    assert measure.count == 4
    assert all(path.parent == tmp_path for path in tmp_path.rglob("*"))


def test_usual_place(tmp_path, monkeypatch):
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path))
    cached_ceilings("chip", "1", Measured())
    (path,) = (tmp_path / "ceilings").iterdir()
    assert json.loads(path.read_bytes())["ceilings"]["device"] == "chip"


def edited(path: Path, **changes: object) -> bytes:
    content = json.loads(path.read_bytes())
    content["ceilings"].update(changes)
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: b"",
        lambda path: path.read_bytes()[:-20],
        lambda path: b"[]",
        lambda path: b'{"key": {}}',
        lambda path: b"\xff\xfe",
        lambda path: b"[" * 100_000,
        lambda path: path.read_bytes().replace(b'"version": "1"', b'"version": "0"'),
        lambda path: edited(path, bandwidth_bytes_per_second="fast"),
        lambda path: edited(path, bandwidth_bytes_per_second=0),
        lambda path: edited(path, bandwidth_bytes_per_second=float("nan")),
        lambda path: edited(path, matrix_operations_per_second={"f32": -1}),
        lambda path: edited(path, matrix_operations_per_second=[1]),
        lambda path: edited(path, matrix_operations_per_second=None),
    ],
)
def test_damaged_file_is_measured_again(tmp_path, damage):
    measure = Measured()
    cached_ceilings("chip", "1", measure, directory=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path))
    assert cached_ceilings("chip", "1", measure, directory=tmp_path) == SOME
    assert measure.count == 2
    assert cached_ceilings("chip", "1", measure, directory=tmp_path) == SOME
    assert measure.count == 2


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    assert cached_ceilings("chip", "1", Measured(), directory=tmp_path / "file") == SOME
