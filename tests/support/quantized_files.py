"""Matrices quantised as published checkpoints are, packed and decoded by formulas of their own.

Written from the descriptions and code of AutoGPTQ (`qlinear_cuda_old.pack` and `forward`), AutoAWQ
(`awq/modules/linear/gemm.py`, `awq/utils/packing_utils.py`), ModelOpt (`NVFP4QTensor`), with loops
and whole-array arithmetic in PyTorch, so that they share nothing with firstlight's NumPy.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.support.float8_files import published

Tensors = dict[str, torch.Tensor]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Quantised:
    """A matrix's tensors by the suffix of their names, and its values in float32."""

    tensors: Tensors
    values: torch.Tensor


@dataclass(frozen=True)
class Scheme:
    """One way to quantise.

    Attributes:
        config: what config.json says of it.
        quantise: of a matrix [rows, columns].
    """

    config: dict[str, Any]
    quantise: Callable[[torch.Tensor], Quantised] = field(repr=False)


def _pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """int [n, m] along the first axis into int32 [n * bits / 32, m], lowest bits first."""
    across = 32 // bits
    words = torch.zeros(codes.shape[0] // across, codes.shape[1], dtype=torch.int64)
    for place in range(across):
        words |= codes[place::across].long() << bits * place
    return (words & 0xFFFFFFFF).to(torch.uint32).view(torch.int32)


def _ranges(
    matrix: torch.Tensor, group: int, bits: int, symmetric: bool, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scales of that dtype, zeros), [rows, groups]."""
    rows = matrix.shape[0]
    parts = matrix.reshape(rows, -1, group)
    top = 2**bits - 1
    if symmetric:
        scales = (parts.abs().amax(2) / (top / 2)).to(dtype)
        return scales, torch.full(scales.shape, 2 ** (bits - 1))
    low, high = parts.amin(2).clamp(max=0), parts.amax(2).clamp(min=0)
    scales = ((high - low) / top).to(dtype)
    return scales, torch.round(-low / scales.float()).clamp(0, top).long()


def _codes(
    matrix: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, of: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes [rows, columns], the values that they stand for)."""
    wide, zero = scales.float()[:, of], zeros[:, of]
    codes = (torch.round(matrix / wide) + zero).clamp(0, 2**bits - 1).long()
    return codes, (codes - zero).float() * wide


def gptq(
    group: int = 32,
    bits: int = 4,
    symmetric: bool = True,
    reorder: bool = False,
    version: str = "gptq",
    dtype: torch.dtype = torch.float16,
) -> Scheme:
    """AutoGPTQ's and GPTQModel's."""

    def quantise(matrix: torch.Tensor) -> Quantised:
        columns = matrix.shape[1]
        size = columns if group == -1 else group
        of = torch.arange(columns) // size
        if reorder:
            of = of[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))]
        scales, zeros = _ranges(matrix, size, bits, symmetric, dtype)
        if reorder:
            zeros = zeros.clamp(min=1)
        codes, values = _codes(matrix, scales, zeros, of, bits)
        packed_zeros = _pack(zeros, bits).T.contiguous()  # [groups, rows / n]
        if version == "gptq":
            one = sum(1 << shift for shift in range(0, 32, bits))
            less = (packed_zeros.long() - one) & 0xFFFFFFFF
            packed_zeros = less.to(torch.uint32).view(torch.int32)
        tensors = {
            "qweight": _pack(codes.T, bits),
            "qzeros": packed_zeros,
            "scales": scales.T.contiguous(),
            "g_idx": of.to(torch.int32),
        }
        return Quantised(tensors, values)

    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "sym": symmetric,
        "desc_act": reorder,
        "checkpoint_format": version,
    }
    return Scheme(config, quantise)


def awq(group: int = 32, dtype: torch.dtype = torch.float16) -> Scheme:
    """AutoAWQ's, packed for "gemm"."""

    def quantise(matrix: torch.Tensor) -> Quantised:
        size = matrix.shape[1] if group == -1 else group
        of = torch.arange(matrix.shape[1]) // size
        scales, zeros = _ranges(matrix, size, 4, False, dtype)
        codes, values = _codes(matrix, scales, zeros, of, 4)

        def pack(rows: torch.Tensor) -> torch.Tensor:
            """[rows, n] -> int32 [n, rows / 8], each eight rows in AutoAWQ's order."""
            ordered = rows.reshape(-1, 8, rows.shape[1])[:, AWQ_ORDER].reshape(rows.shape)
            return _pack(ordered, 4).T.contiguous()

        tensors = {"qweight": pack(codes), "qzeros": pack(zeros), "scales": scales.T.contiguous()}
        return Quantised(tensors, values)

    config = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["lm_head"],
    }
    return Scheme(config, quantise)


