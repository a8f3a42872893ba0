"""Large arrays that begin where huge pages do."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstlight.host.huge_pages import HUGE_PAGE_BYTES, SMALL_BYTES, ask_for_huge_pages, zeros

on_linux = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="asks for nothing here")


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize("shape", [(0, 3), (7, 5), (1 << 20, 3), (259, 64, 2, 64)])
def test_zeros_that_can_be_written(shape: tuple[int, ...], dtype: Any) -> None:
    array = zeros(shape, dtype)
    assert array.shape == shape and array.dtype == dtype
    assert array.flags.c_contiguous and array.flags.writeable
    assert not array.any()
    array[...] = 3
    assert (array == 3).all()


@on_linux
def test_a_large_array_has_huge_pages_after_its_beginning() -> None:
    for i in range(1, 4):
        array = zeros((HUGE_PAGE_BYTES + SMALL_BYTES * i,), np.uint8)
        assert (array.ctypes.data + SMALL_BYTES) % HUGE_PAGE_BYTES == 0
        array[-1] = 1


@on_linux
@pytest.mark.parametrize("written, expected", [(1, 4096), (SMALL_BYTES + 1, HUGE_PAGE_BYTES)])
def test_writing_the_beginning_takes_little_memory(written: int, expected: int) -> None:
    if "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        pytest.skip("the system gives no huge pages")

    def taken() -> int:
        status = Path("/proc/self/smaps_rollup").read_text()
        return int(status.partition("Anonymous:")[2].split()[0]) << 10

    arrays = [zeros((4 * HUGE_PAGE_BYTES,), np.uint8) for _ in range(8)]
    before = taken()
    for array in arrays:
        array[written - 1] = 1
    assert abs(taken() - before - 8 * expected) < 1 << 20


@on_linux
def test_memory_goes_with_the_array() -> None:
    def mappings() -> int:
        return len(Path("/proc/self/maps").read_text().splitlines())

    before = mappings()
    for _ in range(50):
        zeros((2 * HUGE_PAGE_BYTES,), np.uint16)
    assert mappings() < before + 20


def test_a_system_that_refuses_gives_an_ordinary_array(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError("no memory of this kind")

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert not zeros((2 * HUGE_PAGE_BYTES,), np.uint16).any()


@on_linux
def test_a_mapped_file_is_marked(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(HUGE_PAGE_BYTES))
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    ask_for_huge_pages(mapping)
    about = Path("/proc/self/smaps").read_text().partition(str(path))[2]
    flags = about.partition("VmFlags:")[2].partition("\n")[0].split()
    built_with_huge_pages = Path("/sys/kernel/mm/transparent_hugepage").exists()
    assert ("hg" in flags) == built_with_huge_pages
