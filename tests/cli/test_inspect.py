"""`firstlight inspect` and models of a hub, as the commands see them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.support.command import assert_refused
from tests.support.hub_server import HubServer, Repository, isolated_hub
from tests.support.tiny_chat import write_chat_model
from tests.support.tiny_checkpoints import write_checkpoint
from tests.support.tiny_models import tiny_model

ID = "maker/model"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of some megabytes in two shards."""
    folder = tmp_path_factory.mktemp("model")
    return write_chat_model(folder, hidden_size=192, layers=2, shards=2, context_length=4096)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> Iterator[HubServer]:
    """A hub that has the model."""
    monkeypatch.setenv("FIRSTLIGHT_SKIP_KERNEL_CHECK", "1")
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    with isolated_hub(monkeypatch, tmp_path) as server:
        large = {name for name in files if name.endswith(".safetensors")}
        server.repositories[ID] = Repository(files, large=large)
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def weights_sent(hub: HubServer) -> int:
    return sum(hub.bytes_sent[name] for name in hub.repositories[ID].large)


def test_figures(commands, model):
    report = json.loads(commands("inspect", model, "--json").out)
    tensors = [t for path in model.glob("*.safetensors") for t in load_file(path).values()]
    assert report["family"] == "llama"
    assert report["layout"] == "safetensors"
    assert report["files"] == 2
    assert report["tensors"] == len(tensors)
    assert report["parameters"] == sum(tensor.size for tensor in tensors)
    assert report["model_parameters"] == report["parameters"]
    assert report["bytes"] == sum(tensor.nbytes for tensor in tensors)
    assert report["formats"] == {"f32": report["bytes"]}
    assert report["licence"] == "apache-2.0"
    assert (report["layers"], report["hidden_size"], report["heads"]) == (2, 192, 4)
    assert (report["key_value_heads"], report["head_size"]) == (2, 48)
    assert (report["tokenizer_size"], report["chat"]) == (260, True)
    assert report["headers_from"] is None
    # Keys and values of 2 layers, 2 heads of 48, in the 2 bytes of bfloat16.
    assert report["state_bytes_per_token"] == 2 * 2 * 2 * 48 * 2
    assert [plan["context_length"] for plan in report["memory"]] == [2048, 4096]
    for plan in report["memory"]:
        assert plan["total"] == plan["weights"] + plan["state"] + plan["activations"]
        assert plan["state"] >= plan["context_length"] * report["state_bytes_per_token"]


def test_as_if_converted(commands, model):
    plain, converted, state = (
        json.loads(commands("inspect", model, "--json", *words).out)["memory"][-1]
        for words in ([], ["--weights", "int8"], ["--state", "float32"])
    )
    # q8_0 keeps 32 values in 34 bytes; the norms stay in four bytes each.
    assert converted["weights"] == pytest.approx(plain["weights"] * 34 / 128, rel=0.01)
    assert state["state"] == plain["state"] * 2
    assert_refused(commands("inspect", model, "--weights", "q2_k"), "q2_k", "does not write")
    assert_refused(commands("inspect", "no/such", "--device", "abacus"), "abacus")


def test_digest(commands, model):
    digests = json.loads(commands("inspect", model, "--json", "--digest").out)["digests"]
    assert digests == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in model.glob("*.safetensors")
    }
    text = commands("inspect", model, "--digest").out
    for name, digest in digests.items():
        assert f"{digest}  {name}" in text
    assert "computed now" in text


def test_model_of_a_hub_is_described_without_its_weights(commands, hub, model):
    here = json.loads(commands("inspect", model, "--json").out)
    there = json.loads(commands("inspect", ID, "--json").out)
    assert there.pop("location") == f"{ID}@{'a' * 40}"
    assert there.pop("headers_from") == hub.endpoint
    del here["location"], here["headers_from"]
    for report in (here, there):
        del report["available_memory"]
    assert there == here
    assert weights_sent(hub) <= 2 * 65_536 < here["bytes"] / 10
    text = commands("inspect", ID).out
    assert "headers only" in text
    assert "after a download of" in text


