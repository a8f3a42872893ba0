"""Products in Triton agree with formats/ to the bit, and with `linear` as the contract says."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from firstlight.backends.kernel import Choice, Kernel  # noqa: E402
from firstlight.backends.numpy.backend import NumpyBackend  # noqa: E402
from firstlight.backends.torch.backend import TorchBackend  # noqa: E402
from firstlight.backends.torch.products import ProductKernels  # noqa: E402
from firstlight.backends.torch.transfer import Transfer  # noqa: E402
from firstlight.backends.torch.triton import few_rows as few_rows_module  # noqa: E402
from firstlight.backends.torch.triton import launching, tiles  # noqa: E402
from firstlight.backends.torch.triton.coding import CODINGS  # noqa: E402
from firstlight.backends.torch.triton.few_rows import few_rows  # noqa: E402
from firstlight.backends.torch.triton.operands import operand_of  # noqa: E402
from firstlight.backends.torch.triton.products import TritonProducts  # noqa: E402
from firstlight.backends.torch.triton.request import Request  # noqa: E402
from firstlight.formats.base import BlockScales, Weight  # noqa: E402
from firstlight.formats.registry import get_format  # noqa: E402
from firstlight.ops.contract import get_op  # noqa: E402
from firstlight.ops.feed_forward_block import FeedForwardBlock  # noqa: E402
from firstlight.ops.parts import Norm, Product  # noqa: E402
from firstlight.ops.rounding import round_activations  # noqa: E402
from firstlight.verify.conformance import check_kernel, check_kernels, to_device  # noqa: E402
from firstlight.verify.random_weights import random_weight  # noqa: E402

if not launching.interpreted():
    pytest.skip("Triton would compile its kernels", allow_module_level=True)

# Every program is interpreted, so there should be few.
_LARGE = {"few rows": {"outputs": 16, "unrolled": 1}, "tiles": {"outputs": 128}}


@pytest.fixture(scope="module")
def backend() -> TorchBackend:
    return TorchBackend("cpu")


def _kernel(backend: TorchBackend, op: str, name: str) -> Kernel:
    (found,) = [each for each in backend.kernels() if (each.op, each.name) == (op, name)]
    return found


def _weight(name: str, rows: int, columns: int, seed: int = 0) -> Weight:
    return random_weight(get_format(name), rows, columns, np.random.default_rng(seed))


def _agrees(found: Any, x: Any, weight: Weight, bias: Any = None) -> None:
    """Whether a product is as near to its definition on rounded activations as it must be."""
    op = get_op("linear")
    wanted = op.definition(round_activations(x, "bfloat16"), weight, bias)
    allowed = op.tolerance.absolute + op.tolerance.relative * np.abs(wanted).max()
    assert np.abs(found.numpy() - wanted).max() <= allowed


@pytest.mark.parametrize("name", ["few rows", "tiles"])
def test_both_forms_agree_with_the_definition(backend: TorchBackend, name: str) -> None:
    kernel = _kernel(backend, "linear", name)
    reports = check_kernel(backend, replace(kernel, run=partial(kernel.run, **_LARGE[name])))
    assert len(reports) >= len(CODINGS) - 1
    assert [str(report) for report in reports if not report.passed] == []


@pytest.mark.parametrize("name", CODINGS)
def test_values_are_decoded_exactly(backend: TorchBackend, name: str) -> None:
    """A row with a single one in it selects a column."""
    weight = _weight(name, 3, 256)
    operand = operand_of(backend.pack(weight))
    assert operand is not None
    ones, wanted = torch.eye(256), weight.decode().T
    every = tiles.tiles(Request(ones, operand), outputs=16, rows=256)
    np.testing.assert_array_equal(every.numpy(), wanted)
    some = [0, 77, 146, 255]
    found = few_rows(Request(ones[some], operand), outputs=4, unrolled=1)
    np.testing.assert_array_equal(found.numpy(), wanted[some])


@pytest.mark.parametrize("rows", [1, 2, 3, 15, 17])
@pytest.mark.parametrize("name", ["q8_0", "q6_k"])
def test_awkward_sizes(backend: TorchBackend, name: str, rows: int) -> None:
    weight, generator = _weight(name, 19, 512), np.random.default_rng(rows)
    x = generator.standard_normal((rows, 512), np.float32)
    bias = generator.standard_normal(19, np.float32)
    kernel = "few rows" if rows < 5 else "tiles"
    arguments = (torch.from_numpy(x), backend.pack(weight), torch.from_numpy(bias))
    assert backend.default_choice("linear", *arguments) == Choice(kernel)
    _agrees(backend.call("linear", *arguments), x, weight, bias)


@pytest.mark.parametrize(
    ("rows", "columns", "powers"), [(128, 128, False), (128, 128, True), (1, 300, False)]
)
def test_eight_bit_floats_with_scales(
    backend: TorchBackend, rows: int, columns: int, powers: bool
) -> None:
    """Of blocks that the weight begins and ends within, or of whole rows."""
    generator = np.random.default_rng(3)
    plain = _weight("f8_e4m3", 300, 300)
    shape = -(-300 // rows), -(-300 // columns)
    values = np.exp2(generator.integers(-6, 3, shape) if powers else generator.normal(size=shape))
    scales = BlockScales(values.astype(np.float32), rows, columns)
    weight = Weight(plain.format, plain.shape, plain.data, scales=scales).row_slice(200, 281)
    packed = backend.pack(weight)
    for count in (2, 6):
        x = generator.standard_normal((count, 300), np.float32)
        given = (torch.from_numpy(x), packed)
        assert backend.default_choice("linear", *given).kernel in _LARGE
        _agrees(backend.call("linear", *given), x, weight)


def test_scales_of_odd_blocks_are_left_to_others(backend: TorchBackend) -> None:
    plain = _weight("f8_e4m3", 6, 40)
    for columns in (8, 13):
        values = np.ones((1, -(-40 // columns)), np.float32)
        weight = Weight(
            plain.format, plain.shape, plain.data, scales=BlockScales(values, 6, columns)
        )
        assert operand_of(backend.pack(weight)) is None


def test_columns_that_are_split_add_up(backend: TorchBackend) -> None:
    weight, generator = _weight("q4_0", 18, 1568), np.random.default_rng(5)
    operand = operand_of(backend.pack(weight), torch.from_numpy(generator.normal(size=18)).float())
    assert operand is not None
    assert tiles.splits_of(operand, 7) == 6
    assert tiles.splits_of(operand, 64) == 1
    assert tiles.splits_of(operand, 65) == 1
    x = generator.standard_normal((7, 1568), np.float32)
    residual = torch.from_numpy(generator.standard_normal((7, 18), np.float32))
    request = Request(
        torch.from_numpy(x).bfloat16(), operand, residual=residual, residual_scale=0.5
    )
    bias = operand.bias.numpy()
    _agrees(2 * (tiles.tiles(request, outputs=32) - residual), x, weight, bias)


def test_bfloat16_is_taken_where_the_others_round_it_too(backend: TorchBackend) -> None:
    plain = ProductKernels(Transfer(torch.device("cpu")), False)
    weight = _weight("bf16", 21, 323)
    packed, x = backend.pack(weight), np.random.default_rng(1).normal(size=(3, 323))
    given = torch.from_numpy(x).float()
    (few, *_) = TritonProducts(plain, narrow=True, exact=False).all()
    assert few.takes(given, packed)
    assert few.rounding(weight.format) == "bfloat16"
    _agrees(few.run(given, packed, outputs=8), given.numpy(), weight)
    (left, *_) = TritonProducts(plain, narrow=False, exact=False).all()
    assert not left.takes(given, packed)
    assert left.rounding(weight.format) == "none"


def test_exact_products_round_nothing() -> None:
    backend = TorchBackend("cpu", exact=True)
    weight = _weight("q4_1", 9, 64)
    for count, name in ((2, "few rows"), (6, "tiles")):
        x = np.random.default_rng(count).standard_normal((count, 64), np.float32)
        assert _kernel(backend, "linear", name).rounding(weight.format) == "none"
        found = backend.call("linear", torch.from_numpy(x), backend.pack(weight), None)
        wanted = get_op("linear").definition(x, weight)
        assert np.abs(found.numpy() - wanted).max() <= 2e-6 * np.abs(wanted).max() + 1e-6


def test_what_has_nothing_to_multiply_is_left_to_others(backend: TorchBackend) -> None:
    weight = backend.pack(_weight("q8_0", 4, 32))
    empty = Weight(get_format("q8_0"), (0, 32), np.zeros((0, 34), np.uint8))
    for arguments in (
        (torch.zeros(0, 32), weight),
        (torch.zeros(2, 32), backend.pack(empty)),
        (torch.zeros(2, 32), backend.pack(_weight("f32", 4, 32))),
    ):
        assert backend.default_choice("linear", *arguments).kernel == "decoded"


# Blocks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [3, 16])
@pytest.mark.parametrize(("post_norm", "scale"), [(True, 0.5), (True, None), (False, 2.0)])
def test_fused_feed_forward_agrees_with_the_definition(
    backend: TorchBackend, rows: int, post_norm: bool, scale: float | None
) -> None:
    kernel, generator = _kernel(backend, "feed_forward_block", "fused"), np.random.default_rng(2)
    x, norm = generator.standard_normal((2, rows, 64), np.float32)
    block = FeedForwardBlock(
        Product(_weight("q4_1", 32, 64), norm[0, :32].copy()),
        Product(_weight("q4_1", 32, 64, 1)),
        Product(_weight("mxfp4", 64, 32)),
        "gelu",
        Norm(64, 1e-5, norm[1] / 8),
        Norm(64, 1e-6, norm[2]) if post_norm else None,
        scale,
    )
    on_device = to_device(backend, block)
    assert kernel.takes(torch.from_numpy(x), on_device)
    found = kernel.run(torch.from_numpy(x), on_device).numpy()
    wanted = NumpyBackend(kernel.rounding).call("feed_forward_block", x, block)
    difference = np.abs(found - wanted) / np.abs(wanted).max()
    assert difference.max() <= get_op("feed_forward_block").tolerance.tipped
    # A tipped step is rare: most values have no such excuse.
    assert np.median(difference) <= 1e-5


@pytest.mark.slow
def test_fused_feed_forward_agrees_on_large_cases(backend: TorchBackend) -> None:
    reports = check_kernel(backend, _kernel(backend, "feed_forward_block", "fused"))
    assert reports
    assert [str(report) for report in reports if not report.passed] == []


def test_norms_and_gates_agree_with_their_definitions() -> None:
    backend = TorchBackend("cpu")
    for op in ("rms_norm", "gate", "clamped_gate"):
        backend.leave_out(op, "plain")
    reports = check_kernels(backend, ops=frozenset({"rms_norm", "gate", "clamped_gate"}))
    assert {report.kernel for report in reports} == {"whole rows", "one pass"}
    assert [str(report) for report in reports if not report.passed] == []


def test_blocks_know_what_was_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, launched = TorchBackend("cpu"), []

    class Spy:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *_, **named: launched.append(named["OUTPUTS"])

    monkeypatch.setattr(few_rows_module, "_few_rows", Spy())
    inner, outer = backend.pack(_weight("q8_0", 64, 32)), backend.pack(_weight("q8_0", 32, 64))
    block = FeedForwardBlock(Product(inner), Product(inner), Product(outer), "silu")
    x = torch.zeros(1, 32)
    shape = get_op("linear").shape(x, inner)
    backend.call("feed_forward_block", x, block)
    backend.apply_tuning("linear", shape, Choice("few rows", (("outputs", 16),)))
    backend.call("feed_forward_block", x, block)
    backend.apply_tuning("linear", shape, None)
    backend.call("feed_forward_block", x, block)
    assert launched == [4, 4, 16, 4, 4, 4]
