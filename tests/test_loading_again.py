"""A model that is dropped gives back what it took from the system."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import psutil
import pytest

import firstlight
from firstlight import packing
from tests.support.tiny_chat import write_chat_model

TIMES = 50


def held() -> tuple[int, int]:
    """(open descriptors, threads) of this process."""
    process = psutil.Process()
    return process.num_fds(), process.num_threads()


async def _stream(model: firstlight.LanguageModel) -> None:
    async with contextlib.aclosing(model.stream("abc", max_tokens=2)) as pieces:
        async for _ in pieces:
            pass


def _use(folder: Path, device: str) -> None:
    model = firstlight.load(folder, device, weights="int8", use="chat")
    assert len(model.generate([1, 2, 3], max_tokens=2, ignore_end=True).token_ids) == 2
    model.generate("abc")  # and is dropped unfinished
    asyncio.run(_stream(model))


@pytest.mark.skipif(not hasattr(psutil.Process, "num_fds"), reason="no descriptors here")
@pytest.mark.parametrize("device", ["cpu", "numpy"])
def test_fifty_models_one_after_another(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packing, "WORTH_KEEPING_CONVERTED", 1)  # so packed files are mapped too
    folder = write_chat_model(tmp_path / "model")
    for _ in range(2):  # what is made once in a process is made now
        _use(folder, device)
    assert list((tmp_path / "cache" / "packed").glob("*.packed"))
    before = held()
    for _ in range(TIMES):
        _use(folder, device)
    descriptors, threads = held()
    # A few may be on their way out: a stream's thread ends by itself once its model is gone.
    assert descriptors <= before[0] + 5
    assert threads <= before[1] + 5
