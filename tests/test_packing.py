"""From a checkpoint to packed weights on disk and back: the same model, packed once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import firstlight
from firstlight import loading, packing
from firstlight.backends.base import Backend
from firstlight.backends.numpy.backend import NumpyBackend
from firstlight.checkpoint.checkpoint import Checkpoint, open_checkpoint
from firstlight.errors import FormatError
from firstlight.formats.base import Bytes, Format, Weight
from firstlight.formats.registry import get_format
from firstlight.model import matrices
from firstlight.model.families.registry import make_spec
from firstlight.model.matrices import kept_matrices, memory_for, pack_matrix, packed_matrix
from firstlight.packed.store import PackedCacheWarning
from tests.support.panel_backend import PanelBackend
from tests.support.tiny_chat import write_chat_model

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
Load = Callable[..., Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, into which the smallest model goes; no warnings."""
    monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FIRSTLIGHT_CACHE_LIMIT", "1GiB")
    monkeypatch.setattr(packing, "WORTH_KEEPING", 0)
    monkeypatch.setattr(packing, "SPARE_BYTES", 0)
    return tmp_path / "cache" / "packed"


@pytest.fixture(autouse=True)
def no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("model"), shards=2)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """(folder, backend, options of load) -> logits of PROMPT."""

    def run(folder: Path, backend: Backend, **options: Any) -> Any:
        monkeypatch.setattr(loading, "open_device", lambda name, exact: backend)
        return firstlight.load(folder, **options).logits(PROMPT)

    return run


def rows_of(folder: Path) -> int:
    spec = make_spec(open_checkpoint(folder))
    return sum(source.shape[0] for source in spec.sources() if len(source.shape) > 1)


@pytest.mark.parametrize("row_group", [None, 4])
@pytest.mark.parametrize("weights", [None, "int8", "bf16"])
def test_a_second_start_packs_nothing_and_computes_the_same(
    load: Load, folder: Path, cache: Path, weights: str | None, row_group: int | None
) -> None:
    expected = load(folder, NumpyBackend(), weights=weights, cache=False)
    assert not cache.exists()
    first, second = (PanelBackend(row_group=row_group) for _ in range(2))
    assert np.array_equal(load(folder, first, weights=weights), expected)
    assert first.packed_rows == rows_of(folder)
    assert len(list(cache.glob("*.packed"))) == 1
    assert np.array_equal(load(folder, second, weights=weights), expected)
    assert second.packed_rows == 0


def test_each_format_and_layout_is_kept_by_itself(load: Load, folder: Path, cache: Path) -> None:
    for backend in (PanelBackend("one"), PanelBackend("two")):
        for weights in (None, "int8"):
            load(folder, backend, weights=weights)
    assert len(list(cache.glob("*.packed"))) == 4


def test_other_weights_of_the_same_size_are_another_model(
    load: Load, tmp_path: Path, cache: Path
) -> None:
    folder = write_chat_model(tmp_path / "model", seed=1)
    before = load(folder, PanelBackend())
    write_chat_model(tmp_path / "model", seed=2)
    after = load(folder, PanelBackend())
    assert not np.array_equal(before, after)
    assert np.array_equal(after, load(folder, NumpyBackend(), cache=False))
    assert len(list(cache.glob("*.packed"))) == 2


def test_a_moved_model_is_not_packed_again(load: Load, tmp_path: Path) -> None:
    folder = write_chat_model(tmp_path / "model")
    load(folder, PanelBackend())
    moved = folder.rename(tmp_path / "moved")
    backend = PanelBackend()
    load(moved, backend)
    assert backend.packed_rows == 0


def test_without_the_cache_nothing_is_written(load: Load, folder: Path, cache: Path) -> None:
    expected = load(folder, NumpyBackend(), cache=False)
    backend = PanelBackend()
    assert np.array_equal(load(folder, backend, cache=False), expected)
    assert backend.packed_rows == rows_of(folder)
    assert not cache.exists()


