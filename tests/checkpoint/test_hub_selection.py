"""Which files of a repository are fetched, and how a model on a hub is called."""

from __future__ import annotations

import json

import pytest

from firstlight.checkpoint.hub import HubReference, parse_reference
from firstlight.errors import HubError
from tests.support.hub_repositories import (
    ID,
    content,
    gguf_repository,
    held,
)
from tests.support.hub_server import Repository


@pytest.mark.parametrize(
    "listing",
    [
        b"<html>Sign in</html>",
        b"[]",
        b"null",
        b"{}",
        b'{"sha": "main", "siblings": []}',
        b'{"sha": "../../../../etc/aaaaaaaaaaaaaaaaaaaaaaaa", "siblings": []}',
        b'{"sha": "%b", "siblings": {"a": 1}}' % (b"a" * 40),
        b'{"sha": "%b", "siblings": [1]}' % (b"a" * 40),
        b'{"sha": "%b", "siblings": [{"rfilename": "a", "lfs": 3}]}' % (b"a" * 40),
        b"[" * 100_000,
    ],
)
def test_listing_that_is_none(hub, get, listing):
    hub.listing = listing
    with pytest.raises(HubError) as caught:
        get()
    assert "as a hub should" in caught.value.reason


@pytest.mark.parametrize(
    "change",
    [
        {"size": None, "lfs": None},
        {"blobId": "../../config", "lfs": None},
        {"blobId": None, "lfs": None},
        {"lfs": {"sha256": "x" * 64, "size": 1}},
        {"lfs": {"sha256": "0" * 64, "size": -1}},
        {"lfs": {"sha256": "0" * 64, "size": 10**400}},
        {"lfs": {"sha256": "0" * 64, "size": True}},
    ],
)
def test_file_without_checksum_or_size(hub, get, change):
    siblings = hub.repositories[ID].siblings()
    for sibling in siblings:
        if sibling["rfilename"] == "model-00001.safetensors":
            sibling.update(change)
    hub.listing = json.dumps({"sha": "a" * 40, "siblings": siblings}).encode()
    with pytest.raises(HubError, match="no checksum"):
        get()


@pytest.mark.parametrize("name", ["../../evil.gguf", "/tmp/evil.gguf", "a\\..\\evil.gguf", ".."])
def test_names_that_leave_the_directory(hub, get, tmp_path, name):
    evil = {"rfilename": name, "size": 4, "blobId": "0" * 40}
    hub.listing = json.dumps({"sha": "a" * 40, "siblings": [evil]}).encode()
    with pytest.raises(HubError, match="no weights"):
        get()
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize(
    "index",
    [
        b"not json",
        b"[]",
        b'{"weight_map": ["model-00001.safetensors"]}',
        b'{"weight_map": {"a": 1}}',
        b'{"weight_map": {"a": "model-00009.safetensors"}}',
        b'{"weight_map": {"a": "pytorch_model.bin"}}',
        b'{"weight_map": {"a": "../../x.safetensors"}}',
        b"[" * 100_000,
    ],
)
def test_index_that_is_none(hub, get, index):
    hub.repositories[ID].files["model.safetensors.index.json"] = index
    with pytest.raises(HubError, match=r"model.safetensors.index.json"):
        get()


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "consolidated.safetensors"], ["model.safetensors"]),
        (["model.safetensors", "model.fp16.safetensors"], ["model.safetensors"]),
        (["weights-1.safetensors", "weights-2.safetensors"], None),
    ],
)
def test_safetensors_without_index(hub, get, names, chosen):
    files = {name: content(10, seed) for seed, name in enumerate(names)}
    hub.repositories[ID] = Repository({**files, "config.json": b"{}"})
    assert held(get()).keys() == {*(chosen or names), "config.json"}


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["pytorch_model.bin", "config.json"], "pickle"),
        (["adapter_model.safetensors"], "adapter"),
        (["consolidated.safetensors", "params.json"], "consolidated"),
        (["README.md"], "no weights"),
        ([], "empty"),
        (["a.gguf", "b.gguf"], "a.gguf, b.gguf"),
    ],
)
def test_no_weights_to_choose(hub, get, names, reason):
    hub.repositories[ID] = Repository(dict.fromkeys(names, b"x"))
    with pytest.raises(HubError, match=reason):
        get()


def test_gguf_by_name(hub, get):
    hub.repositories[ID] = gguf_repository()
    path = get(f"{ID}/m-Q8.gguf")
    assert path.name == "m-Q8.gguf"
    assert held(path.parent).keys() == {"m-Q8.gguf", "README.md"}
    assert get(f"{ID}/m-Q4.gguf").read_bytes() == hub.repositories[ID].files["m-Q4.gguf"]
    asked = len(hub.requests)
    assert get(f"{ID}/m-Q8.gguf") == path
    assert len(hub.requests) == asked


def test_gguf_in_parts(hub, get):
    hub.repositories[ID] = gguf_repository()
    path = get(f"{ID}/big/m-00001-of-00002.gguf")
    assert path.name == "m-00001-of-00002.gguf"
    assert (path.parent / "m-00002-of-00002.gguf").is_file()
    del hub.repositories[ID].files["big/m-00002-of-00002.gguf"]
    hub.repositories[ID].commit = "b" * 40
    with pytest.raises(HubError, match="lacks 1 of its 2 parts"):
        get(f"{ID}/big/m-00001-of-00002.gguf", update=True)


def test_gguf_that_is_the_only_one(hub, get):
    hub.repositories[ID] = Repository({"m.gguf": b"GGUF", "mmproj-m.gguf": b"x"})
    assert get().read_bytes() == b"GGUF"


def test_gguf_that_is_not_there(hub, get):
    hub.repositories[ID] = gguf_repository()
    with pytest.raises(HubError, match="no such file") as caught:
        get(f"{ID}/m-Q5.gguf")
    assert f"{ID}/m-Q" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("org/name", HubReference("org/name")),
        ("org/na.me-1_x@v1", HubReference("org/na.me-1_x", "v1")),
        ("org/name@refs/pr/1", HubReference("org/name", "refs/pr/1")),
        ("org/name/a/b.gguf@main", HubReference("org/name", "main", "a/b.gguf")),
    ],
)
def test_reference(text, reference):
    assert parse_reference(text) == reference


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "org/",
        "/name",
        "org/name/",
        "org/name/file.bin",
        "org/name/../x.gguf",
        "org/..",
        "../name",
        "org/a--b",
        "org/name@",
        "org/name@../x",
        "org/name@a/../b",
        "org/name@/x",
        "org/x.gguf",
        "org/na me",
        "org/name\n",
        "o" * 97 + "/name",
    ],
)
def test_not_a_reference(text):
    assert parse_reference(text) is None
