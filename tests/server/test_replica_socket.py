"""The socket towards replicas: who may speak on it, and what of theirs is taken."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import zmq

from firstlight.replica.messages import Beat, FromReplica, Hello, Stop
from firstlight.server.replica_socket import ReplicaSocket
from tests.support.routers import until

Test = Callable[[ReplicaSocket, zmq.Context[zmq.Socket[bytes]]], Awaitable[None]]


def with_socket(test: Test) -> None:
    async def run() -> None:
        socket = ReplicaSocket()
        context = zmq.Context()
        try:
            await test(socket, context)
        finally:
            context.destroy(linger=0)
            socket.close()
            socket.close()

    asyncio.run(run())


def connected(context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    socket.connect(address)
    return socket


def say(socket: zmq.Socket[bytes], message: FromReplica) -> None:
    socket.send(msgspec.msgpack.encode(message))


@pytest.mark.parametrize("local", [True, False])
def test_only_who_knows_the_key_is_heard(local: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not local:
        monkeypatch.setattr(zmq, "has", lambda capability: False)
    elif not zmq.has("ipc"):
        pytest.skip("no local sockets here")

    async def run(socket: ReplicaSocket, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        assert socket.address.startswith("ipc:///" if local else "tcp://127.0.0.1:")
        heard: list[FromReplica] = []
        peer = socket.expect(heard.append)
        stranger = connected(context, socket.address)
        say(stranger, Beat())
        say(stranger, Hello("guess"))
        say(stranger, Beat())
        replica = connected(context, socket.address)
        say(replica, Hello(peer.key))
        say(replica, Beat())
        await until(lambda: len(heard) == 1)
        # A key is good once.
        say(stranger, Hello(peer.key))
        say(stranger, Beat())
        peer.send(Stop())
        await until(lambda: bool(replica.poll(0)))
        assert msgspec.msgpack.decode(replica.recv(), type=Stop) == Stop()
        assert not stranger.poll(50)
        assert heard == [Beat()]

    with_socket(run)


def test_what_is_no_message_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    async def run(socket: ReplicaSocket, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        heard: list[FromReplica] = []
        peer = socket.expect(heard.append)
        replica = connected(context, socket.address)
        for nonsense in (b"", b"\xc1", b"\x81\xa4type\xa4spam", b"\xff" * 1000):
            replica.send(nonsense)
        replica.send_multipart([b"two", b"frames"])
        say(replica, Hello(peer.key))
        replica.send(b"\xc1")
        say(replica, Beat())
        await until(lambda: heard == [Beat()])

    with_socket(run)
    assert caplog.text.count("no replica") == 6


def test_a_peer_that_is_forgotten_is_heard_no_more() -> None:
    async def run(socket: ReplicaSocket, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        heard: list[FromReplica] = []
        peer = socket.expect(heard.append)
        replica = connected(context, socket.address)
        say(replica, Hello(peer.key))
        say(replica, Beat())
        await until(lambda: len(heard) == 1)
        peer.forget()
        say(replica, Beat())
        other: list[FromReplica] = []
        successor = connected(context, socket.address)
        say(successor, Hello(socket.expect(other.append).key))
        say(successor, Beat())
        await until(lambda: len(other) == 1)
        assert len(heard) == 1
        replica.close(linger=0)
        peer.send(Stop())  # to nobody

    with_socket(run)


def test_many_messages_come_in_order_between_other_work() -> None:
    async def run(socket: ReplicaSocket, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        heard: list[FromReplica] = []
        peer = socket.expect(heard.append)
        replica = connected(context, socket.address)
        say(replica, Hello(peer.key))
        for number in range(900):
            say(replica, Hello(str(number)))
        await until(lambda: len(heard) == 900)
        assert heard == [Hello(str(number)) for number in range(900)]

    with_socket(run)


def test_its_directory_is_for_this_user_alone_and_goes_with_it() -> None:
    if not zmq.has("ipc"):
        pytest.skip("no local sockets here")
    directories: list[Path] = []

    async def run(socket: ReplicaSocket, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        directories.append(Path(socket.address.removeprefix("ipc://")).parent)
        assert directories[0].stat().st_mode & 0o777 == 0o700

    with_socket(run)
    assert not directories[0].exists()
