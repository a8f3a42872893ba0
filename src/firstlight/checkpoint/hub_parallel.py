"""Work on several files of a hub at once, ended as a whole when one of them fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from firstlight.checkpoint.hub_cache import HubFile


class Stopped(Exception):
    """The work was given up because another part of it failed."""


def in_parallel(
    files: Sequence[HubFile], work: Callable[[HubFile, threading.Event], None], workers: int
) -> None:
    """Do `work` for each file, a few at a time; the first failure stops the others and is raised.

    Large files go first, so that the last ones to finish are small.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(workers) as pool:
        try:
            ordered = sorted(files, key=lambda file: file.size, reverse=True)
            futures = [pool.submit(work, file, stop) for file in ordered]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            # Also when the user interrupts: the threads end at their next piece of a file.
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    failures = [f.exception() for f in futures if f.done() and not f.cancelled()]
    for failure in failures:
        if failure is not None and not isinstance(failure, Stopped):
            raise failure
