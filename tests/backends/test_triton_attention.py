"""Attention in Triton: interpreted on the host, and compiled for chips that are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstlight.ops.paging import PagedRows

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

ROOT = Path(__file__).parents[2]

_CASES = {
    "attention": [
        *("one token", "no rows", "a sequence without rows", "prefill", "decode and prefill mixed"),
        *("pages of one token", "page of 7 tokens", "one head", "many heads a group"),
        *("values wider", "window,", "window of one", "window past a block, bf", "soft cap"),
        *("two rows", "three rows", "fifteen rows", "seventeen rows", "odd sizes", "size 96"),
        *("many rows", "long context, one head, f"),
    ],
    "attention_with_sinks": ["prefill", "decode batch", "window,", "seventeen rows"],
    "latent_attention": ["mixed", "no rows", "decode", "f16", "published sizes", "many heads"],
}


def _child(arguments: list[str], **environment: str) -> list[Any]:
    """What a program writes, line by line."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def interpreted() -> list[Any]:
    return _child(
        ["tests.support.triton_conformance", json.dumps(_CASES)],
        TRITON_INTERPRET="1",
    )


def test_its_kernels_are_preferred_and_told_apart(interpreted: list[Any]) -> None:
    assert interpreted[0]["preferred"] == {
        "attention": "paged_bfloat16",
        "attention_with_sinks": "paged",
        "latent_attention": "paged_bfloat16",
    }
    assert "Triton" in interpreted[0]["identity"]
    assert "interpreted" in interpreted[0]["identity"]


@pytest.mark.parametrize(
    ("kernel", "least"),
    [
        ("attention/paged_bfloat16", 20),
        ("attention/paged", 40),
        ("attention_with_sinks/paged", 8),
        ("latent_attention/paged_bfloat16", 2),
        ("latent_attention/paged", 6),
    ],
)
def test_it_agrees_with_the_definition(interpreted: list[Any], kernel: str, least: int) -> None:
    reports = [report for report in interpreted[1:] if report["kernel"] == kernel]
    assert [report["says"] for report in reports if not report["passed"]] == []
    assert len(reports) >= least


@pytest.mark.parametrize("target", ["cuda", "hip"])
def test_it_compiles_for_chips_that_are_not_there(target: str, tmp_path: Path) -> None:
    """What the interpreter lets pass: types, shapes of products, memory that a program shares."""
    made = _child(
        ["tests.support.triton_targets", target],
        TRITON_INTERPRET="0",
        TRITON_CACHE_DIR=str(tmp_path),
    )
    assert {each["kernel"] for each in made} == {"attend", "combine"}
    assert len(made) == 9
    for each in made:
        assert each["shared"] <= each["allowed"]
        assert {"cuda": "cubin", "hip": "hsaco"}[target] in each["stages"]


def test_without_a_driver_or_an_interpreter_it_is_not_used() -> None:
    from firstlight.backends.torch.triton import launching

    device = torch.device("cpu")
    if launching.interpreted():
        pytest.skip("TRITON_INTERPRET is set")
    assert not launching.usable(device)
    assert launching.version(device) == ""
    assert launching.shared_memory(device) == 64 << 10


# How queries are cut ------------------------------------------------------------------------------


def _rows(*sequences: tuple[int, int]) -> PagedRows:
    counts = [count for _, count in sequences]
    positions = [np.arange(held, held + count) for held, count in sequences]
    width = max(-(-(held + count) // 16) for held, count in sequences)
    return PagedRows(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        np.concatenate(positions).astype(np.int32),
        np.arange(len(counts) * width, dtype=np.int32).reshape(-1, width),
        16,
    )


@pytest.mark.parametrize("group", [1, 3, 7])
@pytest.mark.parametrize("size", [16, 64])
def test_every_query_is_in_one_tile(group: int, size: int) -> None:
    from firstlight.backends.torch.transfer import Transfer
    from firstlight.backends.torch.triton.query_tiles import split_tiles, whole_tiles

    rows = _rows((5, 1), (0, 40), (0, 0), (300, 8), (2, 9))
    transfer = Transfer(torch.device("cpu"))
    split = split_tiles(rows, None, group, size, transfer)
    whole = whole_tiles(rows, group, size, transfer)
    assert split is not None
    assert whole is not None
    assert split.rows.tolist() == [0, *range(41, 49)]
    assert whole.rows.tolist() == [*range(1, 41), *range(49, 58)]
    for tiles in (split, whole):
        queries = []
        for sequence, first, count, position, before, query in tiles.numbers.tolist():
            assert rows.row_starts[sequence] == first
            assert rows.row_starts[sequence + 1] == first + count
            assert rows.positions[first] == position
            assert tiles.rows[before] == first
            queries += [(first, each) for each in range(query, min(query + size, count * group))]
        assert sorted(queries) == sorted(
            (int(first), each)
            for first, last in zip(rows.row_starts[:-1], rows.row_starts[1:], strict=True)
            if first in tiles.rows.tolist()
            for each in range((last - first) * group)
        )
    assert split_tiles(rows, None, group, size, transfer) is split


def test_a_long_context_is_read_in_parts() -> None:
    from firstlight.backends.torch.transfer import Transfer
    from firstlight.backends.torch.triton.query_tiles import LEAST_PART, MOST_PARTS, split_tiles

    def parts(held: int, window: int | None = None) -> int:
        transfer = Transfer(torch.device("cpu"))
        tiles = split_tiles(_rows((held, 1), (3, 1)), window, 1, 16, transfer)
        assert tiles is not None
        return tiles.parts

    assert parts(LEAST_PART - 1) == 1
    assert parts(LEAST_PART) == 2
    assert parts(5 * LEAST_PART) == 8
    assert parts(1000 * LEAST_PART) == MOST_PARTS
    assert parts(1000 * LEAST_PART, window=100) == 1


def test_columns_are_padded_as_little_as_can_be() -> None:
    from firstlight.backends.torch.triton.attention_plan import columns

    cut = {size: (columns(size).low, columns(size).rest) for size in (1, 16, 17, 33, 80, 128, 576)}
    assert cut == {
        **{1: (16, 0), 16: (16, 0), 17: (32, 0), 33: (32, 16), 80: (64, 16)},
        **{128: (128, 0), 576: (512, 64)},
    }


@pytest.mark.parametrize("kind", ["bfloat16", "parts", "float32"])
def test_sizes_fit_what_a_program_can_share(kind: Any) -> None:
    from firstlight.backends.torch.triton.attention_plan import columns, plan

    for memory in (64 << 10, 99 << 10, 227 << 10):
        for key, value, shared in ((64, 64, False), (128, 128, False), (576, 512, True)):
            found = plan(1 << 16, columns(key), columns(value), shared, kind, memory)
            assert min(found.tile, found.block) >= 16
            item = 4 if kind == "float32" else 2
            once = item * (key + (0 if shared else value)) * found.block
            assert once * min(found.stages, 2) <= memory
