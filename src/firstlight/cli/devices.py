"""`firstlight devices`: every chip found, what it can do, and how fast it was measured to be."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstlight.backends.base import Backend


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `devices`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--refresh", action="store_true", help="measure again")
    parser.add_argument(
        "--check", action="store_true", help="compare every kernel with its definition now"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure what has not been measured yet, and print the list."""
    from firstlight.backends import available_devices, open_device

    devices = [_device(open_device(name), arguments) for name in available_devices()]
    if arguments.json:
        print(json.dumps({"devices": devices}, ensure_ascii=False))
    else:
        print("\n\n".join(_text(device) for device in devices))
    failed = any(device.get("disagreeing") for device in devices)
    return 1 if failed else 0


def _device(backend: Backend, arguments: argparse.Namespace) -> dict[str, Any]:
    from firstlight.host.processor import usable_cores
    from firstlight.ops import all_ops

    ceilings = backend.ceilings(refresh=arguments.refresh)
    kernels: dict[str, list[str]] = {op.name: [] for op in all_ops()}
    for kernel in backend.kernels():
        kernels[kernel.op].append(kernel.name)
    device: dict[str, Any] = {
        "device": backend.name,
        "name": backend.device_name(),
        "details": backend.device_key(),
        "cores": usable_cores(),
        "memory": backend.total_memory(),
        "available_memory": backend.available_memory(),
        "bandwidth_bytes_per_second": ceilings.bandwidth_bytes_per_second,
        "matrix_operations_per_second": ceilings.matrix_operations_per_second,
        "measured_at": ceilings.measured_at,
        "how": ceilings.how,
        "fast_formats": sorted(backend.fast_formats()),
        "kernels": kernels,
    }
    if arguments.check:
        from firstlight.verify.conformance import check_kernels

        reports = list(check_kernels(backend))
        device["checked"] = len(reports)
        device["disagreeing"] = [str(report) for report in reports if not report.passed]
    return device


def _text(device: dict[str, Any]) -> str:
    from firstlight.engine.memory_plan import gibibytes
    from firstlight.ops import all_ops

    peaks = ", ".join(
        f"{dtype} {speed / 1e9:,.0f} GFLOP/s"
        for dtype, speed in device["matrix_operations_per_second"].items()
    )
    without = {op.name: op.composite for op in all_ops() if not device["kernels"][op.name]}
    with_kernel = [op for op in device["kernels"] if op not in without]
    rows = [
        (device["device"], device["details"].removeprefix(f"{device['device']}: ")),
        (
            "memory",
            f"{gibibytes(device['memory'])}, {gibibytes(device['available_memory'])} available",
        ),
        ("bandwidth", f"{device['bandwidth_bytes_per_second'] / 1e9:,.1f} GB/s"),
        ("matrices", peaks),
        ("measured", f"{device['measured_at']}: {device['how']}"),
        ("kernels", ", ".join(with_kernel) or "none: every op runs as its definition, slowly"),
    ]
    if with_kernel:
        for label, composite in (("in parts", True), ("slow", False)):
            names = [name for name, is_composite in without.items() if is_composite == composite]
            if names:
                rows.append((label, ", ".join(names)))
    if device["fast_formats"]:
        rows.append(("formats", ", ".join(device["fast_formats"])))
    if "checked" in device:
        rows.append(("checked", f"{device['checked']} cases against the definitions"))
        rows += [("disagrees", line) for line in device["disagreeing"]]
    return "\n".join(f"{name:<12}{value}" for name, value in rows)
