"""The processor: its name, what it can do, its caches, and how much of it is ours."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

from firstlight.host.control_groups import control_groups


@dataclass(frozen=True)
class Processor:
    """What the system says about the main processor.

    Attributes:
        name: as the vendor calls it; where the system does not say, the architecture.
        architecture: as `platform.machine()` gives it ("x86_64", "arm64").
        instruction_sets: lower-case flags as the system spells them ("avx2", "asimd"); empty
            where it does not tell.
        cache_bytes: level of data or unified cache -> bytes of one such cache.
        last_level_cache_bytes: bytes of all caches of the highest level together; 0 if unknown.
    """

    name: str
    architecture: str
    instruction_sets: frozenset[str] = frozenset()
    cache_bytes: dict[int, int] = field(default_factory=dict)
    last_level_cache_bytes: int = 0


def processor(root: Path = Path("/")) -> Processor:
    """Describe this machine's processor from what its system tells. Takes milliseconds.

    Args:
        root: the directory that holds proc and sys, on Linux.
    """
    if (root / "proc/cpuinfo").exists():
        return _linux(root)
    if platform.system() == "Darwin":
        from firstlight.host.sysctl import apple_processor

        return apple_processor()
    machine = platform.machine()
    return Processor(name=platform.processor() or machine, architecture=machine)


def usable_cores(root: Path = Path("/")) -> int:
    """Logical cores that this process can keep busy: at least 1.

    The least of the cores it is allowed to run on and the whole cores in the processor time that
    the control groups around it may use. A part of a core is left out: threads that wait for
    each other at the end of each step would all go at the pace of the one that is held back.

    Args:
        root: the directory that holds proc and sys.
    """
    # os.sched_getaffinity exists on Linux only.
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    for group in control_groups("cpu", root):
        if group.version == 2:
            quota, _, period = (group.read("cpu.max") or "").partition(" ")
        else:
            quota = group.read("cpu.cfs_quota_us") or ""
            period = group.read("cpu.cfs_period_us") or ""
        # No limit is written as "max" or as -1.
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def _linux(root: Path) -> Processor:
    """From /proc/cpuinfo, whose fields differ by architecture, and sysfs."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, separator, value = line.partition(":")
        if separator and value.strip():
            fields.setdefault(key.strip().lower(), value.strip())
    architecture = platform.machine()
    name = fields.get("model name") or fields.get("uarch") or fields.get("cpu") or ""
    if not name and "cpu part" in fields:
        name = _arm_name(fields.get("cpu implementer", ""), fields["cpu part"])
    flags = fields.get("flags") or fields.get("features") or ""
    if "isa" in fields:  # RISC-V: "rv64imafdcv_zba_zbb"
        flags = fields["isa"].replace("_", " ")
    sizes, last_level = _linux_caches(root)
    return Processor(
        name=name or architecture,
        architecture=architecture,
        instruction_sets=frozenset(flags.lower().split()),
        cache_bytes=sizes,
        last_level_cache_bytes=last_level,
    )


def _arm_name(implementer: str, part: str) -> str:
    """A name for Arm's main identification register.

    Source: Arm, Technical Reference Manual of each core, MIDR_EL1, fields Implementer and PartNum.
    """
    cores = {
        ("0x41", "0xd03"): "Arm Cortex-A53",
        ("0x41", "0xd08"): "Arm Cortex-A72",
        ("0x41", "0xd0b"): "Arm Cortex-A76",
        ("0x41", "0xd0c"): "Arm Neoverse N1",
        ("0x41", "0xd40"): "Arm Neoverse V1",
        ("0x41", "0xd49"): "Arm Neoverse N2",
        ("0x41", "0xd4f"): "Arm Neoverse V2",
    }
    known = cores.get((implementer.lower(), part.lower()))
    return known or f"Arm implementer {implementer} part {part}"


def _linux_caches(root: Path) -> tuple[dict[int, int], int]:
    """(level -> bytes of one cache of it, bytes of all caches of the last level).

    Source: the kernel's Documentation/ABI/testing/sysfs-devices-system-cpu. A cache that several
    cores share appears once under each of them, with the same list of sharers.
    """
    sizes: dict[int, int] = {}
    instances: dict[tuple[int, str], int] = {}
    for directory in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cache/index[0-9]*"):
        try:
            level = int((directory / "level").read_text())
            kind = (directory / "type").read_text().strip()
            size = _bytes((directory / "size").read_text().strip())
            shared = (directory / "shared_cpu_list").read_text().strip()
        except (OSError, ValueError):
            continue
        if kind not in ("Data", "Unified"):
            continue
        sizes[level] = max(size, sizes.get(level, 0))
        instances[level, shared] = size
    highest = max(sizes, default=0)
    total = sum(size for (level, _), size in instances.items() if level == highest)
    return dict(sorted(sizes.items())), total


def _bytes(text: str) -> int:
    """The number that sysfs writes with a unit: 32K is 32768."""
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
    return int(text.rstrip("KMG")) * factor
