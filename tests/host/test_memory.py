"""How much memory is left, inside the limits of pretended control groups and real ones."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from firstlight.host.memory import available_memory, total_memory
from tests.support.pretended_system import version_1, version_2

GIB = 1 << 30


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 64 GiB, 40 of them available, and no limit on the address space."""
    import firstlight.host.memory as memory

    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB, available=40 * GIB)
    )
    monkeypatch.setattr(memory, "_address_space_limit", lambda: None)


def group(limit: int | str, usage: int, **files: object) -> dict[str, str]:
    stat = "\n".join(f"{key} {value}" for key, value in files.items())
    return {"memory.max": str(limit), "memory.current": str(usage), "memory.stat": stat}


def test_without_groups(tmp_path):
    assert available_memory(tmp_path) == 40 * GIB
    assert total_memory(tmp_path) == 64 * GIB


def test_version_2(tmp_path):
    version_2(tmp_path, "/box", {"/": {}, "/box": group(8 * GIB, 3 * GIB)})
    assert available_memory(tmp_path) == 5 * GIB
    assert total_memory(tmp_path) == 8 * GIB


def test_an_outer_group_may_be_the_narrow_one(tmp_path):
    inner, outer = group("max", 1 * GIB), group(8 * GIB, 7 * GIB)
    version_2(tmp_path, "/a/b", {"/a": outer, "/a/b": inner})
    assert available_memory(tmp_path) == 1 * GIB
    assert total_memory(tmp_path) == 8 * GIB


def test_the_machine_may_be_the_narrow_one(tmp_path):
    version_2(tmp_path, "/a", {"/a": group(100 * GIB, 1 * GIB)})
    assert available_memory(tmp_path) == 40 * GIB
    assert total_memory(tmp_path) == 64 * GIB


def test_cached_files_count_as_free(tmp_path):
    # A model file that was read once fills the group's page cache.
    files = {"active_file": GIB, "inactive_file": 4 * GIB, "slab_reclaimable": GIB, "anon": 9}
    version_2(tmp_path, "/a", {"/a": group(8 * GIB, 7 * GIB, **files)})
    assert available_memory(tmp_path) == 7 * GIB


def test_high_slows_down_before_max(tmp_path):
    files = {**group(8 * GIB, 2 * GIB), "memory.high": str(4 * GIB)}
    version_2(tmp_path, "/a", {"/a": files})
    assert available_memory(tmp_path) == 2 * GIB


def test_never_negative(tmp_path):
    version_2(tmp_path, "/a", {"/a": group(1 * GIB, 3 * GIB)})
    assert available_memory(tmp_path) == 0


def test_version_1(tmp_path):
    unlimited = {
        "memory.limit_in_bytes": "9223372036854771712",
        "memory.usage_in_bytes": str(50 * GIB),
    }
    box = {
        "memory.limit_in_bytes": str(6 * GIB),
        "memory.usage_in_bytes": str(5 * GIB),
        "memory.stat": f"inactive_file 7\ntotal_inactive_file {2 * GIB}\nbroken line\nx",
    }
    version_1(tmp_path, "memory", "/box", {"/": unlimited, "/box": box})
    assert available_memory(tmp_path) == 3 * GIB
    assert total_memory(tmp_path) == 6 * GIB


@pytest.mark.parametrize("limit", ["", "plenty", "max", "1e9"])
def test_limit_that_is_no_number(tmp_path, limit):
    version_2(tmp_path, "/a", {"/a": group(limit, 1 * GIB)})
    assert available_memory(tmp_path) == 40 * GIB


def test_limit_on_the_address_space(monkeypatch, tmp_path):
    import firstlight.host.memory as memory

    used = psutil.Process().memory_info().vms
    monkeypatch.setattr(memory, "_address_space_limit", lambda: used + GIB)
    assert available_memory(tmp_path) == pytest.approx(GIB, rel=0.5)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems may ignore the limit")
def test_real_limit_on_the_address_space():
    script = (
        "import resource\n"
        "from firstlight.host.memory import available_memory\n"
        "available_memory()\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({2 * GIB}, {2 * GIB}))\n"
        "print(available_memory())"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert GIB < int(answer.stdout) < 2 * GIB


def test_this_machine(monkeypatch):
    monkeypatch.undo()
    assert 0 < available_memory() <= total_memory() <= psutil.virtual_memory().total
