"""`firstlight bench`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firstlight.backends.cpu.backend import CpuBackend
from firstlight.host.ceilings import Ceilings
from tests.support.command import Commands, assert_refused
from tests.support.completions_server import Script, completions_server

SMALL = ("--prompt-tokens", 6, "--output-tokens", 4, "--concurrency", "1,3")


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FIRSTLIGHT_SKIP_KERNEL_CHECK", "1")
    monkeypatch.setattr(
        CpuBackend, "measure_ceilings", lambda self: Ceilings("a device", 1e10, {"f32": 1e11})
    )


def test_a_model(commands: Commands, chat_model: Path) -> None:
    words = ("bench", chat_model, *SMALL, "--prefill", "8,16", "--repetitions", 2)
    done = commands(*words, "--json")
    assert done.code == 0, done
    report = json.loads(done.out)
    assert [each["name"] for each in report["speeds"]] == [
        "prefill 8",
        "prefill 16",
        "decode after 6",
    ]
    assert [each["concurrency"] for each in report["throughput"]] == [1, 3]
    for each in report["throughput"]:
        assert each["output_tokens"] == 4 * each["requests"]
        assert each["output_tokens_per_second"] > 0
        assert each["first_token"]["p99"] >= each["first_token"]["p50"] > 0
        assert each["ceiling_share"] > 0
    shown = commands(*words)
    assert "of ceiling" in shown.out
    assert "prefill 16" in shown.out


def test_a_server(commands: Commands) -> None:
    script = Script()
    script.gate.set()
    with completions_server(script) as url:
        done = commands("bench", "--url", url, *SMALL, "--requests", 3, "--json")
        assert done.code == 0, done
        report = json.loads(done.out)
        assert report["model"] == "one"
        assert [each["concurrency"] for each in report["loads"]] == [1, 3]
        assert all(each["output_tokens"] == 3 * 5 for each in report["loads"])
        poisson = commands("bench", "two", "--url", url, "--rate", 200, "--requests", 5, "--json")
        (load,) = json.loads(poisson.out)["loads"]
        assert (load["rate"], load["requests"], load["failed"]) == (200.0, 5, 0)
        assert {body["model"] for body in script.bodies[6:]} == {"two"}


def test_failures_are_shown_and_make_the_command_fail(commands: Commands) -> None:
    script = Script(fail=frozenset({0}))
    script.gate.set()
    with completions_server(script) as url:
        done = commands("bench", "--url", url, "--concurrency", 1, "--requests", 2)
    assert done.code == 1
    assert "1/2" in done.out
    assert "1 failed: RuntimeError: status 503: too busy" in done.err


def test_options_that_do_not_fit_are_refused(commands: Commands) -> None:
    assert_refused(commands("bench", "--rate", 3), "--rate", "--url")
    assert_refused(commands("bench", "--url", "nowhere"), "nowhere", "http")
    assert_refused(commands("bench", "--url", "http://127.0.0.1:9"), "Start the server")
    assert_refused(commands("bench", "--output-tokens", 0), "--output-tokens")
    assert commands("bench", "--concurrency", "1,x").code == 2
