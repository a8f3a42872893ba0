"""The torch backend on the device that every machine has."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firstlight import backends
from firstlight.backends import backend_names, open_device
from firstlight.errors import DeviceError
from firstlight.formats.base import BlockScales, Format, Weight
from firstlight.formats.registry import get_format, known_formats
from firstlight.ops.contract import all_ops
from firstlight.ops.paging import PagedRows
from firstlight.verify.random_weights import random_weight

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def backend() -> Any:
    return open_device("torch:cpu", check_kernels=False)


# Opening --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("torch:abacus", "knows no device of that name"),
        ("torch:cpu:x", "knows no device of that name"),
        ("torch:meta", "nothing can be computed on it"),
        ("torch:", "no backend of that name"),
        ("cpu:0", "no backend of that name"),
        ("numpy:cpu", "no backend of that name"),
    ],
)
def test_what_is_no_device_is_refused(name: str, says: str) -> None:
    with pytest.raises(DeviceError, match=says) as caught:
        open_device(name)
    assert name in caught.value.subject


@pytest.mark.skipif(torch.accelerator.is_available(), reason="has an accelerator")
def test_without_an_accelerator_the_remedy_names_what_is_there() -> None:
    with pytest.raises(DeviceError, match="finds no accelerator") as caught:
        open_device("torch")
    assert "torch:cpu" in caught.value.remedy
    with pytest.raises(DeviceError, match="nothing can be computed on it") as caught:
        open_device("torch:cuda:1")
    assert "torch:cpu" in caught.value.remedy


def test_without_pytorch_the_remedy_is_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("firstlight.backends.torch")]:
        monkeypatch.delitem(sys.modules, module)
    # The package is imported anew, and would stay in the place of the one that other tests know.
    monkeypatch.setattr(backends, "torch", backends.torch)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(backends, "find_spec", lambda _: None)
    with pytest.raises(DeviceError, match="installed without PyTorch") as caught:
        open_device("torch:cpu")
    assert "firstlight[torch]" in caught.value.remedy
    assert not any(name.startswith("torch") for name in backends.available_devices())
    assert "torch" in backend_names()


def test_pytorch_is_imported_for_its_own_devices_only() -> None:
    code = (
        "import sys\n"
        "from firstlight.backends import backend_names, open_device\n"
        "from firstlight.cli.main import main\n"
        "open_device('cpu', check_kernels=False)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_the_device_is_called(backend: Any) -> None:
    assert backend.name == "torch:cpu"
    assert backend.device_key().startswith("torch:cpu: ")
    assert torch.__version__ in backend.device_key()
    assert backend.device_key() in backend.identity()
    assert 0 < backend.available_memory() <= backend.total_memory()


def test_its_verdicts_have_file_names_that_every_system_takes(tmp_path: Path, backend: Any) -> None:
    from firstlight.tuning.store import Store
    from firstlight.verify.trust import distrusted_kernels

    small = open_device("torch:cpu", check_kernels=False)
    for kernel in small.kernels():
        if kernel.op != "scale":
            small.leave_out(kernel.op, kernel.name)
    assert distrusted_kernels(small, directory=tmp_path) == ()
    (verdict,) = tmp_path.iterdir()
    assert ":" not in verdict.name
    assert ":" not in Store(small, directory=tmp_path).path.name


# Ops and weights --------------------------------------------------------------------------------


def test_every_op_has_a_kernel_but_those_made_of_parts(backend: Any) -> None:
    have = {kernel.op for kernel in backend.kernels()}
    assert {op.name for op in all_ops() if not op.composite} <= have


def test_every_format_is_decoded_on_the_device(backend: Any) -> None:
    """Those that are asked for by name, and those of bare codes."""
    assert {*known_formats(), "u4", "u8", "e2m1"} - {"f64"} <= backend.fast_formats()


@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "q4_k", "q8_0", "f8_e4m3"])
def test_a_weight_is_used_where_it_lies(backend: Any, name: str) -> None:
    weight = random_weight(get_format(name), 8, 512, np.random.default_rng(0))
    weight.data.flags.writeable = False  # as of a mapped file
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packed = backend.pack(weight)
    assert packed.data.data_ptr() == weight.data.ctypes.data
    assert packed.nbytes == weight.nbytes
    assert packed.shape == weight.shape
    back = backend.unpack(packed)
    assert back.format is weight.format
    np.testing.assert_array_equal(back.data, weight.data)


@pytest.mark.parametrize("name", [name for name in known_formats() if name != "f64"])
def test_decoding_is_exact_whatever_the_bytes(backend: Any, name: str) -> None:
    """Random bytes, so that scales are infinite, not numbers, or smaller than normal ones too."""
    format = get_format(name)
    data = np.random.default_rng(7).integers(0, 256, (5, 40 * format.block_bytes), dtype=np.uint8)
    weight = Weight(format, (5, 40 * format.block_values), data)
    with np.errstate(all="ignore"):
        expected = weight.decode()
    found = backend.pack(weight).decode(1, 4).numpy()
    np.testing.assert_array_equal(found, expected[1:4])


@pytest.mark.parametrize("first_row", [0, 3])
def test_scales_of_blocks(backend: Any, first_row: int) -> None:
    generator = np.random.default_rng(3)
    format = get_format("f8_e4m3")
    codes = generator.integers(0, 0x7E, (21, 37), dtype=np.uint8)
    values = generator.standard_normal((3, 3)).astype(np.float32)
    weight = Weight(format, (21, 37), codes, "w", BlockScales(values, 8, 16, first_row))
    packed = backend.pack(weight)
    np.testing.assert_array_equal(packed.decode(5, 19).numpy(), weight.decode(5, 19))
    rows = np.array([20, 0, 7], np.int32)
    np.testing.assert_array_equal(backend.embed(packed, rows).numpy(), weight.decode_rows(rows))
    again = backend.unpack(packed)
    np.testing.assert_array_equal(again.decode(), weight.decode())


def test_a_format_that_is_not_known_there_is_widened_and_says_so(backend: Any) -> None:
    known = get_format("q8_0")
    novel = Format("novel", known.block_values, known.block_bytes, known.decode)
    weight = random_weight(known, 4, 64, np.random.default_rng(1))
    weight = Weight(novel, weight.shape, weight.data, "layer.weight")
    with pytest.warns(UserWarning, match="layer.weight: novel is not decoded"):
        packed = backend.pack(weight)
    np.testing.assert_array_equal(packed.decode(0, 4).numpy(), weight.decode())


def test_a_large_weight_is_multiplied_in_parts(backend: Any, monkeypatch: Any) -> None:
    from firstlight.backends.torch import products, quirks

    monkeypatch.setitem(quirks._QUIRKS, "cpu", quirks.Quirk(on_host=True, decoded_values=1024))
    monkeypatch.setattr(products, "_SUMMED", 100)
    small = open_device("torch:cpu", check_kernels=False)
    weight = random_weight(get_format("q8_0"), 37, 256, np.random.default_rng(2))
    x = np.random.default_rng(3).standard_normal((5, 256)).astype(np.float32)
    found = small.download(small.linear(small.upload(x), small.pack(weight)))
    np.testing.assert_allclose(found, x @ weight.decode().T, rtol=0, atol=1e-2)
    expected = backend.download(backend.linear(backend.upload(x), backend.pack(weight)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


class _Pinned:
    """Pieces of pinned memory, and events that tell whether one was filled too early."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def event(self, device: Any) -> Any:
        number = sum(entry.startswith("new") for entry in self.log)
        self.log.append(f"new {number}")
        outer = self

        class Event:
            def record(self) -> None:
                outer.log.append(f"record {number}")

            def synchronize(self) -> None:
                outer.log.append(f"wait {number}")

        return Event()


