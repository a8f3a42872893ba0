"""Every quantised format with each of its scales missing, of another shape, NaN, or zero: refused
with the tensor's name, what is wrong with it, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.errors import FirstlightError
from tests.support.float8_files import quantise
from tests.support.quantized_files import (
    Quantised,
    Scheme,
    Tensors,
    awq,
    compressed,
    gptq,
    modelopt_nvfp4,
    save,
)

ROWS, COLUMNS = 48, 128
_BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 32]}
_MXFP4 = {
    "quant_method": "compressed-tensors",
    "format": "mxfp4-pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32},
        }
    },
}


def _float8(name: str, *, powers_of_two: bool = False) -> Scheme:
    def make(matrix: torch.Tensor) -> Quantised:
        codes, scales = quantise(matrix, (16, 32), powers_of_two)
        scales = scales.to(torch.float8_e8m0fnu) if powers_of_two else scales
        return Quantised({"weight": codes, name: scales}, matrix)

    return Scheme(_BLOCKS, make)


def _float8_of_modelopt() -> Scheme:
    def make(matrix: torch.Tensor) -> Quantised:
        scale = matrix.abs().max() / 448.0
        codes = (matrix / scale).to(torch.float8_e4m3fn)
        return Quantised({"weight": codes, "weight_scale": scale}, matrix)

    return Scheme({"quant_method": "modelopt", "quant_algo": "FP8"}, make)


def _mxfp4() -> Scheme:
    def make(matrix: torch.Tensor) -> Quantised:
        codes = torch.zeros(ROWS, COLUMNS // 2, dtype=torch.uint8)
        scales = torch.full((ROWS, COLUMNS // 32), 127, dtype=torch.uint8)
        return Quantised({"weight_packed": codes, "weight_scale": scales}, matrix)

    return Scheme(_MXFP4, make)


SCHEMES = {
    "fp8": _float8("weight_scale_inv"),
    "fp8-ue8m0": _float8("weight_scale_inv", powers_of_two=True),
    "fp8-ue8m0-deepseek": _float8("scale", powers_of_two=True),
    "awq": awq(),
    "gptq": gptq(),
    "gptq-8": gptq(bits=8),
    "mxfp4": _mxfp4(),
    "modelopt-fp8": _float8_of_modelopt(),
    "modelopt-nvfp4": modelopt_nvfp4(),
    "int4": compressed(),
    "int4-with-zeros": compressed(symmetric=False),
    "int8": compressed(bits=8, form="int-quantized"),
    "fp8-by-channel": compressed("float", 8, None, form="float-quantized"),
    "nvfp4": compressed(
        "float", 4, 16, form="nvfp4-pack-quantized", strategy="tensor_group"
    ),
}  # fmt: skip
_NAN = {torch.float8_e4m3fn: 0x7F, torch.float8_e8m0fnu: 0xFF, torch.uint8: 0xFF}


def _damages(tensors: Tensors) -> Iterator[tuple[str, str, torch.Tensor | None]]:
    """(what is done, to which tensor, what it then is)."""
    for name, value in tensors.items():
        if "scale" not in name:
            continue
        yield "missing", name, None
        grown = torch.stack([value, value]) if value.ndim < 2 else torch.cat([value, value])
        yield "of another shape", name, grown.flatten() if value.ndim < 2 else grown
        if value.dtype in _NAN:  # of these none is zero, or a group of zeros may have it
            bytes_of = value.view(torch.uint8).clone()
            bytes_of.view(-1)[-1] = _NAN[value.dtype]
            yield "NaN", name, bytes_of.view(value.dtype)
            continue
        for what, bad in (("NaN", float("nan")), ("zero", 0.0)):
            changed = value.clone()
            changed.view(-1)[-1] = bad
            yield what, name, changed


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_damage_names_the_tensor_and_says_what_to_do(tmp_path: Path, scheme: str) -> None:
    made = SCHEMES[scheme]
    if made.config["quant_method"] == "compressed-tensors" and scheme != "mxfp4":
        pytest.importorskip("compressed_tensors")
    matrix = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    tensors = dict(made.quantise(matrix).tensors)
    _read(tmp_path, tensors, made.config)
    done = []
    for what, name, value in _damages(tensors):
        damaged = {**tensors, name: value}
        kept = {key: each for key, each in damaged.items() if each is not None}
        with pytest.raises(FirstlightError) as caught:
            _read(tmp_path, kept, made.config)
        error = caught.value
        # Scales of fp8 have one of two names; where they are missing the usual one is said.
        names = {name, "weight_scale_inv"} if what == "missing" else {name}
        assert any(f"m.{each}'" in error.reason for each in names), (what, str(error))
        assert error.remedy and str(tmp_path) in str(error.subject)
        done.append(what)
    assert {"missing", "of another shape", "NaN"} <= set(done)


def _read(folder: Path, tensors: Tensors, config: dict[str, Any]) -> None:
    save(folder, {f"m.{key}": value for key, value in tensors.items()}, config)
    checkpoint = open_checkpoint(folder)
    checkpoint.format_of("m.weight")
    weight = checkpoint.weight("m.weight")
    assert weight.values().shape == (ROWS, COLUMNS)
