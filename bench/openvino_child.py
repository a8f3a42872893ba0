"""OpenVINO GenAI, timed: run by the Python it is installed for, which need not have firstlight.

python bench/openvino_child.py MODEL_DIRECTORY TASKS THREADS, prints one JSON line.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

CONTEXT = 16
STEPS = 24
PROMPTS = 3


def main() -> None:
    path, tasks, threads = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    started = time.perf_counter()
    pipeline = open_pipeline(path, threads)
    result: dict[str, Any] = {"load_seconds": time.perf_counter() - started, "speeds": {}}
    _run(pipeline, 1, 32, 8)
    for kind, number in tasks:
        if kind == "prefill":
            speed = number / statistics.median(
                _run(pipeline, 1, number, 1)[0] for _ in range(PROMPTS)
            )
        elif kind == "decode":
            speed = number / statistics.median(_run(pipeline, number, CONTEXT, STEPS)[1:])
        else:
            speed = 1 / statistics.median(_run(pipeline, 1, number, 12)[-11:])
        result["speeds"][f"{kind} {number}"] = speed
    print(json.dumps(result))


def open_pipeline(path: str, threads: int) -> Any:
    """A pipeline that batches up to 64 requests and shares no prefixes."""
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 2
    scheduler.max_num_batched_tokens = 2048
    scheduler.max_num_seqs = 64
    scheduler.enable_prefix_caching = False
    properties = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    return genai.ContinuousBatchingPipeline(path, scheduler, "CPU", properties)


def _run(pipeline: Any, sequences: int, prompt: int, tokens: int) -> list[float]:
    """Seconds of the steps: until all prompts are done, then each that decodes."""
    config = genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = tokens
    config.ignore_eos = True
    config.do_sample = False
    generator = np.random.default_rng(0)
    handles = []  # a request whose handle is gone is given up
    for i in range(sequences):
        ids = generator.integers(0, 100_000, (1, prompt)).astype(np.int64)
        handles.append(pipeline.add_request(i, ov.Tensor(ids), config))
    times = [time.perf_counter()]
    while pipeline.has_non_finished_requests():
        pipeline.step()
        times.append(time.perf_counter())
    steps = len(times) - 1
    first = steps - (tokens - 1)  # those that decode are the last
    return [times[first] - times[0], *np.diff(times[first:]).tolist()]


if __name__ == "__main__":
    main()
