"""Models from a hub, against a hub of our own on the loopback interface.

The cache that results is checked with huggingface_hub itself, which reads the same layout.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from firstlight.checkpoint.hub_client import HubUnreachableError
from firstlight.errors import HubError
from tests.support.hub_repositories import (
    ID,
    WANTED,
    WEIGHTS,
    held,
    leftovers,
)


def test_downloads_what_is_needed_and_no_more(hub, get, tmp_path):
    snapshot = get()
    repository = hub.repositories[ID]
    assert held(snapshot) == {name: repository.files[name] for name in WANTED}
    assert not leftovers(tmp_path)
    assert {request.path.rpartition("/")[2] for request in hub.requests[1:]} == WANTED


def test_huggingface_hub_finds_everything_in_the_cache(hub, get, tmp_path):
    snapshot = get()
    for name in WANTED:
        found = huggingface_hub.hf_hub_download(
            ID, name, cache_dir=tmp_path / "hub", local_files_only=True
        )
        assert Path(found) == snapshot / name
        assert Path(found).read_bytes() == hub.repositories[ID].files[name]
    scanned = huggingface_hub.scan_cache_dir(tmp_path / "hub")
    assert not scanned.warnings
    (repository,) = scanned.repos
    (revision,) = repository.revisions
    assert (repository.repo_id, revision.commit_hash, revision.refs) == (ID, "a" * 40, {"main"})
    assert {file.file_name for file in revision.files} == WANTED


def test_second_call_needs_no_hub(hub, get):
    first = get()
    asked = len(hub.requests)
    assert get() == first
    assert get(f"{ID}@{'a' * 40}") == first
    assert len(hub.requests) == asked
    assert get(endpoint="http://127.0.0.1:9") == first


def test_verified_once(hub, get, monkeypatch):
    get()

    def never(*arguments: object) -> None:
        raise AssertionError("hashed again")

    monkeypatch.setattr("firstlight.checkpoint.hub_snapshot.matches_digest", never)
    get()
    get(update=True)


def test_changed_file_is_found_out_and_fetched_again(hub, get):
    snapshot = get()
    place = (snapshot / "model-00001.safetensors").resolve()
    damaged = bytearray(WEIGHTS)
    damaged[1000] ^= 1
    place.write_bytes(damaged)
    os.utime(place, ns=(1, 1))
    assert (get() / "model-00001.safetensors").read_bytes() == WEIGHTS
    assert len(hub.transfers("model-00001.safetensors")) == 2
    assert len(hub.transfers("model-00002.safetensors")) == 1


def test_update_follows_the_branch(hub, get):
    old = get()
    hub.repositories[ID].commit = "b" * 40
    hub.repositories[ID].files["config.json"] = b'{"new": true}'
    assert get() == old
    new = get(update=True)
    assert new.name == "b" * 40
    assert (new / "config.json").read_bytes() == b'{"new": true}'
    assert len(hub.transfers("model-00001.safetensors")) == 1, "content that has not changed"
    assert get() == new


def test_files_of_another_program_are_verified_and_used_offline(hub, get, tmp_path, monkeypatch):
    for name in WANTED:
        huggingface_hub.hf_hub_download(ID, name, cache_dir=tmp_path / "hub", endpoint=hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    snapshot = get()
    assert held(snapshot).keys() == WANTED
    assert len(hub.requests) == asked


@pytest.mark.parametrize("how", ["offline", "unreachable", "fault"])
def test_damaged_file_without_a_hub(hub, get, tmp_path, monkeypatch, how):
    for name in WANTED:
        huggingface_hub.hf_hub_download(ID, name, cache_dir=tmp_path / "hub", endpoint=hub.endpoint)
    snapshot = tmp_path / "hub/models--maker--model/snapshots" / ("a" * 40)
    place = (snapshot / "model-00002.safetensors").resolve()
    place.write_bytes(bytes(100_000))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "offline")
    hub.answer_all = 503
    endpoint = "http://127.0.0.1:9" if how == "unreachable" else hub.endpoint
    with pytest.raises(HubError, match=r"model-00002.safetensors"):
        get(endpoint=endpoint)
    assert not place.exists(), "content known to be wrong stays for nobody"


def test_snapshot_without_a_shard_offline(hub, get, tmp_path, monkeypatch):
    for name in WANTED - {"model-00002.safetensors"}:
        huggingface_hub.hf_hub_download(ID, name, cache_dir=tmp_path / "hub", endpoint=hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"model-00002.safetensors"):
        get()


def test_known_revision_without_its_files_offline(get, tmp_path, monkeypatch):
    shutil.rmtree(get())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="not in the local cache"):
        get()


def test_usual_cache_is_that_of_the_hub(get, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "usual"))
    assert tmp_path / "usual" in get(cache=None).parents


def test_offline_without_anything(get, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        get()


@pytest.mark.parametrize("model", ["maker/other", "nobody/model"])
def test_missing_repository(get, model):
    with pytest.raises(HubError, match="no such repository") as caught:
        get(model)
    assert model in caught.value.subject
    assert "HF_TOKEN" in caught.value.remedy


def test_missing_revision(get):
    with pytest.raises(HubError, match="no revision 'v9'") as caught:
        get(f"{ID}@v9")
    assert "tree/main" in caught.value.remedy


def test_revision_by_branch_tag_and_commit(hub, get):
    hub.repositories[ID].revisions |= {"v1.0", "refs/pr/3"}
    assert get(f"{ID}@v1.0") == get(f"{ID}@refs/pr/3") == get(f"{ID}@{'a' * 40}")
    asked = len(hub.requests)
    get(f"{ID}@v1.0")
    assert len(hub.requests) == asked


def test_hub_that_answers_with_another_commit(get, hub):
    hub.repositories[ID].revisions.add("c" * 40)
    with pytest.raises(HubError, match="another commit"):
        get(f"{ID}@{'c' * 40}")


def test_gated_repository(hub, get, monkeypatch):
    hub.repositories[ID].gated = True
    with pytest.raises(HubError, match="admitted") as caught:
        get()
    assert f"{hub.endpoint}/{ID}" in caught.value.remedy
    monkeypatch.setenv("HF_TOKEN", "let-me-in")
    assert held(get()).keys() == WANTED


def test_private_repository_and_where_the_token_goes(hub, get, monkeypatch):
    hub.repositories[ID].private = True
    with pytest.raises(HubError, match="only to its members"):
        get()
    monkeypatch.setenv("HF_TOKEN", "let-me-in")
    hub.requests.clear()
    # The stored contents are on "another host", which has no business with the token.
    with pytest.raises(HubError):
        get()
    for request in hub.requests:
        assert ("authorization" in request.headers) == (not request.path.startswith("/stored/"))


def test_token_that_cannot_be_read(get, monkeypatch, tmp_path):
    (tmp_path / "token").write_bytes(b"\xff\xfe\xfa")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(HubError, match="token") as caught:
        get()
    assert "HF_TOKEN" in caught.value.remedy


@pytest.mark.parametrize("status", [400, 403, 429, 500, 503])
def test_other_refusals(hub, get, status):
    hub.answer_all = status
    with pytest.raises(HubError) as caught:
        get()
    assert caught.value.remedy
    assert isinstance(caught.value, HubUnreachableError) == (status >= 500)


def test_file_that_the_hub_lists_but_lacks(hub, get):
    listing = {"sha": "a" * 40, "siblings": hub.repositories[ID].siblings()}
    hub.listing = json.dumps(listing).encode()
    del hub.repositories[ID].files["model-00001.safetensors"]
    with pytest.raises(HubError, match="lists this file"):
        get()


def test_no_network(get):
    with pytest.raises(HubUnreachableError) as caught:
        get(endpoint="http://127.0.0.1:9")
    assert "127.0.0.1:9" in caught.value.reason
    assert "--endpoint" in caught.value.remedy
    assert "directory" in caught.value.remedy


@pytest.mark.parametrize("endpoint", ["hub.example", "ftp://hub.example", "http://["])
def test_endpoint_that_is_none(get, endpoint):
    with pytest.raises(HubError):
        get(endpoint=endpoint)


def test_endpoint_from_the_environment(hub, get, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint + "/")
    assert held(get(endpoint=None)).keys() == WANTED
