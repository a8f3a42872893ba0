"""The processor, from pretended systems and the real one."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from firstlight.host.processor import processor, usable_cores
from firstlight.host.sysctl import apple_processor, parse_sysctl
from tests.support.pretended_system import version_1, version_2


@pytest.fixture
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


def cores_with_quota(root: Path, quota: str, period: str = "100000") -> int:
    version_2(root, "/a", {"/a": {"cpu.max": f"{quota} {period}"}})
    return usable_cores(root)


@pytest.mark.usefixtures("sixteen_cores")
class TestUsableCores:
    def test_affinity(self, tmp_path):
        assert usable_cores(tmp_path) == 16

    def test_without_affinity(self, tmp_path, monkeypatch):
        monkeypatch.delattr(os, "sched_getaffinity")
        monkeypatch.setattr(os, "cpu_count", lambda: None)
        assert usable_cores(tmp_path) == 1
        monkeypatch.setattr(os, "cpu_count", lambda: 4)
        assert usable_cores(tmp_path) == 4

    @pytest.mark.parametrize(
        ("quota", "cores"),
        [
            ("max", 16),
            ("400000", 4),
            ("450000", 4),
            ("50000", 1),
            ("6400000", 16),
            ("nonsense", 16),
            ("-1", 16),
        ],
    )
    def test_quota(self, tmp_path, quota, cores):
        assert cores_with_quota(tmp_path, quota) == cores

    def test_period_of_zero(self, tmp_path):
        assert cores_with_quota(tmp_path, "100000", "0") == 16

    def test_an_outer_quota_counts(self, tmp_path):
        version_2(tmp_path, "/a/b", {"/a": {"cpu.max": "200000 100000"}, "/a/b": {}})
        assert usable_cores(tmp_path) == 2

    def test_version_1(self, tmp_path):
        files = {"cpu.cfs_quota_us": "300000", "cpu.cfs_period_us": "100000"}
        root = {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}
        version_1(tmp_path, "cpu", "/a", {"/": root, "/a": files})
        assert usable_cores(tmp_path) == 3


def test_usable_cores_of_this_machine():
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity")
def test_real_affinity():
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from firstlight.host.processor import usable_cores; print(usable_cores())"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert int(answer.stdout) == 1


def cpuinfo(root: Path, text: str) -> None:
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(text)


def cache(root: Path, core: int, index: int, level: int, kind: str, size: str, shared: str) -> None:
    directory = root / f"sys/devices/system/cpu/cpu{core}/cache/index{index}"
    directory.mkdir(parents=True)
    for name, value in (
        ("level", str(level)),
        ("type", kind),
        ("size", size),
        ("shared_cpu_list", shared),
    ):
        (directory / name).write_text(value + "\n")


def test_linux_x86(tmp_path):
    core = "model name\t: Brand X 9000\nflags\t\t: fpu AVX2 avx512f\n\n"
    cpuinfo(tmp_path, "processor\t: 0\n" + core + "processor\t: 1\n" + core)
    found = processor(tmp_path)
    assert found.name == "Brand X 9000"
    assert found.instruction_sets == {"fpu", "avx2", "avx512f"}
    assert found.architecture == platform.machine()


def test_linux_arm(tmp_path):
    cpuinfo(tmp_path, "Features : fp asimd i8mm\nCPU implementer : 0x41\nCPU part : 0xd4f\n")
    assert processor(tmp_path).name == "Arm Neoverse V2"
    assert "i8mm" in processor(tmp_path).instruction_sets


def test_linux_arm_of_unknown_make(tmp_path):
    cpuinfo(tmp_path, "CPU implementer : 0x99\nCPU part : 0x123\n")
    assert processor(tmp_path).name == "Arm implementer 0x99 part 0x123"


def test_linux_risc_v(tmp_path):
    cpuinfo(tmp_path, "isa : rv64imafdcv_zba_zbb\nuarch : maker,core\n")
    assert processor(tmp_path).name == "maker,core"
    assert processor(tmp_path).instruction_sets == {"rv64imafdcv", "zba", "zbb"}


def test_caches(tmp_path):
    cpuinfo(tmp_path, "")
    for core in range(4):
        cache(tmp_path, core, 0, 1, "Data", "32K", str(core))
        cache(tmp_path, core, 1, 1, "Instruction", "64K", str(core))
        cache(tmp_path, core, 2, 2, "Unified", "1024K", str(core))
        cache(tmp_path, core, 3, 3, "Unified", "16M", "0-1" if core < 2 else "2-3")
    (tmp_path / "sys/devices/system/cpu/cpu0/cache/index9").mkdir()
    found = processor(tmp_path)
    assert found.cache_bytes == {1: 32 << 10, 2: 1 << 20, 3: 16 << 20}
    assert found.last_level_cache_bytes == 32 << 20
    assert found.name == platform.machine()


def test_system_without_cpuinfo(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    monkeypatch.setattr(platform, "processor", lambda: "Family 6")
    assert processor(tmp_path).name == "Family 6"


def test_apple():
    text = """machdep.cpu.brand_string: Apple M9 Max
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_SME: 0
hw.optional.neon: 1
hw.l1dcachesize: 65536
hw.l2cachesize: 4194304
hw.perflevel0.l1dcachesize: 131072
hw.perflevel0.l2cachesize: 16777216
a line without a colon
"""
    found = parse_sysctl(text, "arm64")
    assert found.name == "Apple M9 Max"
    assert found.instruction_sets == {"dotprod", "neon"}
    assert found.cache_bytes == {1: 131072, 2: 16777216}
    assert found.last_level_cache_bytes == 16777216


def test_intel_of_apple():
    text = (
        "machdep.cpu.features: FPU SSE\nmachdep.cpu.leaf7_features: AVX2\nhw.l3cachesize: 8388608"
    )
    found = parse_sysctl(text, "x86_64")
    assert found.name == "x86_64"
    assert found.instruction_sets == {"fpu", "sse", "avx2"}
    assert found.last_level_cache_bytes == 8388608


def test_apple_without_the_command(tmp_path, monkeypatch):
    def absent(*arguments: object, **named: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", absent)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert processor(tmp_path) == apple_processor()
    assert processor(tmp_path).name == platform.machine()


def test_this_machine():
    found = processor()
    assert found.name
    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert "sse2" in found.instruction_sets