def compressed(
    kind: str = "int",
    bits: int = 4,
    group: int | None = 32,
    symmetric: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    form: str = "pack-quantized",
    strategy: str | None = None,
    block: list[int] | None = None,
) -> Scheme:
    """compressed-tensors', by that package itself."""
    strategy = strategy or ("channel" if group is None else "group")
    weights: dict[str, Any] = {
        "num_bits": bits,
        "type": kind,
        "symmetric": symmetric,
        "strategy": strategy,
        "group_size": group,
        "dynamic": False,
    }
    if block:
        weights["block_structure"] = block

    def quantise(matrix: torch.Tensor) -> Quantised:
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
        given = {"weight": matrix, **_parameters(matrix)}
        compressor = BaseCompressor.load_from_registry(form)
        tensors = compressor.compress(given, scheme)
        if form == "nvfp4-pack-quantized":
            return Quantised(dict(tensors), _float4_values(tensors, scheme.weights))
        wide = {
            key: value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
            for key, value in tensors.items()
        }
        values = compressor.decompress(wide, scheme)["weight"].float()
        return Quantised(dict(tensors), values)

    def _float4_values(tensors: Tensors, arguments: Any) -> torch.Tensor:
        """In float32, where the package's own `decompress` rounds to bfloat16 on the way."""
        from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
        from compressed_tensors.quantization.lifecycle.forward import dequantize

        packed = tensors["weight_packed"]
        rows, pairs = packed.shape
        values: torch.Tensor = dequantize(
            x_q=unpack_fp4_from_uint8(packed, rows, 2 * pairs, torch.float32),
            scale=tensors["weight_scale"].float(),
            args=arguments,
            global_scale=tensors["weight_global_scale"],
            dtype=torch.float32,
        )
        return values

    def _parameters(matrix: torch.Tensor) -> Tensors:
        rows, columns = matrix.shape
        top = {"int": 2**bits - 1, "float": 2 * 448.0}[kind]
        if form == "nvfp4-pack-quantized":
            factor = torch.tensor([448.0 * 6.0 / float(matrix.abs().max())])
            local = matrix.reshape(rows, -1, 16).abs().amax(2) / 6.0 * factor
            scale = local.clamp(2.0**-9, 448.0).to(torch.float8_e4m3fn)
            return {"weight_scale": scale.float(), "weight_global_scale": factor}
        if strategy == "tensor":
            parts = matrix.reshape(1, 1, -1)
        elif strategy == "block":
            assert block is not None
            parts = (
                matrix.reshape(rows // block[0], block[0], columns // block[1], block[1])
                .transpose(1, 2)
                .reshape(rows // block[0], columns // block[1], -1)
            )
        else:
            parts = matrix.reshape(rows, -1, group or columns)
        if symmetric:
            scale = (parts.abs().amax(2) / (top / 2)).to(dtype)
            return {"weight_scale": scale.reshape(1) if strategy == "tensor" else scale}
        low, high = parts.amin(2).clamp(max=0), parts.amax(2).clamp(min=0)
        scale = ((high - low) / top).to(dtype)
        zero = torch.round(-low / scale.float()).clamp(0, top) - 2 ** (bits - 1)
        return {"weight_scale": scale, "weight_zero_point": zero.to(torch.int8)}

    config = {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": None,
                "output_activations": None,
            }
        },
        "ignore": ["lm_head"],
    }
    return Scheme(config, quantise)


def modelopt_nvfp4() -> Scheme:
    """ModelOpt's NVFP4: e2m1 pairs, a scale of E4M3 for each 16, and a factor of float32."""

    def quantise(matrix: torch.Tensor) -> Quantised:
        rows = matrix.shape[0]
        factor = matrix.abs().max() / (6.0 * 448.0)
        parts = matrix.reshape(rows, -1, 16)
        scales = (parts.abs().amax(2) / (6.0 * factor)).to(torch.float8_e4m3fn)
        wide = (scales.float() * factor).repeat_interleave(16, 1)
        magnitudes = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
        nearest = ((matrix / wide).abs()[..., None] - magnitudes).abs().argmin(-1)
        codes = nearest + 8 * (matrix < 0)
        values = magnitudes[nearest] * torch.where(matrix < 0, -1.0, 1.0) * wide
        packed = (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8)
        tensors = {"weight": packed, "weight_scale": scales, "weight_scale_2": factor}
        return Quantised(tensors, values)

    return Scheme({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": []}, quantise)


def write_matrix(folder: Path, scheme: Scheme, matrix: torch.Tensor) -> Quantised:
    """A checkpoint of one module, "m"."""
    folder.mkdir(parents=True, exist_ok=True)
    quantised = scheme.quantise(matrix)
    save(folder, {f"m.{key}": value for key, value in quantised.tensors.items()}, scheme.config)
    return quantised


def save(folder: Path, tensors: Tensors, quantization: dict[str, Any] | None) -> None:
    """Tensors and a config that holds nothing but how they are quantised."""
    kept = {key: value.contiguous() for key, value in tensors.items()}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "llama", "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))


def write_quantized(
    model: Any, folder: Path, scheme: Scheme, left_out: tuple[str, ...] = ()
) -> Any:
    """Save a model with its projections quantised, experts one by one as they are published.

    Args:
        left_out: parts of the names of modules that stay as they are.

    Returns:
        A copy whose weights are the values of what was saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = copy.deepcopy(model)
    tensors: Tensors = {}
    for name, value in published(values).items():
        chosen = "_proj" in name and value.ndim == 2 and not any(part in name for part in left_out)
        if not chosen:
            tensors[name] = value.clone()
            continue
        quantised = scheme.quantise(value.detach())
        stem = name.removesuffix("weight")
        tensors |= {stem + key: part.contiguous() for key, part in quantised.tensors.items()}
        value.copy_(quantised.values)
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads(model.config.to_json_string(use_diff=False))
    config["quantization_config"] = scheme.config
    (folder / "config.json").write_text(json.dumps(config))
    return values
