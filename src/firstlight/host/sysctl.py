"""What macOS says about its processor, through the sysctl command."""

from __future__ import annotations

import platform
import subprocess

from firstlight.host.processor import Processor


def apple_processor() -> Processor:
    """Ask `sysctl` for the branches machdep.cpu and hw; what it does not say stays unknown."""
    try:
        answer = subprocess.run(
            ["/usr/sbin/sysctl", "machdep.cpu", "hw"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        answer = ""
    return parse_sysctl(answer, platform.machine())


def parse_sysctl(text: str, architecture: str) -> Processor:
    """A Processor from lines "name: value".

    Source: Apple, "Determining system capabilities" (the hw.optional and hw.perflevel names);
    on Intel, machdep.cpu.features and its siblings hold the flags.
    """
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, separator, value = line.partition(": ")
        if separator:
            values[key.strip()] = value.strip()
    flags: set[str] = set()
    for key in ("features", "leaf7_features", "extfeatures"):
        flags.update(values.get(f"machdep.cpu.{key}", "").lower().split())
    for key, value in values.items():
        # "hw.optional.arm.FEAT_DotProd: 1", "hw.optional.neon: 1"
        if key.startswith("hw.optional.") and value == "1":
            flags.add(key.rpartition(".")[2].lower().removeprefix("feat_"))

    def size(name: str) -> int:
        # hw.l2cachesize is that of the efficiency cores; level 0 of perflevel is the fast ones.
        value = values.get(f"hw.perflevel0.{name}") or values.get(f"hw.{name}") or "0"
        return int(value) if value.isdigit() else 0

    found = {1: size("l1dcachesize"), 2: size("l2cachesize"), 3: size("l3cachesize")}
    caches = {level: bytes_ for level, bytes_ in found.items() if bytes_ > 0}
    return Processor(
        name=values.get("machdep.cpu.brand_string") or architecture,
        architecture=architecture,
        instruction_sets=frozenset(flags),
        cache_bytes=caches,
        # How many clusters share one is not told; one is a lower bound.
        last_level_cache_bytes=caches[max(caches)] if caches else 0,
    )