@pytest.mark.parametrize("name", ["WORTH_KEEPING", "LIMIT"])
def test_small_models_and_a_limit_of_nothing(
    load: Load, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name == "LIMIT":
        monkeypatch.setenv("FIRSTLIGHT_CACHE_LIMIT", "0")
    else:
        monkeypatch.setattr(packing, "WORTH_KEEPING", 1 << 26)
    backend = PanelBackend()
    load(folder, backend)
    assert backend.packed_rows == rows_of(folder)
    assert not cache.exists()


def test_what_is_used_in_place_is_neither_packed_nor_written(
    load: Load, folder: Path, cache: Path
) -> None:
    backend = PanelBackend(in_place=("f32",))
    assert np.array_equal(load(folder, backend), load(folder, NumpyBackend(), cache=False))
    assert backend.packed_rows == 0
    assert not cache.exists()


def test_conversions_are_kept_for_a_backend_without_a_layout(
    load: Load, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(folder, NumpyBackend(), weights="int8", cache=False)
    load(folder, NumpyBackend(), weights="int8")
    assert len(list(cache.glob("*.packed"))) == 1

    def never(*_: Any) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(matrices, "convert_into", never)
    assert np.array_equal(load(folder, NumpyBackend(), weights="int8"), expected)


def test_packed_weights_are_mapped_not_copied(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):  # once written, then found: mapped both times
        monkeypatch.setattr(loading, "open_device", lambda name, exact: PanelBackend())
        model = firstlight.load(folder)
        weights = model.engine.decoder.weights
        (path,) = cache.glob("*.packed")
        start, stop = _mapped_at(path)
        for source in model.spec.sources():
            if len(source.shape) > 1:
                data = weights[source].data
                assert start <= data.ctypes.data < stop
                assert not data.flags.writeable
        del weights, model


def _mapped_at(path: Path) -> tuple[int, int]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(path)):
            assert line.split()[1] in ("r--p", "r--s")
            start, stop = line.split()[0].split("-")
            return int(start, 16), int(stop, 16)
    pytest.skip("this system does not say what is mapped")


def test_damage_is_said_once_and_repaired(load: Load, folder: Path, cache: Path) -> None:
    expected = load(folder, PanelBackend())
    (path,) = cache.glob("*.packed")
    path.write_bytes(path.read_bytes()[:-1])
    backend = PanelBackend()
    with pytest.warns(PackedCacheWarning, match="packed again") as said:
        assert np.array_equal(load(folder, backend), expected)
    assert len(said) == 1
    assert backend.packed_rows > 0
    last = PanelBackend()
    load(folder, last)
    assert last.packed_rows == 0


def test_a_full_disk_does_not_keep_a_model_from_running(
    load: Load, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "SPARE_BYTES", 1 << 60)
    expected = load(folder, NumpyBackend(), cache=False)
    with pytest.warns(PackedCacheWarning) as said:
        assert np.array_equal(load(folder, PanelBackend()), expected)
    assert len(said) == 1
    assert list(cache.glob("*.packed")) == []


def test_values_that_cannot_be_expressed_end_in_an_error_and_leave_nothing(
    load: Load, tmp_path: Path, cache: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    folder = write_chat_model(tmp_path / "model")
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][5, 5] = np.inf
    save_file(tensors, path)
    with pytest.raises(FormatError, match="up_proj"):
        load(folder, PanelBackend(), weights="int8")
    assert [each.name for each in cache.iterdir()] == [".lock"]


def test_fused_tensors_are_packed_in_their_parts(load: Load, tmp_path: Path, cache: Path) -> None:
    from tests.support.tiny_checkpoints import write_checkpoint
    from tests.support.tiny_models import tiny_model

    folder = write_checkpoint(tiny_model("phi3").build(), tmp_path / "phi3")
    expected = load(folder, NumpyBackend(), cache=False)
    for _ in range(2):
        assert np.array_equal(load(folder, PanelBackend()), expected)
    assert len(list(cache.glob("*.packed"))) == 1


# A few rows at a time ------------------------------------------------------------------------


class OneTensor:
    """A checkpoint with a single matrix, which notes what was released."""

    location = "one"

    def __init__(self, values: np.ndarray) -> None:
        format = get_format("f32")
        self._weight = Weight(format, values.shape, values.view(np.uint8), "matrix")
        self.tensors = {"matrix": _Header(values.shape, "f32")}
        self.released: list[tuple[int, int]] = []

    def weight(self, name: str) -> Weight:
        return self._weight

    def format_of(self, name: str) -> Format:
        return self._weight.format

    def rows(self, name: str, start: int, stop: int) -> Weight:
        return self._weight.row_slice(start, stop)

    def release(self, name: str, start: int, stop: int) -> None:
        self.released.append((start, stop))


class _Header:
    def __init__(self, shape: tuple[int, ...], format: str) -> None:
        self.shape, self.format = shape, format


class _Spec:
    def __init__(self, *sources: Any) -> None:
        self._sources = sources

    def sources(self) -> Any:
        return self._sources


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 31, 32, 33])
@pytest.mark.parametrize("target", [None, "q8_0"])
@pytest.mark.parametrize("packs", [True, False])
def test_steps_of_rows_give_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, rows: int, target: str | None, packs: bool
) -> None:
    from firstlight.model.tensor_source import TensorSource

    values = np.random.default_rng(rows).standard_normal((50, 64)).astype(np.float32)
    source = TensorSource("matrix", (rows, 64), first_row=7, fused_rows=50)
    ops = PanelBackend() if packs else NumpyBackend()
    format = None if target is None else get_format(target)

    def packed(step_bytes: int) -> tuple[Bytes, OneTensor]:
        monkeypatch.setattr(matrices, "_STEP_BYTES", step_bytes)
        files: Any = OneTensor(values)
        (matrix,) = kept_matrices(_Spec(source), files, ops, format)  # type: ignore[arg-type]
        out = memory_for(matrix)
        assert out.ctypes.data % 64 == 0
        written: list[int] = []
        if matrix.in_place:
            pytest.skip("nothing to do")
        pack_matrix(matrix, files, ops, out, written.append)
        assert sum(written) == matrix.nbytes
        weight = ops.unpack(packed_matrix(matrix, ops, out))
        assert weight.shape == (rows, 64)
        return out, files

    whole, files = packed(1 << 24)
    assert files.released == [(7, 7 + rows)]
    stepwise, files = packed(5 * 256)
    assert np.array_equal(whole, stepwise)
    covered = [row for start, stop in files.released for row in range(start, stop)]
    assert covered == list(range(7, 7 + rows))
    if rows > 16:
        assert len(files.released) > 1


