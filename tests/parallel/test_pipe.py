"""Messages over a pipe: whole, however large, and never waited for without end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from firstlight.parallel.pipe import read_frame, write_frame


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


@pytest.mark.parametrize("seconds", [None, 30.0])
def test_messages_come_whole_and_in_order(pipe: tuple[int, int], seconds: float | None) -> None:
    read, write = pipe
    os.set_blocking(write, seconds is None)
    messages = [b"", b"a", bytes(range(256)) * 4096, b"end"]

    def send() -> None:
        for message in messages:
            write_frame(write, message, seconds)
        os.close(write)

    sender = threading.Thread(target=send)
    sender.start()
    received = []
    while (message := read_frame(read)) is not None:
        received.append(message)
    sender.join()
    assert received == messages


def test_a_reader_that_is_gone_is_an_error(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.close(read)
    with pytest.raises(OSError, match="pipe"):
        write_frame(write, b"message")


def test_a_reader_that_does_not_read_is_not_waited_for_forever(pipe: tuple[int, int]) -> None:
    _, write = pipe
    os.set_blocking(write, False)
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        write_frame(write, bytes(1 << 20), 0.1)
    assert time.monotonic() - started < 30


def test_half_a_message_is_none(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.write(write, (5).to_bytes(4, "little") + b"abc")
    os.close(write)
    assert read_frame(read) is None