def test_digest_of_a_model_of_a_hub_is_the_hub_s_own(commands, hub):
    repository = hub.repositories[ID]
    done = commands("inspect", ID, "--json", "--digest")
    report = json.loads(done.out)
    assert report["digests"] == {name: repository.digest(name) for name in repository.large}
    assert report["digests_computed"] is False
    text = commands("inspect", ID, "--digest").out
    assert f"as {hub.endpoint} states it" in text
    assert weights_sent(hub) <= 2 * 65_536
    # Once the model is here, its files are what is hashed.
    assert commands("run", ID, "Hello", "-n", "1").code == 0
    report = json.loads(commands("inspect", ID, "--json", "--digest").out)
    assert report["digests_computed"] is True
    assert report["digests"] == {name: repository.digest(name) for name in repository.large}
    assert report["headers_from"] is None


def test_digest_that_the_hub_does_not_state(commands, hub):
    hub.repositories[ID].large.clear()
    done = commands("inspect", ID, "--digest")
    assert_refused(done, f"{ID}@", "no SHA-256", "Leave out --digest")


def test_what_was_inspected_is_downloaded_to_be_run(commands, hub, tmp_path):
    assert commands("inspect", ID).code == 0
    (folder,) = (tmp_path / "own" / "headers").glob("*/snapshots/*")
    assert_refused(
        commands("run", folder, "Hello"), str(folder), "only headers", f"{ID}@{'a' * 40}"
    )
    assert_refused(commands("chat", folder, stdin="Hello"), "only headers")
    assert commands("inspect", folder).code == 0
    done = commands("run", ID, "Hello", "-n", "4")
    assert done.code == 0
    assert weights_sent(hub) >= sum(
        len(hub.repositories[ID].files[name]) for name in hub.repositories[ID].large
    )


def test_update(commands, hub):
    """A branch that has moved on is followed by each command when it is told to, and not before."""
    assert commands("run", ID, "Hello", "-n", "1").code == 0
    repository = hub.repositories[ID]
    repository.commit = "b" * 40
    repository.files["README.md"] = b"---\nlicense: mit\n---\n"
    asked = len(hub.requests)
    for words in (["run", ID, "Hello", "-n", "1", "--json"], ["inspect", ID, "--json"]):
        assert json.loads(commands(*words).out)["licence"] == "apache-2.0"
    assert len(hub.requests) == asked
    assert json.loads(commands("inspect", ID, "--json", "--update").out)["licence"] == "mit"
    done = commands("run", ID, "Hello", "-n", "1", "--json", "--update")
    assert json.loads(done.out)["licence"] == "mit"
    repository.commit = "c" * 40
    repository.files["README.md"] = b"---\nlicense: bsd\n---\n"
    assert commands("chat", ID, "-n", "1", "--update", stdin="Hello").code == 0
    done = commands("run", ID, "Hello", "-n", "1", "--json")
    assert json.loads(done.out)["licence"] == "bsd"


@pytest.mark.parametrize("command", ["run", "chat", "inspect"])
def test_hub_that_is_out_of_reach(commands, hub, command):
    done = commands(command, ID, "--endpoint", "http://127.0.0.1:9", stdin="Hello")
    assert_refused(done, "127.0.0.1:9", "--endpoint")


def test_repository_that_does_not_exist(commands, hub):
    assert_refused(commands("inspect", "maker/nothing"), "maker/nothing", "spelling")


def test_damaged_header_on_the_hub(commands, hub):
    name = "model-00001-of-00002.safetensors"
    content = hub.repositories[ID].files[name]
    hub.repositories[ID].files[name] = b"\xff" * 8 + content[8:]
    done = commands("inspect", ID)
    assert_refused(done, f"{ID}/{name}", "does not begin like safetensors")


def test_memory_grows_with_the_context(commands, model):
    report = json.loads(commands("inspect", model, "--json").out)
    totals = [plan["total"] for plan in report["memory"]]
    assert totals == sorted(totals)
    assert math.isfinite(totals[-1])


def test_experts_and_active_parameters(commands, tmp_path):
    """Nine experts of 3 * 20 * 48 values, in two layers, of which a token goes to three."""
    model = tiny_model("qwen3_moe").build()
    folder = write_checkpoint(model, tmp_path / "experts")
    report = json.loads(commands("inspect", folder, "--json").out)
    assert report["family"] == "qwen3_moe"
    assert (report["experts"], report["experts_per_token"], report["expert_layers"]) == (9, 3, 2)
    assert not report["shared_expert"]
    assert report["model_parameters"] == sum(value.numel() for value in model.parameters())
    unused = 2 * (9 - 3) * 3 * 20 * 48
    assert report["active_parameters"] == report["model_parameters"] - unused
    said = commands("inspect", folder).out
    assert "9, of which a token goes to 3 (in 2 layers)" in said
    assert f"{report['active_parameters']:,} parameters for each token" in said
