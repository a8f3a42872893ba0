"""Parts of mapped files that are held in memory: files changed underneath show what is a copy."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from firstlight.formats.base import Bytes
from firstlight.host.disk import read_speed
from firstlight.host.mapping import PAGE_BYTES, can_hold, hold, let_go, map_file

PAGES = 64
needs_linux = pytest.mark.skipif(not can_hold(), reason="parts of files are held on Linux only")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[tuple[int, Bytes]]:
    """A descriptor to write with, and the mapped content."""
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).bytes(PAGES * PAGE_BYTES))
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor, np.frombuffer(map_file(descriptor, PAGES * PAGE_BYTES), np.uint8)
    os.close(descriptor)


def test_a_mapped_file_is_read_only_and_its_content(file: tuple[int, Bytes]) -> None:
    descriptor, content = file
    assert content.tobytes() == os.pread(descriptor, PAGES * PAGE_BYTES, 0)
    assert not content.flags.writeable


@needs_linux
def test_held_pages_are_copies_until_they_are_let_go(file: tuple[int, Bytes]) -> None:
    descriptor, content = file
    before = content.copy()
    first, last = 3 * PAGE_BYTES, 17 * PAGE_BYTES
    # Only whole pages within the part.
    held = hold(content.ctypes.data + first - 5, last - first + 9)
    assert held == last - first
    np.testing.assert_array_equal(content, before)
    after = 255 - before
    os.pwrite(descriptor, after.tobytes(), 0)
    expected = after.copy()
    expected[first:last] = before[first:last]
    np.testing.assert_array_equal(content, expected)
    let_go(content.ctypes.data + first, last - first)
    np.testing.assert_array_equal(content, after)


@needs_linux
def test_held_pages_cannot_be_written_by_mistake(file: tuple[int, Bytes]) -> None:
    _, content = file
    address = content.ctypes.data
    hold(address, PAGE_BYTES)
    maps = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[:2] for line in maps]
    for span, rights in ranges:
        start, stop = (int(part, 16) for part in span.split("-"))
        if start <= address < stop:
            assert rights.startswith("r--")
            return
    raise AssertionError("not mapped")


@needs_linux
def test_what_is_held_is_no_longer_the_files(file: tuple[int, Bytes]) -> None:
    def anonymous() -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        (line,) = (each for each in lines if each.startswith("Anonymous:"))
        return 1024 * int(line.split()[1])

    _, content = file
    size = PAGES * PAGE_BYTES
    before = anonymous()
    hold(content.ctypes.data, size)
    assert anonymous() >= before + size
    let_go(content.ctypes.data, size)
    assert anonymous() < before + size


def test_less_than_a_page_is_left_as_it_is(file: tuple[int, Bytes]) -> None:
    _, content = file
    assert hold(content.ctypes.data + 1, PAGE_BYTES) == 0
    let_go(content.ctypes.data + 1, PAGE_BYTES)


def test_a_mapping_outlives_its_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * mmap.PAGESIZE)
    descriptor = os.open(path, os.O_RDONLY)
    mapping = map_file(descriptor, mmap.PAGESIZE)
    os.close(descriptor)
    assert mapping[:3] == b"xxx"


def test_reading_speed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(9 << 20))
    speed = read_speed(path)
    assert speed is None or 1e3 < speed < 1e13
    path.write_bytes(bytes(1000))
    assert read_speed(path) is None  # too small to tell
    assert read_speed(tmp_path / "none") is None
