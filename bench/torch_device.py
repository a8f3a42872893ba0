"""How close the torch backend comes to a device's own limits, and whether it is right there.

    python bench/torch_device.py [--device torch] [--shape 7b] [--formats bf16 int8 int4]
        [--batches 1 8 32 128] [--prefill 4096] [--output bench/results/FILE.json]

First every kernel is compared with its definition on the device. Then a llama-shaped model of
random weights is put there (without files; each matrix has memory of its own, so that nothing but a
step's own reading brings it in), and whole steps of the decoder are timed, each from host to logits
on the host. Shares are of what was measured on the device in the same run: decoding of the
bandwidth, by the bytes of weights and state that a step must read; a prompt of the bfloat16 peak
(float32's where there is none), by the operations of its products.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

import firstlight
from firstlight.backends import open_device
from firstlight.backends.base import Backend
from firstlight.formats.base import Weight
from firstlight.formats.registry import get_format
from firstlight.host.cache import write_atomically
from firstlight.host.ceilings import Ceilings
from firstlight.model.decoder import Decoder
from firstlight.model.families.registry import spec_of_config
from firstlight.model.spec import ModelSpec
from firstlight.model.tensor_source import TensorSource
from firstlight.model.weights import Weights
from firstlight.tuning.workload import Workload, make_batch, pages_of
from firstlight.verify.conformance import check_kernels

PAGE_TOKENS = 64
# Rows that are drawn for a matrix; they are repeated to its size.
DRAWN_ROWS = 256

_LLAMA = {
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "max_position_embeddings": 32768,
}
SHAPES = {
    # Llama 3.1 8B's published sizes.
    "7b": {
        **_LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    },
    # Small enough for any machine, to see that this program works.
    "tiny": {
        **_LLAMA, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1024,
    },
}  # fmt: skip


@dataclass(frozen=True)
class _Files:
    """A checkpoint of which there is nothing but a config."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "safetensors"
    location: Path = Path("random model")

    def weight(self, name: str) -> Weight:
        raise KeyError(name)


def main() -> None:
    """Check, measure, print, and write the figures."""
    arguments = _arguments()
    backend = open_device(arguments.device, check_kernels=False)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "version": firstlight.__version__,
        "device": backend.device_key(),
        "shape": arguments.shape,
        "context": arguments.context,
        "conformance": _conformance(backend, arguments.quick),
    }
    _print_conformance(result["conformance"])
    ceilings = backend.measure_ceilings()
    result["bandwidth_bytes_per_second"] = ceilings.bandwidth_bytes_per_second
    result["matrix_operations_per_second"] = ceilings.matrix_operations_per_second
    peaks = ", ".join(
        f"{name} {speed / 1e12:.2f} TFLOP/s"
        for name, speed in ceilings.matrix_operations_per_second.items()
    )
    print(f"memory {ceilings.bandwidth_bytes_per_second / 1e9:.1f} GB/s, {peaks}")
    result["steps"] = []
    for name in arguments.formats:
        for step in _measure(backend, ceilings, name, arguments):
            result["steps"].append(step)
            what, share = step["what"], step["share"]
            print(
                f"{name:<6} {what:<18} {step['tokens_per_second']:>10.1f} tokens/s "
                f"{1000 * step['seconds']:>9.2f} ms {share:>6.1%} of {step['of']}",
                flush=True,
            )
    if arguments.output is not None:
        content = json.dumps(result, indent=1).encode() + b"\n"
        write_atomically(arguments.output, lambda file: file.write(content))


def _conformance(backend: Backend, quick: bool) -> dict[str, Any]:
    started = time.perf_counter()
    reports = check_kernels(backend, quick=quick)
    return {
        "cases": len(reports),
        "seconds": time.perf_counter() - started,
        "kernels": sorted({f"{report.op}/{report.kernel}" for report in reports}),
        "disagreeing": [str(report) for report in reports if not report.passed],
    }


