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
        "unreplayed": _unreplayed(backend),
        "models": {folder.name: _generate(folder) for folder in folders},
        "many": _many(folders[0]),
    }


def _unreplayed(backend: Any) -> dict[str, str]:
    """Formats whose products cannot be replayed from a graph, and why."""
    from firstlight.backends.torch import backend as module
    from firstlight.formats.registry import get_format, known_formats
    from firstlight.verify.random_weights import random_weight
    from tests.support.recorded_graph import RecordedGraph

    module.graphs_of = lambda _: RecordedGraph
    found = {}
    generator = np.random.default_rng(0)
    for name in known_formats():
        weight = backend.pack(random_weight(get_format(name), 8, 256, generator))

        def compute(ids: Any, weight: Any = weight) -> Any:
            return backend.linear(backend.embed(weight, ids), weight)

        replayer = backend.replayer(compute)
        for _ in range(4):
            ids = generator.integers(0, 8, 5).astype(np.int32)
            result = replayer(ids)
            if result is None:
                found[name] = replayer.why_not
            else:
                given, wanted = backend.download(result), backend.download(compute(ids))
                if not np.allclose(given, wanted, rtol=1e-6, equal_nan=True):
                    found[name] = "another result"
    return found


def _many(folder: Path) -> dict[str, Any]:
    """Sequences of every kind together, more than have their logits in memory at once."""
    import firstlight
    from firstlight.engine.parameters import SamplingParameters, StopConditions

    found: dict[str, Any] = {}
    kinds = (
        SamplingParameters(),
        SamplingParameters(1.3, seed=5),
        SamplingParameters(1.1, top_k=30, top_p=0.9, seed=6),
        SamplingParameters(0.9, top_p=0.95, repetition_penalty=1.2, seed=7),
        SamplingParameters(1.0, min_p=0.02, presence_penalty=0.5, logit_bias={9: 1.0}, seed=8),
    )
    for device in ("torch", "numpy"):
        model = firstlight.load(
            folder, device, exact=True, cache=False, context_length=64, sequences=40,
            speculation="off",
        )  # fmt: skip
        sequences = [
            model.engine.add(
                [1 + index % 7, 2, 3],
                kinds[index % len(kinds)],
                StopConditions(max_tokens=6 + index % 2),
                wants_scores=2 if index % 11 == 0 else None,
            )
            for index in range(40)
        ]
        waits = []
        while True:
            before = Lunar.downloads
            if not model.engine.step():
                break
            waits.append(Lunar.downloads - before)
        found[device] = [each.output_ids for each in sequences]
        found[f"{device} waits"] = sorted(set(waits))
        if device == "torch":
            found["remarks"] = model.backend.remarks()
            found["replays"] = model.backend.usage()["decode step", "graph"][0]
    return found


def _generate(folder: Path) -> dict[str, Any]:
    """Tokens of a model, exactly computed, and how often a step waits for the device."""
    import firstlight
    from firstlight.engine.parameters import SamplingParameters, StopConditions
    from firstlight.model.feed_forward_spec import ExpertsSpec

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
