"""Products of each head with rows of its own agree with `head_linear`, in every format."""

from __future__ import annotations

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
from firstlight.backends.torch.triton import launching  # noqa: E402
from firstlight.backends.torch.triton.coding import CODINGS  # noqa: E402
from firstlight.backends.torch.triton.heads import TritonHeads  # noqa: E402
from firstlight.backends.torch.triton.products import TritonProducts  # noqa: E402
from firstlight.formats.base import BlockScales, Weight  # noqa: E402
from firstlight.formats.registry import get_format  # noqa: E402
from firstlight.ops.contract import get_op  # noqa: E402
from firstlight.verify.random_weights import random_weight  # noqa: E402

if not launching.interpreted():
    pytest.skip("Triton would compile its kernels", allow_module_level=True)

each_direction = pytest.mark.parametrize("transposed", [False, True], ids=["along", "down"])


@pytest.fixture(scope="module")
def backend() -> TorchBackend:
    return TorchBackend("cpu")


def _kernel(exact: bool = False) -> Kernel:
    transfer = Transfer(torch.device("cpu"))
    products = TritonProducts(ProductKernels(transfer, not exact), not exact, exact)
    (kernel,) = TritonHeads(products).all()
    return kernel


def _checked(
    backend: TorchBackend, kernel: Kernel, weight: Weight, x: Any, *rows: Any, torch_x: Any = None
) -> None:
    given = torch.from_numpy(x) if torch_x is None else torch_x
    arguments = (given, backend.pack(weight), *rows)
    assert kernel.takes(*arguments)
    found = kernel.run(*arguments).numpy()
    wanted = NumpyBackend(kernel.rounding).call("head_linear", x, weight, *rows)
    tolerance = get_op("head_linear").tolerance
    allowed = tolerance.absolute + tolerance.relative * np.abs(wanted).max()
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= allowed


def test_they_are_preferred(backend: TorchBackend) -> None:
    weight = backend.pack(random_weight(get_format("q4_0"), 32, 64, np.random.default_rng(0)))
    for transposed in (False, True):
        x = torch.zeros(3, 2, 16 if transposed else 64)
        choice = backend.default_choice("head_linear", x, weight, 0, 16, transposed)
        assert choice == Choice("as stored")


@each_direction
@pytest.mark.parametrize("name", CODINGS)
def test_every_format(backend: TorchBackend, name: str, transposed: bool) -> None:
    """Of 2 heads with 16 rows each, 7 in the middle of these."""
    weight = random_weight(get_format(name), 2 * 16, 256, np.random.default_rng(1))
    x = np.random.default_rng(2).standard_normal((1, 2, 7 if transposed else 256), np.float32)
    _checked(backend, _kernel(), weight, x, 8, 7, transposed)


@each_direction
def test_nothing_is_rounded_if_that_is_asked_for(backend: TorchBackend, transposed: bool) -> None:
    weight = random_weight(get_format("q4_1"), 2 * 16, 64, np.random.default_rng(1))
    for rows in (2, 5):
        x = np.random.default_rng(2).standard_normal((rows, 2, 16 if transposed else 64))
        _checked(backend, _kernel(exact=True), weight, x.astype(np.float32), 0, 16, transposed)


@each_direction
@pytest.mark.parametrize("rows", [1, 5, 19, 70])
def test_awkward_sizes(backend: TorchBackend, rows: int, transposed: bool) -> None:
    """Columns that end within a chunk, and rows that end within a tile; x is a part of another."""
    generator = np.random.default_rng(rows)
    for name in ("bf16", "q5_1") if rows < 70 else ("q5_1",):
        columns = 72 if name == "bf16" else 96
        weight = random_weight(get_format(name), 2 * 40, columns, generator)
        wide = generator.standard_normal((rows, 2, 150), np.float32)
        x = wide[:, :, : 33 if transposed else columns]
        part = torch.from_numpy(wide)[:, :, : x.shape[2]]
        _checked(backend, _kernel(), weight, x, 4, 33, transposed, torch_x=part)


@each_direction
@pytest.mark.parametrize("rows", [1, 6])
def test_blocks_of_scales(backend: TorchBackend, rows: int, transposed: bool) -> None:
    """Heads begin where blocks do, or in the middle of them."""
    generator = np.random.default_rng(rows)
    for first in (0, 8, 16):
        data = random_weight(get_format("f8_e4m3"), 3 * 32, 70, generator).data
        scales = BlockScales(generator.uniform(0.5, 2, (6, 5)).astype(np.float32), 16, 16)
        weight = Weight(get_format("f8_e4m3"), (96, 70), data, scales=scales)
        x = generator.standard_normal((rows, 3, 13 if transposed else 70), np.float32)
        _checked(backend, _kernel(), weight, x, first, 13, transposed)


def test_what_does_not_fit_is_left_to_others(backend: TorchBackend) -> None:
    generator, kernel = np.random.default_rng(0), _kernel()

    def taken(name: str, heads: int, head_rows: int, columns: int, transposed: bool) -> bool:
        weight = random_weight(get_format(name), heads * head_rows, columns, generator)
        x = torch.zeros(1, heads, head_rows if transposed else columns)
        return kernel.takes(x, backend.pack(weight), 0, head_rows, transposed)

    assert taken("q8_0", 2, 8, 32, False)
    assert not taken("q8_0", 2, 7, 32, False)  # 7 * 34 bytes: the second head's are not aligned
    assert taken("q8_0", 2, 7, 32, True)
    assert not taken("f32", 2, 8, 32, False)
    assert not taken("q2_k", 2, 8, 256, True)
    many = torch.zeros(513, 1, 8)
    weight = backend.pack(random_weight(get_format("q8_0"), 8, 32, generator))
    assert not kernel.takes(many, weight, 0, 8, True)
    scales = BlockScales(np.ones((3, 2), np.float32), 16, 16)
    odd = Weight(get_format("f8_e4m3"), (48, 32), np.zeros((48, 32), np.uint8), scales=scales)
    x = torch.zeros(1, 2, 32)
    assert not kernel.takes(x, backend.pack(odd), 0, 24, False)  # the second within a block
    assert kernel.takes(x[:, :, :24], backend.pack(odd), 0, 24, True)
