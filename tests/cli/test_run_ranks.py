"""`firstlight run` on several devices that share a model."""

from __future__ import annotations

import json

import pytest

from firstlight.backends import available_devices
from tests.support.command import assert_refused

pytestmark = pytest.mark.skipif(
    "torch:cpu" not in available_devices(), reason="PyTorch is not there"
)


def test_two_ranks_say_what_one_device_says(commands, chat_model, monkeypatch):
    monkeypatch.setenv("FIRSTLIGHT_SKIP_KERNEL_CHECK", "1")
    words = ("run", chat_model, "Hello", "-n", "8", "--exact", "--json", "--no-tune", "--device")
    alone, shared = commands(*words, "numpy"), commands(*words, "torch:cpu:0-1")
    assert shared.code == 0, shared.err
    found, expected = json.loads(shared.out), json.loads(alone.out)
    assert found["token_ids"] == expected["token_ids"]
    assert len(found["token_ids"]) == 8


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("torch:cpu:1-0", ("'1-0' is no range of devices", "as torch:cpu:0-1")),
        ("torch:cpu:0-", ("'0-' is no range of devices",)),
        ("torch:cpu:a-b", ("'a-b' is no range of devices",)),
        ("torch:cpu:0-99999999999", ("is no range of devices",)),
        ("torch:cpu:0-9999", ("10000 ranks have no core each", "Use at most")),
        ("torch:abacus:0-1", ("knows no type of that name",)),
    ],
)
def test_ranges_that_make_no_sense_are_refused(commands, chat_model, device, words):
    assert_refused(commands("run", chat_model, "Hello", "--device", device), device, *words)


def test_commands_that_take_one_device_say_so(commands, chat_model):
    done = commands("inspect", chat_model, "--device", "torch:cpu:0-1")
    assert_refused(done, "stands for several devices")


def test_devices_beyond_the_last_are_refused(commands, chat_model, monkeypatch):
    import torch

    kind = torch.device("meta")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: kind)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    done = commands("run", chat_model, "Hello", "--device", "torch:meta:2-4")
    assert_refused(done, "torch:meta:2-4", "there are 4, numbered from 0", "firstlight devices")
