"""OpenVINO GenAI, by openvino_child.py in the environment that it is installed in."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

# Its nearest to our formats, as `optimum-cli export openvino --weight-format` names them.
_FORMATS = {"bf16": "fp16", "int8": "int8", "int4": "int4"}


class OpenVino:
    """Models exported before, as NAME-ov-FORMAT in one directory.

    Args:
        python: of the environment that has openvino_genai.
        models: the directory.
        threads: as many as firstlight uses.
    """

    name = "OpenVINO"

    def __init__(self, python: Path, models: Path, threads: int) -> None:
        self._python = python
        self._models = models
        self._threads = threads

    def measure(self, name: str, tasks: list[tuple[str, int]]) -> dict[str, Any] | None:
        """Speeds in tokens per second by "kind number"; None where it has no such model."""
        shape, _, format = name.rpartition("-")
        directory = self._models / f"{shape}-ov-{_FORMATS.get(format, format)}"
        if not directory.exists():
            return None
        # Contexts of 16k tokens take it minutes to compute.
        short = [task for task in tasks if task[0] in ("prefill", "decode")]
        program = Path(__file__).with_name("openvino_child.py")
        command = [self._python, program, directory, json.dumps(short), self._threads]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"OpenVINO failed on {name}: {done.stderr.strip()[-2000:]}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
