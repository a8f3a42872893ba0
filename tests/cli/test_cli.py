"""The commands as a shell sees them: what goes to which stream, and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from firstlight.checkpoint.demo import demo_model


def firstlight(*words: str, stdin: str | bytes = "") -> subprocess.CompletedProcess[str]:
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [sys.executable, "-m", "firstlight", *words], input=data, capture_output=True, timeout=300
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, one line of error that has these words, no traceback, no output."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]


@pytest.fixture(scope="module")
def demo_run() -> dict[str, object]:
    done = firstlight(
        "run", "demo", "The capital of France is", "-n", "8", "--json", "--verbose",
        "--log-probabilities", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


def test_run_prints_the_continuation_and_nothing_else(demo_run: dict[str, object]) -> None:
    done = firstlight("run", "demo", "The capital of France is", "-n", "8")
    assert done.returncode == 0
    assert done.stdout == f"{demo_run['text']}\n"


def test_json_has_what_a_script_needs(demo_run: dict[str, object]) -> None:
    assert demo_run["family"] == "gemma3"
    assert demo_run["finish_reason"] == "length"
    token_ids = demo_run["token_ids"]
    assert isinstance(token_ids, list)
    assert len(token_ids) == 8
    entries = demo_run["log_probabilities"]
    assert isinstance(entries, list)
    for token, entry in zip(token_ids, entries, strict=True):
        assert entry["token_id"] == token
        # Greedy: the token taken is the likeliest, and the second is no likelier.
        first, second = entry["likeliest"]
        assert first["token_id"] == token
        assert first["log_probability"] == entry["log_probability"] >= second["log_probability"]
    ops = {row["op"] for row in demo_run["ops"]}  # type: ignore[attr-defined]
    assert ops >= {"embed", "attention_block", "feed_forward_block", "logits"}


def test_prompt_from_standard_input(demo_run: dict[str, object]) -> None:
    done = firstlight("run", "demo", "-n", "8", stdin="The capital of France is\n")
    assert done.stdout == f"{demo_run['text']}\n"


def test_numpy_backend_says_the_same(demo_run: dict[str, object]) -> None:
    done = firstlight(
        "run", "demo", "The capital of France is", "-n", "2", "--device", "numpy", "--json"
    )
    assert json.loads(done.stdout)["token_ids"] == demo_run["token_ids"][:2]  # type: ignore[index]


def test_verbose_names_the_fallbacks() -> None:
    done = firstlight("run", "demo", "Hello", "-n", "1", "--device", "numpy", "--verbose")
    assert "definition" in done.stderr
    assert "linear" in done.stderr
    assert "Gemma Terms of Use" in done.stderr


def test_stop_string_is_not_printed() -> None:
    text = firstlight("run", "demo", "One, two, three,", "-n", "12").stdout
    word = text.split()[1]
    cut = firstlight("run", "demo", "One, two, three,", "-n", "12", "--stop", word).stdout
    assert cut.rstrip("\n") == text[: text.index(word)]


def test_seed_repeats_a_sampled_text() -> None:
    words = ["run", "demo", "Once", "-n", "8", "--temperature", "1", "--seed"]
    first, again, other = (firstlight(*words, seed).stdout for seed in ("7", "7", "8"))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "no/such/path", "x"], ["no/such/path"]),
        (["run", "demo", "x", "--device", "abacus"], ["abacus", "cpu"]),
        (["run", "demo", "x", "--weights", "int3"], ["int3"]),
        (["run", "demo", "x", "--temperature", "-1"], ["temperature"]),
        (["run", "demo", "x", "--top-p", "0"], ["top_p"]),
        (["run", "demo", "x", "--logit-bias", "999999999=1"], ["logit_bias"]),
        (["run", "demo", "x", "--stop", ""], ["stop"]),
        (["run", "demo", "x", "--context", "0"], ["context"]),
        (["run", "demo", "x", "--context", "2000000000"], ["memory"]),
        (["run", "demo", "x", "--system", "y"], ["--system"]),
        (["run", "demo", "word " * 200, "--context", "64"], ["prompt", "context"]),
        (["chat", "demo"], ["base model"]),
        (["inspect", "nothing.gguf"], ["nothing.gguf"]),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, list) else None,
)
def test_bad_input_is_refused(words: list[str], expected: list[str]) -> None:
    assert_refused(firstlight(*words), *expected)


@pytest.mark.parametrize("text", ["", "\n"])
def test_empty_standard_input(text: str) -> None:
    assert_refused(firstlight("run", "demo", stdin=text), "prompt", "none was given")


def test_an_empty_prompt_that_was_asked_for() -> None:
    done = firstlight("run", "demo", "", "-n", "3")
    assert done.returncode == 0
    assert done.stdout.strip()


def test_standard_input_that_is_no_text() -> None:
    assert_refused(firstlight("run", "demo", stdin=b"\xff\xfe\x00"), "UTF-8")


def test_cut_gguf_file(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    with demo_model().open("rb") as file:
        cut.write_bytes(file.read(20_000_000))
    for command in (["run", str(cut), "x"], ["inspect", str(cut)]):
        assert_refused(firstlight(*command), "cut.gguf")


def test_inspect_reads_headers_only() -> None:
    done = firstlight("inspect", "demo", "--json", "--digest")
    report = json.loads(done.stdout)
    assert report["family"] == "gemma3"
    assert report["layers"] == 18
    assert report["sliding_window"] == 512
    assert report["sliding_layers"] == 15
    assert report["runs"] is True
    # The parameters of the model card: 268M in all, 170M of them the embedding (262,144 × 640).
    assert report["parameters"] == 268_098_176
    # The digest that the package states for its file.
    (digest,) = report["digests"].values()
    assert digest == "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
    totals = [plan["total"] for plan in report["memory"]]
    assert totals == sorted(totals)


def test_inspect_as_text() -> None:
    done = firstlight("inspect", "demo")
    assert done.returncode == 0
    for word in ("gemma3", "q4_k", "runs here", "yes"):
        assert word in done.stdout


def test_help_and_version() -> None:
    assert "run" in firstlight("--help").stdout
    assert firstlight("--version").stdout.startswith("firstlight 0.")
    for command in ("run", "chat", "inspect", "verify", "devices"):
        assert "--" in firstlight(command, "--help").stdout


def test_closed_pipe_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m firstlight run demo Hello -n 20 | head -c 1",
        shell=True,
        capture_output=True,
        timeout=300,
    )
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipe" not in done.stderr
