"""How much memory this process may really use.

What the machine has free is an upper bound only: a container's control group or a limit set on
the process may allow less, and going over it ends the process without an error to catch.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from firstlight.host.control_groups import ControlGroup, control_groups


def total_memory(root: Path = Path("/")) -> int:
    """Bytes of main memory that this process could ever have: installed, or its groups' limit."""
    import psutil

    limits = [limit for group in control_groups("memory", root) for limit in _limits(group)]
    return int(min([psutil.virtual_memory().total, *limits]))


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still allocate and touch without swapping or being killed.

    The least of: what the system can give (free pages and caches that it can drop); what is left
    in each control group around the process, where pages that only cache files count as free,
    because the kernel drops them first; what is left of the address space where RLIMIT_AS limits
    it; and of memory that is no file's where RLIMIT_DATA does. Never negative.

    Args:
        root: the directory that holds proc and sys.
    """
    import psutil

    amounts = [int(psutil.virtual_memory().available)]
    for group in control_groups("memory", root):
        used = _unreclaimable(group)
        amounts += [limit - used for limit in _limits(group)]
    amounts += [left for left in (address_space_left(), _data_left()) if left is not None]
    return max(0, min(amounts))


def address_space_left() -> int | None:
    """Bytes that can still be mapped, files among them; None: as many as one likes."""
    limit = _address_space_limit()
    if limit is None:
        return None
    import psutil

    return max(0, limit - int(psutil.Process().memory_info().vms))


def _data_left() -> int | None:
    """Bytes of private memory that may still be taken; None where nothing limits them."""
    limit = _limit_on("RLIMIT_DATA")
    if limit is None or sys.platform != "linux":
        return None
    text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(r"^VmData:\s*(\d+) kB", text, re.MULTILINE)
    return None if found is None else max(0, limit - 1024 * int(found[1]))


def _limits(group: ControlGroup) -> Iterator[int]:
    # Above memory.high a group is slowed down until it has given memory back: as bad as a wall.
    names = ("memory.max", "memory.high") if group.version == 2 else ("memory.limit_in_bytes",)
    for name in names:
        limit = group.read_integer(name)
        # Version 1 writes "no limit" as the largest multiple of the page size in 63 bits.
        if limit is not None and limit < 2**62:
            yield limit


def _unreclaimable(group: ControlGroup) -> int:
    """Bytes charged to the group that the kernel cannot simply drop."""
    if group.version == 2:
        usage = group.read_integer("memory.current") or 0
        droppable = ("active_file", "inactive_file", "slab_reclaimable")
    else:
        usage = group.read_integer("memory.usage_in_bytes") or 0
        droppable = ("total_active_file", "total_inactive_file", "total_slab_reclaimable")
    statistics = {}
    for line in (group.read("memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name in droppable and value.strip().isdigit():
            statistics[name] = int(value)
    return max(0, usage - sum(statistics.values()))


def _address_space_limit() -> int | None:
    """RLIMIT_AS in bytes, None where it is not set or the system has none."""
    return _limit_on("RLIMIT_AS")


def _limit_on(name: str) -> int | None:
    try:
        import resource
    except ImportError:
        return None
    limit = resource.getrlimit(getattr(resource, name))[0]
    return None if limit == resource.RLIM_INFINITY else limit
