"""Packed files are found, made, bounded, and never half there."""

from __future__ import annotations

import errno
import mmap
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.formats.base import Bytes
from firstlight.packed import store as store_module
from firstlight.packed import writer
from firstlight.packed.file import damaged_tensors, open_packed
from firstlight.packed.layout import PackedTensor, place
from firstlight.packed.store import PackedCacheWarning, PackedStore, remove
from tests.support.packed_files import (
    KEY,
    TENSORS,
    assert_whole,
    expected,
    fill,
    get,
    key,
    names,
    refuse_to_fill,
    small_store,
)

FILE_SIZE = place(KEY, "model 0", TENSORS).size


@pytest.fixture(autouse=True)
def no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_made_once_and_found_after_that(tmp_path: Path) -> None:
    store = small_store(tmp_path / "a" / "b")
    assert store.find(KEY, TENSORS) is None
    assert_whole(get(store))
    assert names(store.directory) == [KEY.file_name()]
    assert_whole(store.get(KEY, "another name", TENSORS, refuse_to_fill))
    again = store.find(KEY, TENSORS)
    assert_whole(again)
    assert again is not None and again.header.model == "model None"


def test_arrays_are_aligned_read_only_and_outlive_the_file(tmp_path: Path) -> None:
    packed = get(small_store(tmp_path))
    assert packed is not None
    data = packed.data("tensor 2")
    assert data.ctypes.data % 4096 == 0
    with pytest.raises(ValueError, match="read-only"):
        data[0] = 1
    packed.path.unlink()
    del packed
    assert np.array_equal(data, expected(TENSORS[2]))


def test_each_key_has_a_file_of_its_own(tmp_path: Path) -> None:
    keys = [KEY, replace(KEY, target="q8_0"), replace(KEY, layout="2"), replace(KEY, digest="1")]
    assert len({each.file_name() for each in keys}) == 4
    store = small_store(tmp_path)
    for each in keys:
        store.get(each, "model", TENSORS, fill)
    assert len(names(tmp_path)) == 4