@pytest.mark.parametrize("size", [1, 999, 1000, 1001, 4321])
def test_large_weights_pass_through_two_pieces(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    from firstlight.backends.torch import transfer
    from firstlight.backends.torch.quirks import HOST

    pinned, empty = _Pinned(), torch.empty
    made: list[Any] = []

    def pieces(*shape: Any, pin_memory: bool = False, **rest: Any) -> Any:
        tensor = empty(*shape, **rest)
        made.extend([tensor] if pin_memory else [])
        return tensor

    subject = transfer.Transfer(HOST)
    monkeypatch.setattr(subject, "_on_host", False)
    monkeypatch.setattr(subject, "_pins", True)
    monkeypatch.setattr(transfer, "_PIECE_BYTES", 1000)
    monkeypatch.setattr(torch, "empty", pieces)
    monkeypatch.setattr(torch, "Event", pinned.event)
    data = np.random.default_rng(0).integers(0, 256, (size, 2), dtype=np.uint8)
    found = subject.load(data)
    np.testing.assert_array_equal(found.numpy(), data)
    assert len(made) == (0 if 2 * size <= 1000 else 2)
    log = [entry for entry in pinned.log if not entry.startswith("new")]
    count = -(-2 * size // 1000) if made else 0
    expected = []
    for number in range(count):
        expected += [f"wait {number % 2}"] if number > 1 else []
        expected.append(f"record {number % 2}")
    assert log == expected


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("name", ["bf16", "q8_0"])
def test_the_host_holds_no_second_copy_of_a_weight(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, offset: int
) -> None:
    """From a mapped file, wherever in it the weight begins."""
    import tracemalloc

    from firstlight.backends.torch import transfer
    from firstlight.backends.torch.matrix import put_on_device
    from firstlight.backends.torch.quirks import HOST

    piece, empty = 1 << 16, torch.empty
    pinned: list[int] = []

    def pieces(*shape: Any, pin_memory: bool = False, **rest: Any) -> Any:
        tensor = empty(*shape, **rest)
        pinned.extend([tensor.nbytes] if pin_memory else [])
        return tensor

    subject = transfer.Transfer(HOST)
    monkeypatch.setattr(subject, "_on_host", False)
    monkeypatch.setattr(subject, "_pins", True)
    monkeypatch.setattr(transfer, "_PIECE_BYTES", piece)
    monkeypatch.setattr(torch, "empty", pieces)
    monkeypatch.setattr(torch, "Event", _Pinned().event)
    original = random_weight(get_format(name), 512, 2048, np.random.default_rng(0))
    path = tmp_path / "weights"
    path.write_bytes(bytes(offset) + original.data.tobytes())
    mapped = np.memmap(path, np.uint8, "r", offset, original.data.shape)
    weight = Weight(original.format, original.shape, mapped)
    tracemalloc.start()
    try:
        packed = put_on_device(weight, subject)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < weight.nbytes / 4  # NumPy's arrays; PyTorch's on the host are counted below
    assert pinned == [piece, piece]
    np.testing.assert_array_equal(packed.decode(0, 512).numpy(), original.decode())


# Attention --------------------------------------------------------------------------------------


def test_a_reading_of_many_rows_is_cut_and_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    from firstlight.backends.torch import paging
    from firstlight.backends.torch.transfer import Transfer

    monkeypatch.setattr(paging, "MOST_ROWS", 16)
    starts = np.array([0, 40, 41, 42], np.int32)
    positions = np.array([*range(40), 90, 93], np.int32)
    table = np.arange(3 * 8, dtype=np.int32).reshape(3, 8)
    rows = PagedRows(starts, positions, table, 16)
    found = paging.readings(rows, None, 2, Transfer(torch.device("cpu")))
    assert sorted(int(row) for each in found for row in each.rows) == list(range(42))
    # The two that decode are padded to one size and computed together.
    together = [each for each in found if each.count == 1 and len(each.slots) == 2]
    assert [each.rows.tolist() for each in together] == [[40, 41]]
    for each in found:
        # Each row sees as many positions as it has before it, and itself.
        visible = (~each.hidden).sum(2).reshape(-1)
        assert visible.tolist() == [int(positions[row]) + 1 for row in each.rows]
    assert found is paging.readings(rows, None, 2, Transfer(torch.device("cpu")))


def test_positions_are_padded_to_few_numbers() -> None:
    from firstlight.backends.torch.paging import padded

    for seen in range(1, 5000):
        assert seen <= padded(seen) < max(seen + 32, seen * 1.25 + 1)
    assert len({padded(seen) for seen in range(1, 65536)}) < 64


def test_entries_that_are_not_numbers_stay_with_their_sequence(backend: Any) -> None:
    """Pages that nobody holds may be full of anything."""
    generator = np.random.default_rng(0)
    pages = generator.standard_normal((6, 4, 1, 8)).astype(np.float32)
    pages[[0, 3]] = np.nan
    streams = []
    for _ in range(2):
        stream = backend.new_stream(6, 4, (1, 8), "float32")
        backend.assign(stream, pages)
        streams.append(stream)
    rows = PagedRows(
        np.array([0, 1], np.int32), np.array([5], np.int32), np.array([[1, 2]], np.int32), 4
    )
    queries = backend.upload(generator.standard_normal((1, 2, 8)).astype(np.float32))
    found = backend.download(backend.attention(queries, *streams, rows, 1.0, None, None))
    assert np.isfinite(found).all()


# Whole ------------------------------------------------------------------------------------------


def test_ceilings_are_measured_with_pytorch(backend: Any) -> None:
    from contextlib import contextmanager

    from firstlight.backends.torch import ceilings

    @contextmanager
    def silent(*_: Any, **__: Any) -> Any:
        yield lambda _: None

    found = ceilings.measure_ceilings(backend.device, 1 << 20, progress=silent)
    assert 1e8 < found.bandwidth_bytes_per_second < 1e14
    assert set(found.matrix_operations_per_second) == {"f32", "bf16"}
    assert torch.__version__ in found.how


def test_a_state_in_bfloat16(backend: Any) -> None:
    stream = backend.new_stream(2, 4, (3,), "bfloat16")
    bits = np.arange(24, dtype=np.uint16).reshape(2, 4, 3) + 0x3F80
    backend.assign(stream, bits)
    assert stream.dtype == torch.bfloat16
    np.testing.assert_array_equal(backend.download(stream), bits)