def test_released_pages_leave_the_process_and_come_back(tmp_path: Path) -> None:
    """Of a real checkpoint; the tensor's values are as before."""
    from safetensors.numpy import save_file

    values = np.random.default_rng(0).standard_normal((2048, 1024)).astype(np.float32)
    save_file({"matrix": values}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    weight = checkpoint.weight("matrix")
    assert np.array_equal(weight.values(), values)
    before = _resident(tmp_path / "model.safetensors")
    assert before >= values.nbytes
    checkpoint.release("matrix", 0, 1024)
    assert _resident(tmp_path / "model.safetensors") <= before - values.nbytes // 2 + (1 << 16)
    checkpoint.release("matrix", 1024, 2048)
    assert _resident(tmp_path / "model.safetensors") <= 1 << 16
    assert np.array_equal(weight.values(), values)


def _resident(path: Path) -> int:
    """Bytes of a mapped file that this process has in memory."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        pytest.skip("this system does not say what is mapped")
    inside = False
    for line in lines:
        if "-" in line.split()[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("not mapped")


def test_the_plan_counts_what_is_mapped(folder: Path) -> None:
    checkpoint: Checkpoint = open_checkpoint(folder)
    spec = make_spec(checkpoint)
    stored = loading.memory_plan(checkpoint, spec).weights

    class Wasteful(PanelBackend):
        def packed_bytes(self, format: Format, rows: int, columns: int) -> int | None:
            return 3 * rows * format.row_bytes(columns)

    vectors = sum(4 * source.shape[0] for source in spec.sources() if len(source.shape) == 1)
    packed = loading.memory_plan(checkpoint, spec, ops=Wasteful()).weights
    assert packed - vectors == 3 * (stored - vectors)