def test_a_file_with_other_tensors_is_made_anew(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    get(store)
    fewer = TENSORS[:2]
    with pytest.warns(PackedCacheWarning, match="other tensors"):
        packed = store.get(KEY, "model", fewer, fill)
    assert packed is not None
    assert [each.tensor for each in packed.header.tensors] == list(fewer)


@settings(max_examples=40)
@given(st.data())
def test_any_damage_before_the_tensors_is_repaired(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = small_store(tmp_path_factory.mktemp("store"))
    packed = get(store)
    assert packed is not None
    _, text = packed.header.encode()
    content = bytearray(packed.path.read_bytes())
    content[data.draw(st.integers(0, 63 + len(text)))] ^= data.draw(st.integers(1, 255))
    packed.path.write_bytes(content)
    with pytest.warns(PackedCacheWarning, match="packed again") as said:
        again = get(store)
    assert len(said) == 1
    assert_whole(again)


@pytest.mark.parametrize("size", [0, 10, 64, 4096, FILE_SIZE - 1, FILE_SIZE + 1])
def test_another_size_is_noticed_and_repaired(tmp_path: Path, size: int) -> None:
    store = small_store(tmp_path)
    packed = get(store)
    assert packed is not None
    path = packed.path
    del packed
    os.truncate(path, size)
    with pytest.warns(PackedCacheWarning, match="packed again"):
        assert_whole(get(store))


def test_verification_finds_the_damaged_tensor(tmp_path: Path) -> None:
    packed = get(small_store(tmp_path))
    assert packed is not None
    with packed.path.open("r+b") as file:
        file.seek(packed.header.tensors[2].offset + 9_999)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([last ^ 1]))
    read: list[int] = []
    assert damaged_tensors(open_packed(packed.path), read.append) == ["tensor 2"]
    assert sum(read) == sum(tensor.nbytes for tensor in TENSORS)


# Interrupted --------------------------------------------------------------------------------


class Interrupted(BaseException):
    """As KeyboardInterrupt, but only ever raised here."""


def _interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Callable[[], int]:
    """Have the step-th call of anything that writing consists of end in an interruption, before or
    after it did its work; gives how many calls there were."""
    calls = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step:
                raise Interrupted
            result = function(*arguments, **named)
            calls += 1
            if calls == step:
                raise Interrupted
            return result

        return call

    class Mapping(mmap.mmap):
        flush = counted(mmap.mmap.flush)
        madvise = counted(mmap.mmap.madvise)
        __setitem__ = counted(mmap.mmap.__setitem__)

    monkeypatch.setattr(writer.mmap, "mmap", Mapping)
    for name in ("ftruncate", "posix_fallocate", "fsync"):
        monkeypatch.setattr(writer.os, name, counted(getattr(os, name)))
    monkeypatch.setattr(writer, "checksum", counted(writer.checksum))
    for name in ("reserve", "write", "lock_shared", "open_packed", "lock_alone"):
        monkeypatch.setattr(store_module, name, counted(getattr(store_module, name)))
    monkeypatch.setattr(Path, "rename", counted(Path.rename))
    return lambda: calls


def test_an_interruption_at_any_step_leaves_nothing_or_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = 0
    for step in range(1, 200):
        directory = tmp_path / str(step)
        store = small_store(directory)
        with monkeypatch.context() as patch:
            calls = _interrupt_at(patch, step)
            try:
                get(store)
                finished = True
            except Interrupted:
                finished = False
        if finished:
            assert calls() < step
            break
        left = [name for name in names(directory) if not name.startswith(".")]
        # Of an unfinished file no more than its name, which the next one to write takes over.
        unfinished = [directory / name for name in names(directory) if name not in left]
        assert all(path.stat().st_size == 0 for path in unfinished)
        if left:
            whole += 1
            assert_whole(store.get(KEY, "model", TENSORS, refuse_to_fill))
        else:
            assert_whole(get(store))
        assert names(directory) == [KEY.file_name()]
    else:
        raise AssertionError("never came to an end")
    assert step > 40
    assert whole > 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
@pytest.mark.parametrize("after", range(len(TENSORS)))
def test_an_exception_while_filling_goes_through(
    tmp_path: Path, error: type[BaseException], after: int
) -> None:
    def failing(tensor: PackedTensor, out: Bytes) -> None:
        if tensor == TENSORS[after] or not tensor.nbytes:
            raise error("half")
        fill(tensor, out)

    store = small_store(tmp_path)
    if TENSORS[after].nbytes:
        with pytest.raises(error, match="half"):
            store.get(KEY, "model", TENSORS, failing)
        assert names(tmp_path) == []
    assert_whole(get(store))


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_writes_is_not(
    tmp_path: Path,
) -> None:
    store = small_store(tmp_path)
    for number in (1, 2):
        (tmp_path / f".{key(number).file_name()[:-7]}.unfinished").write_bytes(bytes(5000))
    living = store_module._claim(tmp_path / f".{key(2).file_name()[:-7]}.unfinished")
    assert living is not None
    get(store, 3)
    assert len(names(tmp_path)) == 2
    os.close(living)
    get(store, 2)  # takes over the abandoned file's name
    assert names(tmp_path) == sorted(key(number).file_name() for number in (2, 3))


# No room ------------------------------------------------------------------------------------


def test_a_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer.os, "posix_fallocate", full)
    with pytest.warns(PackedCacheWarning, match="No space left") as said:
        assert get(small_store(tmp_path)) is None
    assert len(said) == 1
    assert "FIRSTLIGHT_CACHE" in str(said[0].message)
    assert names(tmp_path) == []


