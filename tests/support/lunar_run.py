"""What the torch backend does on the device of tests/support/lunar_device.py, as one JSON object.

Run in a process of its own, since PyTorch keeps a registered device until it ends:
python -m tests.support.lunar_run CHECKPOINT_FOLDER...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.lunar_device import Lunar, register

COUNT = 12


def main(*folders: Path) -> dict[str, Any]:
    register()
    from firstlight.backends import available_devices, open_device
    from firstlight.errors import DeviceError
    from firstlight.verify.conformance import check_kernels

    backend = open_device("torch", check_kernels=False)
    reports = check_kernels(backend, quick=True)
    Lunar.refuses = frozenset(("aten::mm.dtype", "aten::bmm.dtype"))
    plain = open_device("torch:lunar", check_kernels=False)
    Lunar.refuses = frozenset(("aten::add.Tensor",))
    refused = ""
    try:
        open_device("torch")
    except DeviceError as error:
        refused = str(error)
    Lunar.refuses = frozenset()
    return {
        "devices": available_devices(),
        "name": backend.name,
        "key": backend.device_key(),
        "kernels": sorted({f"{k.op}/{k.name}" for k in backend.kernels()}),
        "plain": sorted({f"{k.op}/{k.name}" for k in plain.kernels()}),
        "checked": sorted({f"{report.op}/{report.kernel}" for report in reports}),
        "failed": [str(report) for report in reports if not report.passed],
        "refused": refused,
        "models": {folder.name: _generate(folder) for folder in folders},
    }


def _generate(folder: Path) -> dict[str, Any]:
    """Tokens of a model, exactly computed, and how often a step waits for the device."""
    import firstlight
    from firstlight.engine.parameters import SamplingParameters, StopConditions
    from firstlight.model.spec import ExpertsSpec

    found = {}
    prompt = np.random.default_rng(0).integers(0, 150, 37).tolist()
    for device in ("torch", "numpy"):
        model = firstlight.load(folder, device, exact=True, cache=False, context_length=128)
        sequence = model.engine.add(prompt, SamplingParameters(), StopConditions(max_tokens=COUNT))
        downloads = []
        while True:
            before = Lunar.downloads
            if not model.engine.step():
                break
            downloads.append(Lunar.downloads - before)
        found[device] = list(sequence.output_ids)
        found[f"{device} downloads"] = downloads
        if device == "torch":
            layers = model.engine.decoder.spec.layers
            found["expert layers"] = sum(isinstance(x.feed_forward, ExpertsSpec) for x in layers)
            found["fallbacks"] = sorted(
                op for op, kernel in model.backend.usage() if kernel == "definition"
            )
    return found


if __name__ == "__main__":
    print(json.dumps(main(*map(Path, sys.argv[1:]))))
