"""`firstlight serve`, as it is run: a process, OpenAI's client, and a signal at the end."""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import firstlight
from firstlight.cli.serve import add_arguments, model_names, run
from firstlight.errors import RequestError
from firstlight.server.router import Router
from tests.support.command import Commands, assert_refused
from tests.support.tiny_chat import write_chat_model

SOURCE = Path(firstlight.__file__).parent.parent


class Served:
    """A server in a process of its own, which logs JSON."""

    def __init__(self, *words: object) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "firstlight", "serve", *map(str, words)),
                *("--port", "0", "--log-format", "json", "--no-cache", "--no-tune"),
            ],
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(SOURCE),
                "FIRSTLIGHT_SKIP_KERNEL_CHECK": "1",
                "HF_HUB_OFFLINE": "1",
            },
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.log: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.put(line)

    def see(self, start: str) -> dict[str, Any]:
        """Wait for a line whose event starts like this."""
        while True:
            line = self.lines.get(timeout=60)
            if line.startswith("{"):
                self.log.append(json.loads(line))
                if self.log[-1]["event"].startswith(start):
                    return self.log[-1]

    def url(self) -> str:
        return str(self.see("Ready at ")["event"]).removeprefix("Ready at ")

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def start(*words: object) -> Served:
        started.append(Served(*words))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait(20)


def test_two_models_two_replicas_and_a_signal(serve: Callable[..., Served], tmp_path: Path) -> None:
    one = write_chat_model(tmp_path / "one", context_length=4096)
    two = write_chat_model(tmp_path / "two", seed=1)
    keys = tmp_path / "keys"
    keys.write_text("sk-some-secret somebody\n")
    keys.chmod(0o600)
    served = serve(
        *(one, two, "--device", "numpy", "--replicas", "numpy,numpy"), "--api-keys", keys
    )
    url = served.url()
    with openai.OpenAI(base_url=url, api_key="sk-some-secret", max_retries=5) as client:
        assert [model.id for model in client.models.list().data] == ["one", "two"]
        texts = {}
        for name, folder in (("one", one), ("two", two)):
            answer = client.completions.create(
                model=name, prompt="abc", temperature=0, max_tokens=8
            )
            texts[name] = answer.choices[0].text
            alone = firstlight.load(folder, "numpy", cache=False, tune=None)
            assert texts[name] == alone.generate("abc", max_tokens=8, temperature=0.0).text
        assert texts["one"] != texts["two"]
        metrics = httpx.get(
            url.replace("/v1", "/metrics"), headers={"authorization": "Bearer sk-some-secret"}
        ).text
        assert metrics.count("firstlight_replica_ready{") == 4
        # A request that is running when the signal comes is answered to its end.
        stream = client.completions.create(
            model="one",
            prompt="abc",
            max_tokens=300,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        chunks = iter(stream)
        next(chunks)
        served.process.send_signal(signal.SIGTERM)
        last = list(chunks)[-1]
        assert last.usage is not None and last.usage.completion_tokens == 300
    assert served.process.wait(60) == 0
    served.see("Stopped")
    assert not [line for line in served.log if line["level"] == "error"]
    (request,) = [line for line in served.log if line.get("output") == 300]
    assert (request["key"], request["model"]) == ("somebody", "one")


def test_a_model_that_cannot_be_loaded(serve: Callable[..., Served], tmp_path: Path) -> None:
    folder = write_chat_model(tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"nothing")
    served = serve(folder, "--device", "numpy")
    assert served.process.wait(60) == 2
    time.sleep(0.2)
    assert "model.safetensors" in "".join(served.lines.queue)


def test_options_that_are_wrong(commands: Commands, chat_model: Path, tmp_path: Path) -> None:
    serve = ("serve", chat_model, "--port", 0)
    assert_refused(commands(*serve, "--max-requests", 0), "--max-requests")
    assert_refused(commands(*serve, "--max-body", "-1"), "--max-body")
    assert_refused(commands(*serve, "--max-wait", "nan"), "--max-wait")
    assert_refused(commands(*serve, "--context", "0"), "--context")
    assert_refused(commands("serve", chat_model, "--port", 99999), "--port")
    assert_refused(commands(*serve, "--host", "no.such.invalid"), "no.such.invalid")
    assert_refused(commands(*serve, "--api-keys", tmp_path / "none"), "none")
    assert_refused(commands(*serve, "--tls-key", tmp_path / "none"), "--tls-certificate")
    assert_refused(
        commands(*serve, "--tls-key", tmp_path / "k", "--tls-certificate", tmp_path / "c"), "PEM"
    )
    assert_refused(commands(*serve, "--replicas", "cpu,,cpu"), "--replicas")
    assert_refused(commands(*serve, "--replicas", "cpu,nothing"), "nothing")
    assert_refused(commands(*serve, "--weights", "int9"), "int9")
    assert_refused(commands(*serve, "--name", "a", "--name", "b"), "--name")
    assert_refused(commands("serve", tmp_path / "no-model", "--port", 0), "no-model")


def test_names(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    path = str(tmp_path / "my-model")
    assert model_names([path, "demo", "org/name"], []) == ["my-model", "demo", "org/name"]
    assert model_names([path], ["x"]) == ["x"]
    with pytest.raises(RequestError):
        model_names([path, path], [])
    with pytest.raises(RequestError):
        model_names(["a", "b"], ["x", "x"])


@pytest.mark.parametrize(("words", "shared"), [((), True), (("--no-core-shares",), False)])
def test_cores_are_shared_out_unless_told_otherwise(
    words: tuple[str, ...], shared: bool, chat_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    routers: list[Router] = []

    async def start(router: Router) -> None:
        routers.append(router)
        raise InterruptedError  # before any process is started

    monkeypatch.setattr(Router, "start", start)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(InterruptedError):
        run(parser.parse_args([str(chat_model), "--device", "numpy", "--port", "0", *words]))
    (router,) = routers
    assert router._share_cores is shared
