"""Ranks of one model as threads of one process: how a model is divided, apart from any library."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from firstlight.ops import Ops

Result = TypeVar("Result")
_PATIENCE = 60.0


class _Meeting:
    """Where every rank leaves its part, and takes what all have left."""

    def __init__(self, ranks: int) -> None:
        self.parts: list[Any] = [None] * ranks
        self.barrier = threading.Barrier(ranks, timeout=_PATIENCE)


class ThreadCollective:
    """A `Collective` of one thread, over arrays of the host."""

    def __init__(self, rank: int, ops: Ops, meeting: _Meeting) -> None:
        self._rank = rank
        self._ops = ops
        self._meeting = meeting

    def sum(self, part: Any) -> Any:
        return self._ops.upload(np.sum(self._exchange(part), axis=0, dtype=np.float32))

    def join_columns(self, part: Any, widths: Sequence[int]) -> Any:
        assert part.shape[1] == widths[self._rank]
        return self._ops.upload(np.concatenate(self._exchange(part), axis=1))

    def _exchange(self, part: Any) -> list[Any]:
        meeting = self._meeting
        meeting.parts[self._rank] = self._ops.download(part)
        meeting.barrier.wait()
        parts = list(meeting.parts)
        meeting.barrier.wait()
        return parts


def on_ranks(
    ranks: int, make_ops: Callable[[], Ops], run: Callable[[int, Ops, ThreadCollective], Result]
) -> list[Result]:
    """What each rank's `run` gives."""
    meeting = _Meeting(ranks)

    def one(rank: int) -> Result:
        ops = make_ops()
        try:
            return run(rank, ops, ThreadCollective(rank, ops, meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(one, range(ranks)))
