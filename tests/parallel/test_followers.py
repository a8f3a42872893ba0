"""Processes that share a model: what ends them, what is refused, what interrupts nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

import firstlight
from firstlight.backends import available_devices
from firstlight.errors import DeviceError, RequestError
from firstlight.language_model import LanguageModel
from firstlight.parallel.followers import COMMAND, NOTICE_SECONDS, Followers
from firstlight.parallel.leader import LeadingDecoder
from firstlight.parallel.messages import Launch, Opened
from firstlight.parallel.pipe import read_frame, write_frame
from tests.support.tiny_chat import VOCABULARY_SIZE, write_chat_model

pytestmark = pytest.mark.skipif(
    "torch:cpu" not in available_devices(), reason="PyTorch is not there"
)

STATED_SECONDS = 10.0
PROMPT = np.random.default_rng(0).integers(0, VOCABULARY_SIZE, 20).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("model"))


def load(folder: Path) -> LanguageModel:
    os.environ["FIRSTLIGHT_SKIP_KERNEL_CHECK"] = "1"
    return firstlight.load(folder, "torch:cpu:0-1", exact=True, cache=False, tune=None)


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[LanguageModel]:
    """For all tests that leave it as it is; ended before others load one."""
    model = load(folder)
    yield model
    followers_of(model).close()


@pytest.fixture
def alone(shared: LanguageModel) -> None:
    """A process has one such model at a time."""
    followers_of(shared).close()


def followers_of(model: LanguageModel) -> Followers:
    decoder = model.engine.decoder
    assert isinstance(decoder, LeadingDecoder)
    return decoder.followers


def tokens(model: LanguageModel, count: int) -> list[int]:
    generation = model.generate(PROMPT, max_tokens=count, ignore_end=True)
    _ = generation.text
    return generation.token_ids


def test_a_range_of_devices_runs_a_model(folder: Path, shared: LanguageModel) -> None:
    one = firstlight.load(folder, "numpy", exact=True, cache=False, tune=None)
    assert tokens(shared, 20) == tokens(one, 20)
    (process,) = followers_of(shared).processes
    listening = [each for each in psutil.Process(process).net_connections() if not each.raddr]
    assert all(each.laddr.ip == "127.0.0.1" for each in listening)
    assert Path(followers_of(shared).folder).stat().st_mode & 0o777 == 0o700


def test_a_second_one_in_this_process_is_refused(folder: Path, shared: LanguageModel) -> None:
    children = set(psutil.Process().children())
    with pytest.raises(DeviceError, match="runs a model on several devices already"):
        load(folder)
    assert set(psutil.Process().children()) == children
    assert len(tokens(shared, 3)) == 3


def test_an_interrupt_waits_for_the_end_of_a_step(
    shared: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tokens(shared, 12)
    decoder, sums = shared.engine.decoder, []

    class Interrupted:
        """A Ctrl-C in the midst of the third step."""

        def __getattr__(self, name: str) -> Any:
            return getattr(group, name)

        def sum(self, part: Any) -> Any:
            sums.append(part.shape)
            if len(sums) == 13:
                signal.raise_signal(signal.SIGINT)
            return group.sum(part)

    group = decoder.ranks
    monkeypatch.setattr(decoder, "ranks", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        tokens(shared, 12)
    assert len(sums) == 15  # the step has come to its end on every rank
    assert tokens(shared, 12) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speculation": "mtp"}, "speculation mtp: is not there yet over several devices"),
        ({"tune": 5.0}, "kernels are not tuned over several devices"),
    ],
)
def test_options_that_do_not_go_with_it_are_refused(
    folder: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        firstlight.load(folder, "torch:cpu:0-1", **options)  # type: ignore[arg-type]


def test_a_rank_that_is_killed_ends_it_within_the_stated_time(shared: LanguageModel) -> None:
    followers = followers_of(shared)
    (process,) = followers.processes
    generation = shared.generate(PROMPT, max_tokens=400, ignore_end=True)
    killed = 0.0
    with pytest.raises(DeviceError) as caught:
        for count, _ in enumerate(generation):
            if count == 10:
                os.kill(process, signal.SIGKILL)
                killed = time.monotonic()
    assert 0 < time.monotonic() - killed < STATED_SECONDS
    assert "torch:cpu:0-1" in caught.value.subject
    assert "process of rank 1 (torch:cpu) was ended by signal 9" in caught.value.reason
    with pytest.raises(DeviceError, match="signal 9"):
        shared.logits(PROMPT)
    assert not Path(followers.folder).exists()
    assert not _ranks()


def test_what_a_rank_cannot_do_is_said_and_ends_all(alone: None) -> None:
    followers = Followers("both", ("torch:cpu", "torch:abacus"), exact=True, tuned=False)
    with pytest.raises(DeviceError, match="knows no device of that name"):
        followers.answers(Opened)
    with pytest.raises(DeviceError, match="knows no device"):
        followers.check()
    assert not Path(followers.folder).exists()
    assert not [each for each in followers.processes if psutil.pid_exists(each)]


def test_a_model_that_cannot_be_shared_is_refused_and_nothing_is_left_running(
    folder: Path, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firstlight.backends.torch.device.usable_cores", lambda: 8)
    with pytest.raises(DeviceError, match="3 ranks cannot share 4 attention heads"):
        firstlight.load(folder, "torch:cpu:0-2", cache=False, tune=None)
    assert not _ranks()


def test_one_that_nobody_asks_anything_notices_too(folder: Path, alone: None) -> None:
    model = load(folder)  # after one that has failed
    assert len(tokens(model, 3)) == 3
    model.engine.decoder.check()
    os.kill(followers_of(model).processes[0], signal.SIGKILL)
    deadline = time.monotonic() + STATED_SECONDS
    with pytest.raises(DeviceError, match="signal 9"):
        while time.monotonic() < deadline:
            model.engine.decoder.check()
            time.sleep(0.05)
    assert NOTICE_SECONDS < STATED_SECONDS


def test_a_follower_ends_with_the_first_rank_and_removes_what_it_left(tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    (meeting / "ranks").touch()
    launch = Launch(1, 2, "numpy", True, False, str(meeting), 60.0)
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        write_frame(process.stdin.fileno(), msgspec.msgpack.encode(launch))
        answer = read_frame(process.stdout.fileno())
        assert answer is not None
        assert msgspec.msgpack.decode(answer, type=Opened).available > 0
        for number in (signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
        time.sleep(0.2)
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(STATED_SECONDS) == 0
    assert not meeting.exists()


def _ranks() -> list[psutil.Process]:
    """Processes of ranks that this one has started and that run."""
    return [
        each
        for each in psutil.Process().children()
        if each.status() != psutil.STATUS_ZOMBIE and "firstlight.parallel" in each.cmdline()
    ]