def _print_conformance(found: dict[str, Any]) -> None:
    wrong = found["disagreeing"]
    print(f"{found['cases']} cases of {len(found['kernels'])} kernels, {len(wrong)} disagree")
    for line in wrong:
        print(f"  {line}")


def _measure(
    backend: Backend, ceilings: Ceilings, name: str, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    spec = spec_of_config(_Files(SHAPES[arguments.shape]))
    decoder = Decoder(spec, _random_weights(spec, backend, name), backend)
    read = [
        source for source in spec.sources() if len(source.shape) == 2 and source != spec.embedding
    ]
    weight_bytes = sum(decoder.weights[source].nbytes for source in read)
    head = 2 * prod(spec.head.weight.shape)
    inner = 2 * sum(prod(source.shape) for source in read) - head
    entry = sum(stream.entry_bytes("bfloat16") for layer in decoder.streams for stream in layer)
    steps = []
    for batch in arguments.batches:
        work = Workload(f"decode, batch {batch}", batch, 1, arguments.context, 1.0)
        seconds = _step_seconds(decoder, backend, work, arguments.repetitions)
        moved = weight_bytes + batch * arguments.context * entry
        share = moved / seconds / ceilings.bandwidth_bytes_per_second
        steps.append(_step(name, work, batch, seconds, share, "bandwidth"))
    if arguments.prefill:
        rows = arguments.prefill
        work = Workload(f"prefill {rows}", 1, rows, rows, 1.0)
        seconds = _step_seconds(decoder, backend, work, max(2, arguments.repetitions // 4))
        speeds = ceilings.matrix_operations_per_second
        operations = rows * inner + head
        share = operations / seconds / speeds.get("bf16", speeds["f32"])
        steps.append(_step(name, work, rows, seconds, share, "peak"))
    return steps


def _step(
    format: str, work: Workload, tokens: int, seconds: float, share: float, of: str
) -> dict[str, Any]:
    return {
        "format": format,
        "what": work.name,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "share": share,
        "of": of,
    }


def _random_weights(spec: ModelSpec, backend: Backend, name: str) -> Weights:
    """On the device, in a format; norms are ones."""
    format = get_format(name)
    generator = np.random.default_rng(0)
    drawn: dict[int, Any] = {}
    tensors: dict[TensorSource, Any] = {}
    for source in spec.sources():
        if len(source.shape) == 1:
            tensors[source] = backend.upload(np.ones(source.shape, np.float32))
            continue
        rows, columns = source.shape
        if columns not in drawn:
            values = generator.standard_normal((DRAWN_ROWS, columns), np.float32)
            assert format.encode is not None
            drawn[columns] = format.encode(values * np.float32(columns**-0.5))
        some = drawn[columns].reshape(DRAWN_ROWS, -1)
        # Memory of its own for each, also where the device uses the host's.
        data = np.concatenate([some] * (-(-rows // DRAWN_ROWS)))[:rows]
        tensors[source] = backend.pack(Weight(format, source.shape, data, source.name))
    return Weights(tensors)


def _step_seconds(decoder: Decoder, backend: Backend, work: Workload, repetitions: int) -> float:
    """The median of whole steps, after two that warm up."""
    pages = pages_of(work, PAGE_TOKENS)
    state = decoder.new_state((pages,) * len(decoder.groups), PAGE_TOKENS, "bfloat16")
    seconds = []
    for _ in range(2 + repetitions):
        # Made anew: what a backend keeps with a step's rows is made anew in every step too.
        batch = make_batch(decoder, work, PAGE_TOKENS)
        backend.synchronize()
        started = time.perf_counter()
        backend.download(decoder.step(batch, state))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="torch")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--formats", nargs="+", default=["bf16", "int8", "int4"])
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--context", type=int, default=512, help="tokens, at which is decoded")
    parser.add_argument("--prefill", type=int, default=4096, help="tokens; 0: none")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="the short selection of cases only")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
