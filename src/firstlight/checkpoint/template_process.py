"""Talking to the process that renders chat templates, and ending it when it overdoes things."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from firstlight.checkpoint import template_worker

PROCESSOR_SECONDS = 4.0
"""Processor time that rendering may take. Real templates take some milliseconds."""

WALL_SECONDS = 30.0
"""Time by the clock that it may take, on a machine too busy to give it processor time."""

MEMORY_BYTES = 512 << 20

Outcome = Literal["text", "refused", "faulty"]

_OUTCOMES: dict[bytes, Outcome] = {
    template_worker.TEXT: "text",
    template_worker.REFUSED: "refused",
    template_worker.FAULTY: "faulty",
    template_worker.TOO_LARGE: "faulty",
}
# No secret of the parent's environment is given to a process that runs a stranger's program.
_KEPT_ENVIRONMENT = ("SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")


class TemplateProcess:
    """Renders templates in a process of its own, started when first needed.

    Whatever a template does, `render` returns within PROCESSOR_SECONDS of processor time and
    WALL_SECONDS by the clock, and the process has at most MEMORY_BYTES. Where the system cannot
    limit a process's memory (macOS, Windows), it is looked at every 20 ms instead, so it can have
    more than that for a moment.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[..., TemplateProcess] | None = None

    def render(self, source: str, variables: Mapping[str, Any]) -> tuple[Outcome, str]:
        """What became of the template, and the text or, if there is none, why not.

        Args:
            source: a Jinja2 template.
            variables: what `json` can write.

        Raises:
            OSError: no process can be started.
        """
        request = json.dumps({"source": source, "variables": variables}).encode()
        with self._lock:
            process = self._running()
            reply: list[bytes] = []
            asking = threading.Thread(target=_ask, args=(process, request, reply), daemon=True)
            complaint: str | None = "it was interrupted"
            try:
                asking.start()
                complaint = _watch(asking, process)
            finally:
                # After a limit was reached, or with a reply that nobody waited for, the process
                # is of no more use.
                if complaint is not None or not reply or reply[0][:1] == template_worker.TOO_LARGE:
                    self._stop()
        kind = reply[0][:1] if reply and complaint is None else b""
        if kind not in _OUTCOMES:
            return "faulty", complaint or "it broke the process that renders it"
        return _OUTCOMES[kind], reply[0][1:].decode("utf-8", "surrogatepass")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._stop()
        if self._process is None:
            self._process = _start()
            self._finalizer = weakref.finalize(self, _end, self._process)
        return self._process

    def _stop(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._process = self._finalizer = None


def _start() -> subprocess.Popen[bytes]:
    folders = []
    for package in ("jinja2", "markupsafe"):
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"{package} is not installed")
        folders.append(str(Path(spec.origin).parent.parent))
    script = Path(template_worker.__file__)
    return subprocess.Popen(
        # -I and -S: no user's site-packages, no start-up files; some of both are slow.
        [
            *(sys.executable, "-I", "-S", "-B", "-X", "utf8", str(script)),
            *(str(MEMORY_BYTES), str(PROCESSOR_SECONDS)),
            *dict.fromkeys(folders),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ},
        start_new_session=True,  # Ctrl-C in a terminal is for the parent alone
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # a request it never read
                pipe.close()


def _ask(process: subprocess.Popen[bytes], request: bytes, reply: list[bytes]) -> None:
    assert process.stdin is not None and process.stdout is not None
    try:
        template_worker.write_message(process.stdin, request)
        answer = template_worker.read_message(process.stdout)
    except (OSError, ValueError):
        return  # it died, or was ended
    if answer is not None:
        reply.append(answer)


def _watch(asking: threading.Thread, process: subprocess.Popen[bytes]) -> str | None:
    """Waits for the answer, and ends a process that goes over a limit: then says which."""
    asking.join(0.05)
    if not asking.is_alive():
        return None
    import psutil

    complaint = None
    started = time.monotonic()
    try:
        watched = psutil.Process(process.pid)
        before = sum(watched.cpu_times()[:2])
        while asking.is_alive() and complaint is None:
            asking.join(0.02)
            if sum(watched.cpu_times()[:2]) - before > PROCESSOR_SECONDS:
                complaint = f"it was not done after {PROCESSOR_SECONDS:g} s of processor time"
            elif time.monotonic() - started > WALL_SECONDS:
                complaint = f"it was not done after {WALL_SECONDS:g} s"
            elif watched.memory_info().rss > MEMORY_BYTES:
                complaint = f"it needs over {MEMORY_BYTES >> 20} MiB of memory"
    except psutil.Error:
        pass  # it has ended by itself
    if complaint is not None:
        process.kill()
    asking.join()
    return complaint
