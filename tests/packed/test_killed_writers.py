"""Processes that write packed files and are killed, or start at once."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.support.packed_files import KEY, assert_whole, get, names, small_store

ROOT = Path(__file__).parents[2]

# Writes slowly, so that a kill meets every part of it; says when it begins.
_WRITER = """
import sys, time
from pathlib import Path
from tests.support import packed_files as files

def slowly(tensor, out):
    for start in range(0, len(out), 1000):
        out[start:start + 1000] = files.expected(tensor)[start:start + 1000]
        time.sleep(0.002)

print("ready", flush=True)
store = files.small_store(Path(sys.argv[1]))
packed = store.get(files.KEY, "model", files.TENSORS, slowly)
files.assert_whole(packed)
print("whole", flush=True)
"""


def _start(directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(directory)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def _ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


# Forks writers and kills them, so that Python and NumPy are loaded once for all of them.
_KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from tests.support import packed_files as files

directory, moments = Path(sys.argv[1]), random.Random(5)
store, outcomes = files.small_store(directory), []

def slowly(tensor, out):
    for start in range(0, len(out), 1000):
        out[start:start + 1000] = files.expected(tensor)[start:start + 1000]
        time.sleep(0.001)

for _ in range(60):
    writer = os.fork()
    if not writer:
        store.get(files.KEY, "model", files.TENSORS, slowly)
        os._exit(0)
    time.sleep(moments.uniform(0, 0.12))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    left = [name for name in files.names(directory) if not name.startswith(".")]
    assert left in ([], [files.KEY.file_name()]), left
    outcomes.append(bool(left))
    if left:
        packed = store.get(files.KEY, "model", files.TENSORS, files.refuse_to_fill)
        files.assert_whole(packed)
        del packed
        (directory / left[0]).unlink()
print(sum(outcomes), "of", len(outcomes))
"""


def test_killed_at_any_moment_leaves_nothing_or_all(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _KILLER, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) < 60, done.stdout  # most died while they wrote
    assert_whole(get(small_store(tmp_path)))
    assert names(tmp_path) == [KEY.file_name()]


def test_another_process_takes_over_from_one_that_is_killed(tmp_path: Path) -> None:
    first, second = _start(tmp_path), _start(tmp_path)
    _ready(first)
    _ready(second)
    deadline = time.monotonic() + 30
    while not any(name.endswith(".unfinished") for name in names(tmp_path)):
        assert time.monotonic() < deadline
    first.kill()
    out, _ = second.communicate(timeout=60)
    first.wait()
    assert out == "whole\n"
    assert_whole(get(small_store(tmp_path)))


def test_processes_that_start_at_once_all_get_it(tmp_path: Path) -> None:
    processes = [_start(tmp_path) for _ in range(4)]
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert out == "ready\nwhole\n"
        assert process.returncode == 0
    assert names(tmp_path) == [KEY.file_name()]
