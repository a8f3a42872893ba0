"""OpenVINO GenAI under load: run by the Python it is installed for, which need not have firstlight.

python bench/openvino_load.py MODEL_DIRECTORY OUTPUT_TOKENS THREADS < PLAN, where PLAN is a JSON
list of {"concurrency", "prompts" (lists of token ids)}; prints one JSON line: for each load a
record a request, with the fields of firstlight's `Record`.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from openvino_child import open_pipeline


def main() -> None:
    path, output_tokens, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    plan = json.load(sys.stdin)
    pipeline = open_pipeline(path, threads)
    _run(pipeline, [list(range(32))] * 2, 2, 8)
    found = [_run(pipeline, load["prompts"], load["concurrency"], output_tokens) for load in plan]
    print(json.dumps(found))


def _run(
    pipeline: Any, prompts: list[list[int]], concurrency: int, tokens: int
) -> list[dict[str, Any]]:
    config = genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = tokens
    config.ignore_eos = True
    config.do_sample = False
    waiting = list(enumerate(prompts))[::-1]
    records: list[dict[str, Any]] = [{} for _ in prompts]
    live: dict[int, Any] = {}  # handles: a request whose handle is gone is given up
    while waiting or live:
        while waiting and len(live) < concurrency:
            number, ids = waiting.pop()
            records[number] = {
                "arrived": time.monotonic(),
                "tokens_at": [],
                "prompt_tokens": len(ids),
                "output_tokens": 0,
            }
            tensor = ov.Tensor(np.array([ids], np.int64))
            live[number] = pipeline.add_request(number, tensor, config)
        pipeline.step()
        now = time.monotonic()
        for number, handle in list(live.items()):
            record = records[number]
            while handle.can_read():
                for output in handle.read().values():
                    record["tokens_at"] += [now] if output.generated_ids else []
                    record["output_tokens"] += len(output.generated_ids)
            if record["output_tokens"] >= tokens:
                record["ended"] = now
                del live[number]
    while pipeline.has_non_finished_requests():
        pipeline.step()
    return records


if __name__ == "__main__":
    main()
