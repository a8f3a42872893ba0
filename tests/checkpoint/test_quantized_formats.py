"""Matrices of AWQ, GPTQ, compressed-tensors and ModelOpt, against decoders of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from firstlight.checkpoint.checkpoint import open_checkpoint
from tests.support.quantized_files import (
    Scheme,
    awq,
    compressed,
    gptq,
    modelopt_nvfp4,
    write_matrix,
)

NEEDS_PACKAGE = "compressed_tensors"

# name -> (scheme, the format that its rows are given in)
SCHEMES: dict[str, tuple[Scheme, str]] = {
    "gptq": (gptq(), "q4_0"),
    "gptq-128": (gptq(128), "q4_0"),
    "gptq-channel": (gptq(-1), "q4_0"),
    "gptq-asymmetric": (gptq(symmetric=False), "q5_0"),
    "gptq-v2": (gptq(symmetric=False, version="gptq_v2"), "q5_0"),
    "gptq-reordered": (gptq(reorder=True), "u4"),
    "gptq-reordered-asymmetric": (gptq(symmetric=False, reorder=True), "u4"),
    "gptq-16": (gptq(16), "u4"),
    "gptq-int8": (gptq(bits=8), "q8_0"),
    "gptq-int8-asymmetric": (gptq(bits=8, symmetric=False), "u8"),
    "gptq-bf16": (gptq(dtype=torch.bfloat16), "q4_0"),
    "gptq-f32": (gptq(dtype=torch.float32), "u4"),
    "awq": (awq(), "q5_0"),
    "awq-128": (awq(128), "q5_0"),
    "awq-channel": (awq(-1), "q5_0"),
    "awq-bf16": (awq(dtype=torch.bfloat16), "q5_0"),
    "modelopt-nvfp4": (modelopt_nvfp4(), "e2m1"),
}
COMPRESSED: dict[str, tuple[Scheme, str]] = {
    "int4": (compressed(), "q4_0"),
    "int4-f16": (compressed(dtype=torch.float16), "q4_0"),
    "int4-f32": (compressed(dtype=torch.float32), "u4"),
    "int4-channel": (compressed(group=None), "q4_0"),
    "int4-asymmetric": (compressed(symmetric=False, dtype=torch.float16), "q5_0"),
    "int4-asymmetric-channel": (compressed(symmetric=False, group=None), "q4_1"),
    "int8": (compressed(bits=8), "q8_0"),
    "int8-channel": (compressed(bits=8, group=None), "q8_0"),
    "int8-asymmetric": (compressed(bits=8, symmetric=False), "u8"),
    "int8-bytes": (compressed(bits=8, group=None, form="int-quantized"), "q8_0"),
    "int8-bytes-tensor": (
        compressed(bits=8, group=None, form="int-quantized", strategy="tensor"),
        "q8_0",
    ),
    "fp8-channel": (compressed("float", 8, None, form="float-quantized"), "f8_e4m3"),
    "fp8-tensor": (
        compressed("float", 8, None, form="float-quantized", strategy="tensor"),
        "f8_e4m3",
    ),
    "fp8-block": (
        compressed("float", 8, None, form="float-quantized", strategy="block", block=[16, 64]),
        "f8_e4m3",
    ),
    "nvfp4": (
        compressed("float", 4, 16, form="nvfp4-pack-quantized", strategy="tensor_group"),
        "e2m1",
    ),
}


def matrix(rows: int = 48, columns: int = 256) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + columns))


def check(folder: Path, scheme: Scheme, format: str) -> None:
    expected = write_matrix(folder, scheme, matrix()).values.numpy()
    checkpoint = open_checkpoint(folder)
    assert list(checkpoint.tensors) == ["m.weight"] or "fp8" in str(folder)
    assert checkpoint.tensors["m.weight"].shape == expected.shape
    weight = checkpoint.weight("m.weight")
    assert weight.format.name == checkpoint.format_of("m.weight").name == format
    np.testing.assert_array_equal(weight.values(), expected)
    indices = np.array([47, 0, 5, 5], np.int32)
    np.testing.assert_array_equal(weight.decode_rows(indices), expected[indices])
    for start, stop in ((0, 48), (3, 4), (7, 41), (16, 32), (47, 48)):
        part = checkpoint.rows("m.weight", start, stop)
        np.testing.assert_array_equal(part.values(), expected[start:stop])
        np.testing.assert_array_equal(
            weight.row_slice(start, stop).decode(0, 1), expected[start : start + 1]
        )


@pytest.mark.parametrize("name", SCHEMES)
def test_values_are_those_of_an_independent_decoder(tmp_path: Path, name: str) -> None:
    check(tmp_path / name, *SCHEMES[name])


@pytest.mark.parametrize("name", COMPRESSED)
def test_values_are_those_of_compressed_tensors(tmp_path: Path, name: str) -> None:
    pytest.importorskip(NEEDS_PACKAGE)
    check(tmp_path / name, *COMPRESSED[name])
