"""The kernels of other processors, cross-compiled and run on emulated ones without Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.native import ROOT, build_conformance, require_commands, run_conformance

_ARM = ("baseline", "dotprod", "i8mm", "bf16")


def _build(directory: Path, machine: str) -> Path:
    package = f"g++-{machine.replace('_', '-')}-linux-gnu"
    require_commands(f"{machine}-linux-gnu-g++", package=package)
    require_commands(f"qemu-{machine}", package="qemu-user")
    toolchain = ROOT / "cmake" / f"{machine}-linux-gnu.cmake"
    return build_conformance(directory, f"-DCMAKE_TOOLCHAIN_FILE={toolchain}")


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(tmp_path_factory.mktemp("aarch64"), "aarch64")


@pytest.fixture(scope="module")
def risc_v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(tmp_path_factory.mktemp("riscv64"), "riscv64")


@pytest.mark.parametrize(
    ("processor", "levels"),
    [("cortex-a53", _ARM[:1]), ("neoverse-n1", _ARM[:2]), ("max", _ARM)],
)
def test_levels_of_arm_processors(arm: Path, processor: str, levels: tuple[str, ...]) -> None:
    found = run_conformance("qemu-aarch64", "-cpu", processor, arm, "--levels")
    assert tuple(found.split()) == levels


@pytest.mark.parametrize("level", _ARM)
def test_kernels_on_arm(arm: Path, cases: Path, level: str) -> None:
    out = run_conformance("qemu-aarch64", "-cpu", "max", arm, cases, "--level", level)
    assert f"{level} " in out and "1 levels: agreed" in out


def test_kernels_on_an_old_arm_processor(arm: Path, quick_cases: Path) -> None:
    """It would stop at an instruction of a newer one."""
    out = run_conformance("qemu-aarch64", "-cpu", "cortex-a53", arm, quick_cases)
    assert "1 levels: agreed" in out


def test_kernels_on_risc_v(risc_v: Path, cases: Path) -> None:
    out = run_conformance("qemu-riscv64", risc_v, cases)
    assert "1 levels: agreed" in out
