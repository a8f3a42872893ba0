"""Servers of firstlight and its peers, as commands; OpenVINO GenAI has none and is a program."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from firstlight.benchmark.load import Load, Record
from firstlight.benchmark.prompts import Prompt

_START_SECONDS = 600.0
_STOP_SECONDS = 30.0


@dataclass(frozen=True)
class Command:
    """A server that listens on a loopback port.

    Attributes:
        words: its command; "{port}" stands for the port.
        ready: a path that answers 200 once requests can be taken.
        environment: added to this process's own.
    """

    words: tuple[str, ...]
    ready: str
    environment: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def running(self) -> Iterator[str]:
        """Start it, give its address, and end it.

        Raises:
            RuntimeError: it ended, or was not ready in ten minutes.
        """
        port = _free_port()
        words = [word.format(port=port) for word in self.words]
        url = f"http://127.0.0.1:{port}"
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                words,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )
            try:
                self._wait(process, url)
                yield url
            except RuntimeError as error:
                log.seek(0)
                raise RuntimeError(f"{error}\n{log.read()[-3000:].decode()}") from None
            finally:
                _end(process)

    def _wait(self, process: subprocess.Popen[bytes], url: str) -> None:
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until:
            if process.poll() is not None:
                raise RuntimeError(f"{self.words[0]} ended with {process.returncode}")
            try:
                with urllib.request.urlopen(url + self.ready, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.25)
        raise RuntimeError(f"{self.words[0]} was not ready in {_START_SECONDS:.0f} s")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    with suppress(ProcessLookupError):  # its children as well
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def firstlight_server(model: str, weights: str | None, context: int) -> Command:
    """firstlight with a context of that many tokens."""
    words = [sys.executable, "-m", "firstlight", "serve", model, "--port", "{port}"]
    words += ["--context", str(context)]
    if weights is not None:
        words += ["--weights", weights]
    return Command(tuple(words), "/ready")


def llama_server(program: str, model: str, context: int, most: int, threads: int) -> Command:
    """llama.cpp's server with a slot for each request; separate caches are its faster way."""
    words = (program, "-m", model, "--port", "{port}", "--host", "127.0.0.1", "-fa", "on")
    words += ("-t", str(threads), "-tb", str(threads), "-np", str(most), "-c", str(context * most))
    words += ("-b", "2048", "-ub", "512", "--no-kv-unified", "--no-warmup", "--no-webui")
    return Command(words, "/health")


def vllm_server(python: str, model: str, context: int, most: int, threads: int) -> Command:
    """vLLM for processors, in bfloat16 and without prefix caching, as the others meet no prefix
    twice either."""
    words = (python, "-m", "vllm.entrypoints.openai.api_server", "--model", model)
    words += ("--host", "127.0.0.1", "--port", "{port}", "--dtype", "bfloat16")
    words += ("--max-model-len", str(context), "--max-num-seqs", str(most))
    words += ("--max-num-batched-tokens", "2048", "--no-enable-prefix-caching")
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return Command(words, "/health", environment)


@dataclass(frozen=True)
class OpenVinoPipeline:
    """OpenVINO GenAI's continuous batching, driven by openvino_load.py without any HTTP."""

    python: str
    model: str
    threads: int

    def run(self, loads: list[tuple[Load, list[Prompt]]], output_tokens: int) -> list[list[Record]]:
        """Records of each load's requests.

        Raises:
            RuntimeError: the program failed.
        """
        plan = [{"concurrency": load.concurrency, "prompts": prompts} for load, prompts in loads]
        program = Path(__file__).with_name("openvino_load.py")
        done = subprocess.run(
            [self.python, program, self.model, str(output_tokens), str(self.threads)],
            input=json.dumps(plan),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"OpenVINO failed: {done.stderr.strip()[-2000:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        return [[Record(**each) for each in records] for records in found]
