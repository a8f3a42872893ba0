"""Experts found by address agree with the definition, and nobody waits to learn which."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from firstlight.backends.kernel import Kernel  # noqa: E402
from firstlight.backends.numpy.backend import NumpyBackend  # noqa: E402
from firstlight.backends.torch.backend import TorchBackend  # noqa: E402
from firstlight.backends.torch.products import ProductKernels  # noqa: E402
from firstlight.backends.torch.transfer import Transfer  # noqa: E402
from firstlight.backends.torch.triton import launching  # noqa: E402
from firstlight.backends.torch.triton.experts import TritonExperts  # noqa: E402
from firstlight.backends.torch.triton.products import TritonProducts  # noqa: E402
from firstlight.formats.base import BlockScales, Weight  # noqa: E402
from firstlight.formats.registry import get_format  # noqa: E402
from firstlight.ops.contract import get_op  # noqa: E402
from firstlight.ops.experts_block import Expert, ExpertsBlock  # noqa: E402
from firstlight.ops.parts import Product  # noqa: E402
from firstlight.ops.routing import Routing  # noqa: E402
from firstlight.verify.cases import cases_of  # noqa: E402
from firstlight.verify.conformance import check_kernels, to_device  # noqa: E402
from firstlight.verify.random_weights import random_weight  # noqa: E402

if not launching.interpreted():
    pytest.skip("Triton would compile its kernels", allow_module_level=True)


@pytest.fixture(scope="module")
def backend() -> TorchBackend:
    return TorchBackend("cpu")


def test_they_agree_with_the_definition() -> None:
    backend = TorchBackend("cpu")
    backend.leave_out("experts_block", "grouped")
    reports = check_kernels(backend, ops=frozenset({"experts_block"}))
    assert len(reports) == 5
    assert [str(report) for report in reports if not report.passed] == []


def _experts(backend: TorchBackend, narrow: bool) -> Kernel:
    transfer = Transfer(torch.device("cpu"))
    products = TritonProducts(ProductKernels(transfer, narrow), narrow, False)
    (kernel,) = TritonExperts(transfer, products).all()
    return kernel


def _block(weights: list[Weight], columns: int, top_k: int) -> ExpertsBlock:
    """Experts whose gate, up and down follow each other in `weights`."""
    products = [Product(weight) for weight in weights]
    experts = [Expert(*products[at : at + 3]) for at in range(0, len(products), 3)]
    router = random_weight(get_format("f32"), len(experts), columns, np.random.default_rng(1))
    return ExpertsBlock(Product(router), Routing(top_k), tuple(experts), "silu")


def _checked(backend: TorchBackend, kernel: Kernel, block: ExpertsBlock, x: Any) -> None:
    on_device = to_device(backend, block)
    given, tokens = torch.from_numpy(x), np.zeros(len(x), np.int32)
    assert kernel.takes(given, on_device, tokens)
    found = kernel.run(given, on_device, tokens).numpy()
    wanted = NumpyBackend(kernel.rounding).call("experts_block", x, block, tokens)
    tolerance = get_op("experts_block").tolerance
    allowed = (tolerance.relative + tolerance.tipped) * np.abs(wanted - x).max()
    assert np.abs(found - wanted).max() <= tolerance.absolute + allowed
    # A tipped step is rare: most values have no such excuse.
    assert np.median(np.abs(found - wanted)) <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("rows", [2, 9])
def test_bfloat16_experts(backend: TorchBackend, rows: int) -> None:
    generator = np.random.default_rng(rows)
    shapes = [(24, 40), (24, 40), (40, 24)] * 3
    weights = [random_weight(get_format("bf16"), *shape, generator) for shape in shapes]
    x = generator.standard_normal((rows, 40), np.float32)
    _checked(backend, _experts(backend, narrow=True), _block(weights, 40, 2), x)
    tokens = np.zeros(rows, np.int32)
    on_device = to_device(backend, _block(weights, 40, 2))
    assert not _experts(backend, narrow=False).takes(torch.from_numpy(x), on_device, tokens)


@pytest.mark.parametrize("rows", [1, 18])
def test_experts_that_share_blocks_of_scales(backend: TorchBackend, rows: int) -> None:
    """Rows of one tensor, each expert's of blocks of its own."""
    generator = np.random.default_rng(rows)
    format, experts = get_format("f8_e4m3"), 3

    def stacked(outputs: int, columns: int) -> list[Weight]:
        data = random_weight(format, experts * outputs, columns, generator).data
        blocks = experts * outputs // 16, -(-columns // 16)
        scales = BlockScales(generator.uniform(0.5, 2, blocks).astype(np.float32), 16, 16)
        every = Weight(format, (experts * outputs, columns), data, scales=scales)
        return [every.row_slice(at * outputs, (at + 1) * outputs) for at in range(experts)]

    gates, ups, downs = stacked(32, 48), stacked(32, 48), stacked(48, 32)
    weights = [each for expert in zip(gates, ups, downs, strict=True) for each in expert]
    x = generator.standard_normal((rows, 48), np.float32) / 8
    _checked(backend, _experts(backend, narrow=False), _block(weights, 48, 2), x)


def test_experts_that_are_not_alike_are_left_to_others(backend: TorchBackend) -> None:
    generator = np.random.default_rng(0)

    def taken(formats: tuple[str, ...]) -> bool:
        weights = [random_weight(get_format(each), 64, 64, generator) for each in formats]
        on_device = to_device(backend, _block(weights, 64, 1))
        kernel = _experts(backend, narrow=True)
        return kernel.takes(torch.zeros(1, 64), on_device, np.zeros(1, np.int32))

    assert taken(("q8_0",) * 6)
    assert taken(("q8_0", "q8_0", "q4_0") * 2)
    assert not taken(("q8_0", "q4_0", "q8_0") * 2)
    assert not taken((*("q8_0",) * 3, *("q4_0",) * 3))
    assert not taken(("f32",) * 6)


class _NoWaiting(TorchDispatchMode):
    """Refuses ops whose result's size, or a number of which, the host must wait for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition(".")[0]
        waits = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "unique", "item")
        if any(name.endswith(each) for each in waits):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [2, 7])
def test_nothing_waits_for_the_device(
    backend: TorchBackend, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels themselves are left out: the interpreter looks at everything."""
    from firstlight.backends.torch.triton import few_rows, tiles
    from firstlight.backends.torch.triton import rows as rows_module

    class Nothing:
        def __getitem__(self, grid: Any) -> Any:
            assert all(isinstance(each, int) for each in grid)
            return lambda *_, **__: None

    def refused(*_: Any) -> Any:
        raise AssertionError("a tensor went to the host")

    (case,) = [each for each in cases_of("experts_block") if each.name.startswith("int4 by few")]
    x, block, tokens = (to_device(backend, each) for each in case.arguments())
    kernel = _experts(backend, narrow=False)
    assert kernel.takes(x, block, tokens)
    for module, name in (
        (few_rows, "_few_rows"), (tiles, "_tiles"), (tiles, "_combine"),
        (rows_module, "_normed"), (rows_module, "_joined"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, Nothing())
    monkeypatch.setattr(Transfer, "download", refused)
    with _NoWaiting():
        kernel.run(x[:rows], replace(block, pre_norm=None), tokens[:rows])
