"""Latent attention absorbed and expanded, timed side by side on the cpu backend's kernels.

    python bench/latent_forms.py

In DeepSeek-V2-Lite's shape (16 heads; a latent of 512 and 64 turned values; 128 and 128 values of a
head) with bfloat16 weights and state: the milliseconds that one layer takes between its queries and
its output product, for the last rows of a context. Each figure is the least of several.
docs/architecture.md says what follows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from firstlight.backends import open_device
from firstlight.formats.base import Weight
from firstlight.formats.plain import BF16
from firstlight.ops import PagedRows

HEADS, LATENT, ROPE, PLAIN, VALUE = 16, 512, 64, 128, 128
PAGE = 64
SCALE = (PLAIN + ROPE) ** -0.5
CASES = ((1, 512), (16, 512), (64, 512), (128, 512), (512, 512), (128, 4096), (512, 4096))
_GENERATOR = np.random.default_rng(0)

Run = Callable[[], Any]


def main() -> None:
    ops: Any = open_device("cpu")
    assert BF16.encode is not None
    rows = HEADS * (PLAIN + VALUE)
    up = ops.pack(Weight(BF16, (rows, LATENT), BF16.encode(_normal(rows, LATENT) / 23), "up"))
    print("rows  context  absorbed  expanded  of it keys and values made")
    for count, context in CASES:
        forms = _forms(ops, up, count, context)
        one, other = forms[0](), forms[1]()
        assert np.abs(one - other).max() < 0.05 * np.abs(one).max()
        absorbed, expanded, made = (1e3 * _least(form) for form in forms)
        print(f"{count:4}  {context:7}  {absorbed:8.2f}  {expanded:8.2f}  {made:8.2f}")


def _forms(ops: Any, up: Any, count: int, context: int) -> tuple[Run, Run, Run]:
    """Both forms, and the part of the second that makes keys and values of all latents."""
    pages = context // PAGE
    table = np.arange(pages, dtype=np.int32)[None]
    last = np.arange(context - count, context, dtype=np.int32)
    where = PagedRows(np.array([0, count], np.int32), last, table, PAGE)
    positions = np.arange(context, dtype=np.int32)
    every = PagedRows(np.array([0, context], np.int32), positions, table, PAGE)
    latents, turned = _normal(context, LATENT), _normal(context, ROPE)
    entries = ops.new_stream(pages, PAGE, (LATENT + ROPE,), "bfloat16")
    ops.stream_write(entries, np.concatenate([latents, turned], axis=1), every)
    straight, query_end = _normal(count, HEADS, PLAIN), _normal(count, HEADS, ROPE)

    def absorbed() -> Any:
        raised = ops.head_linear(straight, up, 0, PLAIN, True)
        query = ops.join_columns(raised, query_end)
        found = ops.latent_attention(query, entries, LATENT, where, SCALE)
        return ops.head_linear(found, up, PLAIN, VALUE, False)

    # Pages as the kernel of ordinary attention takes them.
    keys = ops.new_stream(pages, PAGE, (HEADS, PLAIN + ROPE), "bfloat16")
    values = ops.new_stream(pages, PAGE, (HEADS, VALUE), "bfloat16")

    def expand() -> None:
        made = ops.linear(latents, up).reshape(context, HEADS, PLAIN + VALUE)
        end = np.broadcast_to(turned[:, None], (context, HEADS, ROPE))
        key = np.concatenate([made[..., :PLAIN], end], axis=2)
        ops.stream_write(keys, np.ascontiguousarray(key), every)
        ops.stream_write(values, np.ascontiguousarray(made[..., PLAIN:]), every)

    def expanded() -> Any:
        expand()
        query = ops.join_columns(straight, query_end)
        return ops.attention(query, keys, values, where, SCALE, None, None)

    return absorbed, expanded, expand


def _normal(*shape: int) -> Any:
    return _GENERATOR.standard_normal(shape, np.float32)


def _least(run: Run) -> float:
    best, end = float("inf"), time.perf_counter() + 1.2
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


if __name__ == "__main__":
    main()
