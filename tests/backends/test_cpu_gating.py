"""A feed-forward network whose gate and up are taken together has the bits of its parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from firstlight.formats.registry import get_format
from firstlight.ops import FeedForwardBlock, Norm, Product
from firstlight.ops.contract import get_op
from firstlight.verify.random_weights import random_weight

backend_module = pytest.importorskip("firstlight.backends.cpu.backend")
CpuBackend = backend_module.CpuBackend
LEVELS = backend_module.available_levels()


def _block(hidden: int, width: int, activation: Any, biased: bool = False) -> FeedForwardBlock:
    generator = np.random.default_rng(hidden * width)

    def product(rows: int, columns: int) -> Product:
        weight = random_weight(get_format("bf16"), rows, columns, generator)
        bias = generator.standard_normal(rows, dtype=np.float32) if biased else None
        return Product(weight, bias)

    norm = Norm(hidden, 1e-5, generator.standard_normal(hidden, dtype=np.float32))
    return FeedForwardBlock(
        gate=product(width, hidden),
        up=product(width, hidden),
        down=product(hidden, width),
        activation=activation,
        pre_norm=norm,
        post_norm=None,
        residual_scale=None,
    )


def _check(backend: Any, rows: int, block: FeedForwardBlock) -> None:
    x = np.random.default_rng(rows).standard_normal((rows, len(block.down.weight.data)), np.float32)
    together = backend.feed_forward_block(x, block)
    parts = get_op("feed_forward_block").definition(backend, x, block)
    assert together.tobytes() == parts.tobytes()
    for row in (0, rows // 2, rows - 1):
        alone = backend.feed_forward_block(x[row : row + 1].copy(), block)
        assert alone.tobytes() == together[row].tobytes()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rows", [20, 21, 99, 215])
def test_many_rows(level: str, rows: int) -> None:
    """Around where gate and up begin to be taken together, and where x is cut for the threads;
    columns and rows that fill no vector, no group and no block."""
    backend = CpuBackend(level=level, threads=2)
    _check(backend, rows, _block(70, 131, "silu"))
    _check(backend, rows, _block(72, 37, "gelu_tanh", biased=True))


def test_more_rows_than_are_rounded_at_once() -> None:
    _check(CpuBackend(threads=2), 1100, _block(64, 96, "relu"))


def test_products_of_several_chunks() -> None:
    _check(CpuBackend(threads=3), 300, _block(1800, 80, "gelu"))
    _check(CpuBackend(threads=3), 300, _block(80, 1800, "silu"))


def test_no_rows_and_no_width() -> None:
    backend = CpuBackend(threads=2)
    assert (
        backend.feed_forward_block(np.zeros((0, 64), np.float32), _block(64, 96, "silu")).size == 0
    )
