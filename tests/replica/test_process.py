"""A replica's process by itself: how it begins, and that it always ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
import zmq

from firstlight.replica.messages import (
    LOAD_FAILED,
    Beat,
    Failed,
    FromReplica,
    Hello,
    Launch,
    Ready,
    SequenceRequest,
    Start,
    Steps,
    Stop,
    ToReplica,
)
from tests.support.routers import SOURCE, options
from tests.support.tiny_chat import write_chat_model


class Server:
    """The server's end of the socket, and one replica's process."""

    def __init__(self, folder: Path, cores: list[int] | None = None) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        launch = Launch(
            f"tcp://127.0.0.1:{port}", "secret", "numpy-1", "numpy", options(folder), cores
        )
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "firstlight.replica"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(SOURCE), "FIRSTLIGHT_SKIP_KERNEL_CHECK": "1"},
        )
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(launch) + b"\n")
        self.process.stdin.flush()
        self.route = b""

    def receive(self, seconds: float = 30.0) -> FromReplica:
        assert self.socket.poll(round(1000 * seconds)), "no message"
        self.route, data = self.socket.recv_multipart()
        return msgspec.msgpack.decode(data, type=FromReplica)

    def receive_a(self, kind: type) -> FromReplica:
        while True:
            message = self.receive()
            if isinstance(message, kind):
                return message
            assert isinstance(message, Beat | Hello)

    def send(self, message: ToReplica) -> None:
        self.socket.send_multipart((self.route, msgspec.msgpack.encode(message)))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        self.socket.close(linger=0)
        self.context.term()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    yield server
    server.close()


def test_from_hello_to_stop(server: Server) -> None:
    assert server.receive() == Hello("secret")
    ready = server.receive_a(Ready)
    assert isinstance(ready, Ready)
    assert (ready.context_length, ready.vocabulary_size) == (512, 260)
    assert 0 < ready.step_seconds < 60
    beat = server.receive_a(Beat)
    assert isinstance(beat, Beat)
    assert beat.statistics.steps == 0  # warming up is nobody's work
    assert beat.statistics.free_pages == beat.statistics.pages > 0
    server.send(Start(1, SequenceRequest([1, 2], max_tokens=2)))
    indices = []
    while len(indices) < 2:
        steps = server.receive_a(Steps)
        assert isinstance(steps, Steps)
        indices += [token.index for token in steps.tokens]
    assert indices == [0, 1]
    server.send(Stop())
    assert server.process.wait(20) == 0
    assert server.process.stderr is not None
    assert server.process.stderr.read() == b""


def test_it_ends_with_the_server_and_not_by_signals_that_are_for_the_server(
    server: Server,
) -> None:
    server.receive_a(Ready)
    for number in (signal.SIGINT, signal.SIGTERM):
        server.process.send_signal(number)
    server.receive_a(Beat)
    server.receive_a(Beat)
    assert server.process.poll() is None
    assert server.process.stdin is not None
    server.process.stdin.close()
    assert server.process.wait(20) == 0


def test_it_says_why_a_model_cannot_be_loaded(tmp_path: Path) -> None:
    server = Server(tmp_path / "missing")
    try:
        failed = server.receive_a(Failed)
        assert isinstance(failed, Failed)
        assert "missing" in failed.subject and failed.reason and failed.remedy
        assert server.process.wait(20) == LOAD_FAILED
    finally:
        server.close()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no cores to keep to here")
def test_it_keeps_to_its_cores(folder: Path) -> None:
    core = min(os.sched_getaffinity(0))
    server = Server(folder, [core])
    try:
        server.receive_a(Ready)
        assert psutil.Process(server.process.pid).cpu_affinity() == [core]
    finally:
        server.close()


_SERVER = """
import asyncio, sys
from firstlight.replica.messages import ModelOptions
from firstlight.server.router import Router
async def main():
    router = Router({"m": ModelOptions(sys.argv[1], cache=False, tune=None)}, ["numpy", "numpy"])
    await router.start()
    print(*[each.process.pid for each in await started(router)], router._socket.address, flush=True)
    await router.wait_ready()
    await asyncio.sleep(1000)
async def started(router):
    while not all(each.process for each in router.supervised):
        await asyncio.sleep(0.01)
    return router.supervised
asyncio.run(main())
"""


def test_no_replica_outlives_a_server_that_is_killed(folder: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(folder)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "FIRSTLIGHT_SKIP_KERNEL_CHECK": "1"},
    )
    try:
        assert server.stdout is not None
        *numbers, address = server.stdout.readline().split()
        replicas = [psutil.Process(int(number)) for number in numbers]
        assert len(replicas) == 2
        directory = None
        if address.startswith(b"ipc://"):
            directory = Path(address[len(b"ipc://") :].decode()).parent
            assert directory.stat().st_mode & 0o777 == 0o700
        time.sleep(1.0)
    finally:
        server.kill()
        server.communicate()
    gone, alive = psutil.wait_procs(replicas, timeout=20)
    assert len(gone) == 2 and not alive
    assert directory is None or not directory.exists()
