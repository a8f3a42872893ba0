"""gpt-oss converted: its experts are stacked in one tensor, in mxfp4 as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.conversion.convert import Report, convert_checkpoint
from firstlight.conversion.schemes import target_of
from firstlight.errors import FormatError
from firstlight.formats.registry import convert, get_format
from firstlight.model.families.registry import make_spec
from firstlight.model.feed_forward_spec import ExpertsSpec
from firstlight.progress import no_progress
from tests.support.decode import load_decoder, logits
from tests.support.mxfp4_files import write_gpt_oss
from tests.support.reference import load_reference, reference_logits
from tests.support.tiny_models import prompt

_TOKENS = prompt(40)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """As published, with experts in mxfp4; and as transformers decodes these."""
    return write_gpt_oss(tmp_path_factory.mktemp("gpt_oss"))


def converted(source: Path, out: Path, weights: str) -> Report:
    target = target_of(weights)
    return convert_checkpoint(open_checkpoint(source), out, target, show=no_progress)


@pytest.mark.parametrize("weights", ["bf16", "f32"])
@pytest.mark.parametrize("source", [0, 1], ids=["mxfp4", "plain"])
def test_plain_numbers_are_stacked_as_transformers_reads_them(
    sources: tuple[Path, Path], tmp_path: Path, weights: str, source: int
) -> None:
    out = tmp_path / "out"
    report = converted(sources[source], out, weights)
    reference = load_reference(out)
    expected = reference.state_dict()["model.layers.1.mlp.experts.gate_up_proj"].numpy()
    before = load_file(sources[1] / "model.safetensors")
    assert np.array_equal(before["model.layers.1.mlp.experts.gate_up_proj"].numpy(), expected)
    found = logits(load_decoder(out, "numpy"), _TOKENS)
    assert np.abs(found - reference_logits(reference, _TOKENS)).max() < 1e-4
    routers = 3 if weights == "f32" else 0  # which are kept in float32 at all events
    assert sum(layer.matrices for layer in report.layers) == 3 * (4 + 2) + 2 + routers


@pytest.mark.parametrize("weights", ["int4", "int8", "q4_0", "fp8"])
@pytest.mark.parametrize("source", [0, 1], ids=["mxfp4", "plain"])
def test_quantised_experts_lie_one_by_one(
    sources: tuple[Path, Path], tmp_path: Path, weights: str, source: int
) -> None:
    """Decoded by other readers, and given to transformers stacked, they make the same model."""
    out = tmp_path / "out"
    report = converted(sources[source], out, weights)
    # 72 columns of the attention's output fill no groups of 32; fp8 leaves the head.
    count = 3 * (4 + 15) if weights == "fp8" else 3 * (3 + 15) + 1
    assert sum(layer.matrices for layer in report.layers) == count
    checkpoint, values = open_checkpoint(out), _decoded(out, weights)
    stem = "model.layers.2.mlp.experts"
    name = f"{stem}.4.up_proj.weight"
    assert np.array_equal(checkpoint.weight(name).values(), values[name].numpy())
    if weights in ("int8", "q4_0"):
        for expert in _experts(sources[source]):
            of = f"{stem}.{expert}.down_proj.weight"
            ours, made = _down(sources[source], expert), checkpoint.weight(of)
            format = get_format("q8_0" if weights == "int8" else "q4_0")
            assert np.array_equal(made.values(), convert(ours, format).values()), of
    reference = load_reference(_stacked(values, sources[1], tmp_path / "stacked"))
    found = logits(load_decoder(out, "numpy"), _TOKENS)
    assert np.abs(found - reference_logits(reference, _TOKENS)).max() < 1e-4
    # And back, into the layout that it was published in.
    converted(out, tmp_path / "again", "f32")
    again = load_reference(tmp_path / "again")
    assert np.abs(reference_logits(again, _TOKENS) - found).max() < 1e-4


def test_an_error_names_the_expert(sources: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    tensors = load_file(sources[1] / "model.safetensors")
    tensors["model.layers.1.mlp.experts.down_proj"][3, 5, 7] = float("inf")
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text((sources[1] / "config.json").read_text())
    with pytest.raises(FormatError, match=r"layers\.1\.mlp\.experts\.3\.down_proj"):
        converted(folder, tmp_path / "out", "int4")
    with pytest.raises(FormatError, match=r"layers\.1\.mlp\.experts\.down_proj"):
        converted(folder, tmp_path / "again", "f16")
    assert not (tmp_path / "out").exists() and not (tmp_path / "again").exists()


def _experts(folder: Path) -> range:
    layer = make_spec(open_checkpoint(folder)).layers[2].feed_forward
    assert isinstance(layer, ExpertsSpec)
    return range(len(layer.experts))


def _down(folder: Path, expert: int) -> Any:
    from firstlight.model.stored import stored_rows

    checkpoint = open_checkpoint(folder)
    layer = make_spec(checkpoint).layers[2].feed_forward
    assert isinstance(layer, ExpertsSpec)
    source = layer.experts[expert].down.weight
    return stored_rows(source, checkpoint, 0, source.shape[0])


def _decoded(folder: Path, weights: str) -> dict[str, torch.Tensor]:
    """The values of all tensors, by compressed-tensors' own unpacking."""
    stored = load_file(folder / "model.safetensors")
    found = {name: value for name, value in stored.items() if "weight_" not in name}
    if weights == "fp8":
        from tests.support.float8_files import dequantise

        for name in [name for name in stored if name.endswith("_scale_inv")]:
            of = name.removesuffix("_scale_inv")
            found[of] = dequantise(stored[of], stored[name], (128, 128))
        return found
    compressed = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    bits = 8 if weights == "int8" else 4
    for name in [name for name in stored if name.endswith(".weight_packed")]:
        stem = name.removesuffix("_packed")
        shape = torch.Size(stored[f"{stem}_shape"].tolist())
        codes = compressed.unpack_from_int32(stored[name], bits, shape).float()
        scales = stored[f"{stem}_scale"].float()
        if f"{stem}_zero_point" in stored:
            zeros = stored[f"{stem}_zero_point"]
            zeros = compressed.unpack_from_int32(
                zeros, bits, torch.Size([shape[0], shape[1] // 32]), packed_dim=0
            )
            codes = codes - zeros.float().repeat_interleave(32, 1)
        found[stem] = codes * scales.repeat_interleave(32, 1)
    return found


def _stacked(values: dict[str, torch.Tensor], like: Path, folder: Path) -> Path:
    """A plain checkpoint for transformers, of experts that lie one by one."""
    tensors = {name: value.float() for name, value in values.items() if ".experts." not in name}
    for name in load_file(like / "model.safetensors"):
        stem, _, last = name.partition(".experts.")
        if not last:
            continue
        kind = "bias" if last.endswith("bias") else "weight"
        each = []
        for expert in range(5):
            of = f"{stem}.experts.{expert}"
            if last.startswith("down"):
                matrix = values[f"{of}.down_proj.{kind}"].float()
            else:
                pair = [values[f"{of}.{part}_proj.{kind}"].float() for part in ("gate", "up")]
                matrix = torch.stack(pair, dim=1).flatten(0, 1)
            each.append(matrix.T if matrix.ndim == 2 else matrix)
        tensors[name] = torch.stack(each).contiguous()
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    (folder / "config.json").write_text((like / "config.json").read_text())
    return folder