def test_without_fallocate_the_room_is_taken_by_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(writer.os, "posix_fallocate")
    assert_whole(get(small_store(tmp_path)))
    monkeypatch.setattr(writer.os, "pwrite", lambda descriptor, data, start: len(data) // 2)
    with pytest.warns(PackedCacheWarning, match="No space left"):
        assert get(small_store(tmp_path), 2) is None
    assert len(names(tmp_path)) == 1


def test_the_disk_keeps_something_to_spare(tmp_path: Path) -> None:
    store = replace(small_store(tmp_path), spare=1 << 60)
    with pytest.warns(PackedCacheWarning, match="disk has not to spare"):
        assert get(store) is None
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(PackedCacheWarning, match="packed weights are not kept"):
        assert get(small_store(tmp_path / "file" / "below")) is None


def test_a_file_over_the_limit_is_not_kept(tmp_path: Path) -> None:
    with pytest.warns(PackedCacheWarning, match="firstlight cache limit"):
        assert get(small_store(tmp_path, limit=FILE_SIZE - 1)) is None
    assert not list(tmp_path.iterdir())
    assert_whole(get(small_store(tmp_path, limit=FILE_SIZE)))


def _used(store: PackedStore, number: int, when: int) -> None:
    os.utime(store.directory / key(number).file_name(), (when, when))


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    store = small_store(tmp_path, limit=3 * FILE_SIZE)
    for number in (1, 2, 3):
        assert get(store, number) is not None
        _used(store, number, 1000 + number)
    _used(store, 1, 2000)
    get(store, 4)
    assert names(tmp_path) == sorted(key(number).file_name() for number in (1, 3, 4))
    get(store, 3)  # found, and so used
    _used(store, 4, 3000)
    get(store, 5)
    assert names(tmp_path) == sorted(key(number).file_name() for number in (3, 4, 5))


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    store = small_store(tmp_path, limit=2 * FILE_SIZE)
    in_use = get(store, 1)
    assert in_use is not None
    data = in_use.data("tensor 1")
    del in_use
    assert [entry.in_use for entry in store.entries()] == [True]
    get(store, 2)
    _used(store, 1, 1000)
    get(store, 3)
    assert names(tmp_path) == sorted(key(number).file_name() for number in (1, 3))
    third = store.find(key(3), TENSORS)
    assert third is not None
    with pytest.warns(PackedCacheWarning, match="in use fills the cache"):
        assert get(store, 4) is None
    assert not remove(tmp_path / key(1).file_name())
    assert np.array_equal(data, expected(TENSORS[1]))
    del data
    assert_whole(get(store, 4))
    assert names(tmp_path) == sorted(key(number).file_name() for number in (3, 4))
    assert third.path.exists()


def test_a_lowered_limit(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    for number in (1, 2, 3):
        get(store, number)
        _used(store, number, 1000 + number)
    replace(store, limit=FILE_SIZE, spare=1 << 60).trim()
    assert names(tmp_path) == [key(3).file_name()]
    small_store(tmp_path / "missing").trim()
    assert not (tmp_path / "missing").exists()


def test_entries(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    assert store.entries() == []
    get(store, 1)
    get(store, 2)
    _used(store, 1, 5000)
    _used(store, 2, 4000)
    (tmp_path / "damaged.packed").write_bytes(b"x" * 100)
    os.utime(tmp_path / "damaged.packed", (3000, 3000))
    (tmp_path / "limit").write_text("5")
    first, second, third = store.entries()
    assert first.header is not None and first.header.model == "model 1"
    assert second.header is not None and second.header.key == key(2)
    assert (first.last_used, first.size, first.in_use) == (5000, FILE_SIZE, False)
    assert third.header is None
    assert "does not begin" in third.problem


# Several at once ----------------------------------------------------------------------------


def test_of_many_that_start_at_once_one_writes(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    filled: list[str] = []
    found: list[Any] = []
    barrier = threading.Barrier(6)

    def counting(tensor: PackedTensor, out: Bytes) -> None:
        filled.append(tensor.name)
        fill(tensor, out)

    def start() -> None:
        barrier.wait()
        found.append(store.get(KEY, "model", TENSORS, counting))

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    for packed in found:
        assert_whole(packed)
    assert sorted(filled) == sorted(tensor.name for tensor in TENSORS if tensor.nbytes)
    assert names(tmp_path) == [KEY.file_name()]


def test_who_waits_in_vain_does_without(tmp_path: Path) -> None:
    store = small_store(tmp_path, patience=0.1)
    other = store_module._claim(tmp_path / f".{KEY.file_name()[:-7]}.unfinished")
    assert other is not None
    with pytest.warns(PackedCacheWarning, match="another process"):
        assert get(store) is None
    os.close(other)
    assert_whole(get(store))


def test_a_writer_that_fails_lets_the_next_one_write(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    started = threading.Event()

    def failing(tensor: PackedTensor, out: Bytes) -> None:
        started.set()
        raise ValueError("half")

    def first() -> None:
        with pytest.raises(ValueError, match="half"):
            store.get(KEY, "model", TENSORS, failing)

    thread = threading.Thread(target=first)
    thread.start()
    assert started.wait(10)
    assert_whole(get(store))
    thread.join()
    assert names(tmp_path) == [KEY.file_name()]
