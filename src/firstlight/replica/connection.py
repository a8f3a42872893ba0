"""A replica's end of the socket."""

from __future__ import annotations

import threading

import msgspec
import zmq

from firstlight.replica.messages import Beat, FromReplica, Hello, ToReplica

BEAT_SECONDS = 1.0


class Connection:
    """Messages to and from the server, whole and in order.

    Sending waits while more than a thousand messages are on their way, so that a server that has
    stopped reading stops the engine, and not this machine's memory.

    Args:
        address: of the server's socket.
        key: that the server expects.
    """

    def __init__(self, address: str, key: str) -> None:
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(address)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToReplica)
        self.send(Hello(key))

    def send(self, message: FromReplica) -> None:
        self._socket.send(self._encoder.encode(message))

    def receive(self, wait: float) -> list[ToReplica]:
        """Every message that is there; where there is none, waits up to so many seconds for one."""
        messages: list[ToReplica] = []
        if self._socket.poll(max(0, round(wait * 1000))):
            try:
                while True:
                    messages.append(self._decoder.decode(self._socket.recv(zmq.NOBLOCK)))
            except zmq.Again:
                pass
        return messages

    def close(self, seconds: float) -> None:
        """Close it, waiting up to so many seconds until what was sent is gone."""
        self._socket.close(linger=round(seconds * 1000))
        self._context.term()


class BeatsMeanwhile:
    """Sends beats from another thread while the block runs; nothing else may be sent in it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="beats", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            self._connection.send(Beat())
