"""Experts of a model over several devices: each computes its own, and together they are all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from firstlight.backends.numpy.backend import NumpyBackend  # noqa: E402
from firstlight.backends.torch.backend import TorchBackend  # noqa: E402
from firstlight.backends.torch.products import ProductKernels  # noqa: E402
from firstlight.backends.torch.transfer import Transfer  # noqa: E402
from firstlight.backends.torch.triton import launching  # noqa: E402
from firstlight.backends.torch.triton.experts import TritonExperts  # noqa: E402
from firstlight.backends.torch.triton.products import TritonProducts  # noqa: E402
from firstlight.backends.torch.triton.request import Request  # noqa: E402
from firstlight.formats.registry import get_format  # noqa: E402
from firstlight.ops.contract import get_op  # noqa: E402
from firstlight.ops.experts_block import Expert, ExpertsBlock  # noqa: E402
from firstlight.ops.gating import ClampedSwish  # noqa: E402
from firstlight.ops.parts import Product  # noqa: E402
from firstlight.ops.routing import Routing  # noqa: E402
from firstlight.verify.conformance import to_device  # noqa: E402
from firstlight.verify.random_weights import random_weight  # noqa: E402

if not launching.interpreted():
    pytest.skip("Triton would compile its kernels", allow_module_level=True)

_COLUMNS, _WIDTH, _EXPERTS, _VOCABULARY = 32, 32, 5, 11


@pytest.fixture(autouse=True)
def no_luck(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not computed must not count, whatever memory held before."""
    made = Request.new_result
    monkeypatch.setattr(Request, "new_result", lambda self: made(self).fill_(torch.nan))


def _block(weighted_before: bool, by_table: bool) -> ExpertsBlock:
    generator = np.random.default_rng(5)

    def product(rows: int, columns: int) -> Product:
        weight = random_weight(get_format("q8_0"), rows, columns, generator)
        return Product(weight, generator.standard_normal(rows, np.float32))

    experts = tuple(
        Expert(product(_WIDTH, _COLUMNS), product(_WIDTH, _COLUMNS), product(_COLUMNS, _WIDTH))
        for _ in range(_EXPERTS)
    )
    router = random_weight(get_format("f32"), _EXPERTS, _COLUMNS, generator)
    table = generator.integers(0, _EXPERTS, (_VOCABULARY, 2)).astype(np.int32)
    return ExpertsBlock(
        Product(router), Routing(2, renormalised=True), experts, ClampedSwish(2.0),
        hash_table=table if by_table else None, weighted_before=weighted_before,
        residual_scale=None,
    )  # fmt: skip


def _part(block: ExpertsBlock, first: int, stop: int) -> ExpertsBlock:
    return replace(block, experts=block.experts[first:stop], first=first)


@pytest.mark.parametrize("rows", [2, 21])
@pytest.mark.parametrize(("weighted_before", "by_table"), [(True, False), (False, True)])
def test_each_part_agrees_and_the_sum_is_the_whole(
    rows: int, weighted_before: bool, by_table: bool
) -> None:
    backend = TorchBackend("cpu")
    transfer = Transfer(torch.device("cpu"))
    products = TritonProducts(ProductKernels(transfer, False), False, False)
    (kernel,) = TritonExperts(transfer, products).all()
    block = _block(weighted_before, by_table)
    generator = np.random.default_rng(rows)
    x = generator.standard_normal((rows, _COLUMNS), np.float32) / 8
    tokens = generator.integers(0, _VOCABULARY, rows).astype(np.int32)
    tolerance = get_op("experts_block").tolerance
    numpy = NumpyBackend(kernel.rounding)
    whole = numpy.call("experts_block", x, block, tokens)
    allowed = tolerance.absolute + (tolerance.relative + tolerance.tipped) * np.abs(whole).max()

    def computed(part: ExpertsBlock) -> Any:
        given = torch.from_numpy(x), to_device(backend, part), tokens
        assert kernel.takes(*given)
        return kernel.run(*given).numpy()

    total = np.zeros_like(whole)
    for first, stop in ((0, 1), (1, 5)):
        part = _part(block, first, stop)
        found = computed(part)
        wanted = numpy.call("experts_block", x, part, tokens)
        assert np.abs(found - wanted).max() <= allowed
        assert np.median(np.abs(found - wanted)) <= 1e-5 * np.abs(whole).max()
        total += found
    assert np.abs(total - whole).max() <= allowed


def test_a_row_without_an_expert_here_gets_nothing() -> None:
    backend = TorchBackend("cpu")
    transfer = Transfer(torch.device("cpu"))
    products = TritonProducts(ProductKernels(transfer, False), False, False)
    (kernel,) = TritonExperts(transfer, products).all()
    block = _block(False, True)
    assert block.hash_table is not None
    block.hash_table[4] = (0, 1)
    part = to_device(backend, _part(block, 3, 5))
    for rows in (1, 6):
        x = torch.ones(rows, _COLUMNS)
        assert not kernel.run(x, part, np.full(rows, 4, np.int32)).any()
