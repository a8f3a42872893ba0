"""The torch backend on a device whose type PyTorch has never heard of, and what names types."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import firstlight
from tests.support.tiny_chat import write_chat_model
from tests.support.tiny_checkpoints import write_checkpoint
from tests.support.tiny_models import tiny_model

pytest.importorskip("torch")

FOLDER = Path(firstlight.__file__).parent / "backends" / "torch"
ROOT = Path(__file__).parents[2]

# Types of devices in PyTorch, and what their makers' libraries are called.
_TYPES = (
    "cpu", "cuda", "hip", "rocm", "xpu", "npu", "mps", "hpu", "mlu", "musa", "xla", "vulkan",
    "meta", "mtia", "maia", "ipu", "opengl", "privateuse", "privateuseone", "nvidia", "amd",
    "intel", "ascend", "habana", "apple", "metal", "cublas", "cudnn",
)  # fmt: skip
_NAMES = re.compile(rf"(?<![a-z])({'|'.join(_TYPES)})(?![a-z])", re.IGNORECASE)


def test_no_type_of_device_is_named_but_in_the_table() -> None:
    """Of `--device cpu`, another backend than this, messages may speak."""
    named = {
        path.relative_to(FOLDER).as_posix(): found
        for path in sorted(FOLDER.rglob("*.py"))
        if (
            found := _NAMES.findall(
                path.read_text(encoding="utf-8").replace("--device cpu", "").replace(".cpu()", "")
            )
        )
    }
    assert set(named) == {"quirks.py"}
    assert {"cpu", "mps"} <= set(named["quirks.py"])


# Families whose layers choose what they attend to; with experts.
_SPARSE = ("deepseek_v32", "deepseek_v4")


@pytest.fixture(scope="module")
def lunar(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    folders = [write_chat_model(folder / "llama")]
    folders += [write_checkpoint(tiny_model(n).build(), folder / n) for n in _SPARSE]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(FOLDER.parents[2]), str(ROOT))),
        "FIRSTLIGHT_CACHE": str(tmp_path_factory.mktemp("cache")),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.lunar_run", *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=500,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_it_is_found_as_the_accelerator_and_by_name(lunar: dict[str, Any]) -> None:
    assert lunar["name"] == "torch:lunar:0"
    assert "Lunar 1" in lunar["key"]
    assert lunar["devices"][-2:] == ["torch:lunar:0", "torch:cpu"]


def test_every_kernel_agrees_with_its_definition_there(lunar: dict[str, Any]) -> None:
    assert lunar["failed"] == []
    assert lunar["checked"] == lunar["kernels"]


def test_bfloat16_is_multiplied_as_it_lies_where_sums_are_float32(lunar: dict[str, Any]) -> None:
    narrow = {"linear/bfloat16", "attention/bfloat16", "latent_attention/bfloat16"}
    assert narrow <= set(lunar["kernels"])
    assert set(lunar["kernels"]) - set(lunar["plain"]) == narrow


def test_a_device_that_cannot_compute_is_refused(lunar: dict[str, Any]) -> None:
    assert "nothing can be computed on it" in lunar["refused"]
    assert "torch:cpu" in lunar["refused"]


@pytest.mark.parametrize("name", ["llama", *_SPARSE])
def test_a_model_says_the_same_there_and_nothing_falls_back(
    lunar: dict[str, Any], name: str
) -> None:
    found = lunar["models"][name]
    assert len(found["torch"]) == 12
    assert found["torch"] == found["numpy"]
    assert found["fallbacks"] == []


def test_every_format_can_be_replayed_from_a_graph(lunar: dict[str, Any]) -> None:
    assert lunar["unreplayed"] == {}


def test_many_sequences_of_every_kind_wait_once_a_step(lunar: dict[str, Any]) -> None:
    """Greedy and drawn, with penalties and log probabilities; most steps from a graph."""
    many = lunar["many"]
    assert many["torch"] == many["numpy"]
    assert many["torch waits"] == [1]
    assert many["replays"] >= 4
    assert "were replayed" in many["remarks"][0]


def test_a_step_waits_for_the_device_once(lunar: dict[str, Any]) -> None:
    """And once more in each layer with experts, to learn which are needed."""
    for found in lunar["models"].values():
        assert set(found["torch downloads"]) == {1 + found["expert layers"]}
    assert lunar["models"]["llama"]["expert layers"] == 0
