"""Which cores of the processor each replica keeps to."""

from __future__ import annotations

import os

HOST_DEVICES = frozenset({"cpu", "numpy", "torch:cpu"})
"""Devices that compute on the processor's own cores."""


def core_shares(devices: list[str], cores: list[int] | None = None) -> list[list[int] | None]:
    """For each replica, by its device, the numbers of its cores; None: all of them.

    Replicas on the processor get equal consecutive shares, the first ones more where it does not
    come out even. With only one of them, or more than there are cores, nobody is bound: then the
    system shares the cores out, which it does less well, since a replica's threads wait for each
    other all the time.

    Args:
        cores: there are; None: those that this process may run on, where the system tells (Linux).
    """
    if cores is None:
        affinity = getattr(os, "sched_getaffinity", None)
        cores = sorted(affinity(0)) if affinity is not None else []
    sharers = sum(device in HOST_DEVICES for device in devices)
    if sharers < 2 or sharers > len(cores):
        return [None] * len(devices)
    size, more = divmod(len(cores), sharers)
    shares: list[list[int] | None] = []
    first = 0
    for device in devices:
        if device not in HOST_DEVICES:
            shares.append(None)
            continue
        last = first + size + (1 if more > 0 else 0)
        shares.append(cores[first:last])
        first, more = last, more - 1
    return shares
