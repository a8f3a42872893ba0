"""The server's end of the socket that every replica connects to."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from firstlight.replica.messages import FromReplica, Hello, ToReplica

log = logging.getLogger("firstlight.server")

Receive = Callable[[FromReplica], None]

# The longest path of a local socket is 104 to 108 bytes, by system.
_LONGEST_PATH = 100
_LARGEST_MESSAGE = 1 << 28
_AT_A_TIME = 64
_ALL_AT_ONCE = 4096


class Peer:
    """One replica's process on the socket, from when it is expected until it is forgotten."""

    def __init__(self, socket: ReplicaSocket, receive: Receive) -> None:
        self.key = secrets.token_hex(32)
        self.receive = receive
        self.route: bytes | None = None
        self._socket = socket

    def send(self, message: ToReplica) -> None:
        """Send a message; lost where the process is gone, which is then seen elsewhere."""
        if self.route is not None:
            self._socket.send(self.route, message)

    def forget(self) -> None:
        """Take no message of it from now on, those that have come already included."""
        self._socket.forget(self)


class ReplicaSocket:
    """Messages from and to the replicas, on the running event loop.

    The socket is a file in a directory that only this user can enter, or a port of the loopback
    interface where there are no such sockets. Messages count only from a process that has said
    the key it was given.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.set(zmq.LINGER, 0)
        # What waits for a replica is bounded by the requests that the router takes.
        self._socket.set(zmq.SNDHWM, 0)
        self._socket.set(zmq.ROUTER_MANDATORY, 1)
        self._socket.set(zmq.MAXMSGSIZE, _LARGEST_MESSAGE)
        self._directory: Path | None = None
        self.address = self._bind()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromReplica)
        self._expected: dict[str, Peer] = {}
        self._peers: dict[bytes, Peer] = {}
        self._notices = int(self._socket.get(zmq.FD))
        self._loop.add_reader(self._notices, self._take_some)

    def expect(self, receive: Receive) -> Peer:
        """A peer whose key a process that is about to start is given.

        Args:
            receive: called with each message that the process sends after its `Hello`.
        """
        peer = Peer(self, receive)
        self._expected[peer.key] = peer
        return peer

    def send(self, route: bytes, message: ToReplica) -> None:
        try:
            self._socket.send_multipart((route, self._encoder.encode(message)), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            log.debug("message to a replica that is gone: %s", error)
        # Sending may take the notice that there is something to read.
        self._loop.call_soon(self._take_some)

    def take_all(self) -> None:
        """Take in now whatever has come, as when the process that sent it has ended."""
        for _ in range(_ALL_AT_ONCE):
            if not self._take():
                return

    def forget(self, peer: Peer) -> None:
        self._expected.pop(peer.key, None)
        if peer.route is not None:
            self._peers.pop(peer.route, None)

    def close(self) -> None:
        if self._socket.closed:
            return
        self._loop.remove_reader(self._notices)
        self._socket.close(linger=0)
        self._context.term()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _bind(self) -> str:
        if zmq.has("ipc"):
            self._directory = Path(tempfile.mkdtemp(prefix="firstlight-"))  # for this user only
            path = self._directory / "replicas"
            if len(os.fsencode(path)) <= _LONGEST_PATH:
                self._socket.bind(f"ipc://{path}")
                return f"ipc://{path}"
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        return f"tcp://127.0.0.1:{port}"

    def _take_some(self) -> None:
        """Take in some messages. The system tells of the first of several only, so whatever is left
        is taken in the loop's next round, others having had their turn."""
        for _ in range(_AT_A_TIME):
            if not self._take():
                return
        self._loop.call_soon(self._take_some)

    def _take(self) -> bool:
        """Take in a message; False where there is none."""
        if self._socket.closed:
            return False
        try:
            frames = self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._handle(frames)
        return True

    def _handle(self, frames: list[bytes]) -> None:
        route = frames[0]
        peer = self._peers.get(route)
        try:
            if len(frames) != 2:
                raise msgspec.DecodeError(f"{len(frames)} frames")
            message = self._decoder.decode(frames[1])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("message from a process that is no replica: %s", error)
            return
        if peer is not None:
            peer.receive(message)
        elif isinstance(message, Hello):
            # Looked up by a hash, so the time tells nothing of the key.
            known = self._expected.pop(message.key, None)
            if known is None:
                log.warning("a process that nobody has started wants to be a replica")
                return
            known.route = route
            self._peers[route] = known
