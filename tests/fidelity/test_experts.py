"""Experts in the layouts that they are published in beside one tensor for each, and files of them
that are damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from firstlight.backends import open_device
from firstlight.benchmark.step_cost import StepCost
from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.engine.memory_plan import plan_memory
from firstlight.errors import CheckpointError, FirstlightError, FormatError, UnsupportedModelError
from firstlight.formats.mxfp4_pair import join_mxfp4
from firstlight.formats.registry import get_format
from firstlight.model.families.registry import make_spec
from firstlight.model.feed_forward_spec import ExpertsSpec
from firstlight.model.matrices import kept_matrices
from firstlight.model.weights import load_weights, weight_bytes
from tests.fidelity.conftest import TinyCheckpoint
from tests.support.decode import continuation, load_decoder, logits
from tests.support.mxfp4_files import write_gpt_oss
from tests.support.reference import load_reference, reference_continuation, reference_logits
from tests.support.tiny_checkpoints import rewrite_config
from tests.support.tiny_models import (
    NEW_TOKENS,
    prompt,
)

TOLERANCE = 1e-4
Tiny = Callable[..., TinyCheckpoint]
Tensors = dict[str, torch.Tensor]


def _rewrite(checkpoint: TinyCheckpoint, folder: Path, tensors: Tensors) -> Path:
    """The checkpoint with these tensors, in one file."""
    folder.mkdir()
    config = json.loads((checkpoint.folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors"
    )
    return folder


def _saved(checkpoint: TinyCheckpoint) -> Tensors:
    found: Tensors = {}
    for path in checkpoint.folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "glm4_moe"])
def test_all_experts_of_a_layer_in_one_tensor(
    tiny: Tiny, tmp_path: Path, name: str, device: str
) -> None:
    """As transformers 5 has them in memory."""
    checkpoint = tiny(name)
    stacked = dict(checkpoint.reference.state_dict())
    assert any(name.endswith("experts.gate_up_proj") for name in stacked)
    folder = _rewrite(checkpoint, tmp_path / "stacked", stacked)
    found = logits(load_decoder(folder, device), prompt(), chunk=37)
    assert np.abs(found - checkpoint.logits).max() < TOLERANCE


# mxfp4 ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A gpt-oss with experts in mxfp4 as published; and the same as transformers decodes it."""
    return write_gpt_oss(tmp_path_factory.mktemp("mxfp4"))


def test_mxfp4_experts_give_the_logits_and_tokens_of_the_decoded_model(
    quantised: tuple[Path, Path], device: str
) -> None:
    ours, theirs = quantised
    reference = load_reference(theirs)
    decoder = load_decoder(ours, device)
    expected = reference_logits(reference, prompt())
    assert np.abs(logits(decoder, prompt(), chunk=31) - expected).max() < TOLERANCE
    tokens = reference_continuation(reference, prompt(), NEW_TOKENS).token_ids
    assert continuation(decoder, prompt(), NEW_TOKENS).token_ids == tokens


def test_mxfp4_experts_stay_in_their_format_and_decode_exactly(
    quantised: tuple[Path, Path],
) -> None:
    ours, theirs = quantised
    checkpoint, decoded = open_checkpoint(ours), load_file(theirs / "model.safetensors")
    spec = make_spec(checkpoint)
    ops = open_device("numpy")
    weights = load_weights(spec, checkpoint, ops)
    for index, layer in enumerate(spec.layers):
        assert isinstance(layer.feed_forward, ExpertsSpec)
        stem = f"model.layers.{index}.mlp.experts"
        for number, expert in enumerate(layer.feed_forward.experts):
            fused = decoded[f"{stem}.gate_up_proj"][number].T.numpy()
            down = decoded[f"{stem}.down_proj"][number].T.numpy()
            for product, expected in (
                (expert.gate, fused[0::2]),
                (expert.up, fused[1::2]),
                (expert.down, down),
            ):
                weight = weights[product.weight]
                assert weight.format.name == "mxfp4"
                assert np.array_equal(weight.values(), expected)


def test_codes_of_every_byte_and_scale_decode_as_transformers_decodes_them() -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(255, axis=0)
    scales = np.arange(255, dtype=np.uint8)[:, None].repeat(16, axis=1)
    found = get_format("mxfp4").decode(join_mxfp4(codes, scales, "all"))
    theirs = convert_moe_packed_tensors(
        torch.from_numpy(codes)[None], torch.from_numpy(scales)[None], dtype=torch.float64
    )
    with np.errstate(over="ignore"):  # 6 * 2^127 is beyond float32 for both
        assert np.array_equal(found, theirs[0].T.numpy().astype(np.float32))


# What is refused --------------------------------------------------------------------------------


_DOWN = "model.layers.1.mlp.experts.down_proj"


def _change_scale(tensors: Tensors) -> None:
    tensors[f"{_DOWN}_scales"][2, 3, 0] = 255


_DAMAGES: dict[str, tuple[Callable[[Tensors], Any], type[FirstlightError], str]] = {
    "a scale is missing": (
        lambda t: t.pop("model.layers.0.mlp.experts.down_proj_scales"),
        CheckpointError,
        "layers.0.mlp.experts.down_proj_scales' is missing",
    ),
    "codes are missing": (
        lambda t: t.pop("model.layers.1.mlp.experts.gate_up_proj_blocks"),
        CheckpointError,
        "layers.1.mlp.experts.gate_up_proj_blocks' is missing",
    ),
    "scales of another shape": (
        lambda t: t.update(
            {"model.layers.0.mlp.experts.down_proj_scales": torch.ones(5, 96, 3, dtype=torch.uint8)}
        ),
        CheckpointError,
        r"has shape \[5, 96, 3\], but the config implies \[5, 96, 2\]",
    ),
    "scales of another type": (
        lambda t: t.update({"model.layers.0.mlp.experts.down_proj_scales": torch.ones(5, 96, 2)}),
        FormatError,
        "is stored as f32",
    ),
    "fewer experts than the config says": (
        lambda t: t.update(
            {f"{_DOWN}_{part}": t[f"{_DOWN}_{part}"][:4].clone() for part in ("blocks", "scales")}
        ),
        CheckpointError,
        r"down_proj_blocks' has shape \[4, 96, 2, 16\], but the config implies \[5, 96, 2, 16\]",
    ),
    "a scale that is not a number": (_change_scale, FormatError, "down_proj_scales"),
}


@pytest.mark.parametrize("damage", _DAMAGES)
def test_damaged_mxfp4_is_named(quantised: tuple[Path, Path], tmp_path: Path, damage: str) -> None:
    change, error, words = _DAMAGES[damage]
    tensors = load_file(quantised[0] / "model.safetensors")
    change(tensors)
    folder = tmp_path / "damaged"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text((quantised[0] / "config.json").read_text())
    with pytest.raises(error, match=words):
        load_decoder(folder, "numpy")


def test_an_expert_that_is_missing_is_named(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = tiny("qwen3_moe")
    tensors = _saved(checkpoint)
    del tensors["model.layers.1.mlp.experts.7.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.experts\.7\.up_proj"):
        make_spec(open_checkpoint(_rewrite(checkpoint, tmp_path / "fewer", tensors)))


@pytest.mark.parametrize(
    ("name", "changes", "error", "words"),
    [
        ("mixtral", {"num_local_experts": 4}, CheckpointError, "gate.weight' has shape"),
        ("mixtral", {"num_local_experts": 6}, CheckpointError, "gate.weight' has shape"),
        ("mixtral", {"num_local_experts": 1 << 20}, CheckpointError, "'num_local_experts'"),
        ("mixtral", {"num_experts_per_tok": 6}, CheckpointError, "'num_experts_per_tok'"),
        ("glm4_moe", {"n_group": 5}, CheckpointError, "does not divide 12 experts"),
        ("glm4_moe", {"topk_group": 5}, CheckpointError, "'topk_group'"),
        ("glm4_moe", {"n_group": 12, "topk_group": 2}, CheckpointError, "keeps 2 groups"),
        ("glm4_moe", {"scoring_func": "hardmax"}, UnsupportedModelError, "'hardmax'"),
        ("olmoe", {"clip_qkv": 8.0}, UnsupportedModelError, "'clip_qkv'"),
        ("qwen2_moe", {"mlp_only_layers": [-1]}, CheckpointError, "'mlp_only_layers'"),
        ("gpt_oss", {"swiglu_limit": 0}, CheckpointError, "'swiglu_limit'"),
        (
            "qwen3_moe",
            {"quantization_config": {"quant_method": "mxfp4"}},
            UnsupportedModelError,
            "method 'mxfp4'",
        ),
    ],
)
def test_a_config_that_disagrees_is_refused(
    tiny: Tiny,
    tmp_path: Path,
    name: str,
    changes: dict[str, Any],
    error: type[FirstlightError],
    words: str,
) -> None:
    checkpoint = tiny(name)
    folder = _rewrite(checkpoint, tmp_path / "changed", _saved(checkpoint))
    rewrite_config(folder, changes)
    with pytest.raises(error, match=words):
        make_spec(open_checkpoint(folder))


# What is counted --------------------------------------------------------------------------------


def test_memory_counts_all_experts_and_a_token_its_own(tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny("qwen3_moe").folder)
    spec = make_spec(checkpoint)
    each = 3 * 20 * 48  # gate, up and down
    layers, experts, top_k = 2, 9, 3
    in_all = sum(value.numel() for value in _saved(tiny("qwen3_moe")).values())
    assert spec.active_parameters() == in_all - layers * (experts - top_k) * each
    assert weight_bytes(spec, checkpoint) == 4 * in_all
    assert plan_memory(spec, checkpoint, 64).weights == 4 * in_all


def test_a_step_reads_the_experts_that_its_tokens_go_to() -> None:
    cost = StepCost(100, 0, 0, 0, experts=((1000, 0.25),))
    assert cost.read_bytes(1) == pytest.approx(100 + 250)
    assert cost.read_bytes(2) == pytest.approx(100 + 1000 * (1 - 0.75**2))
    assert cost.read_bytes(1000) == pytest.approx(1100)


def test_a_router_stays_exact_where_weights_are_converted(tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny("olmoe", "bfloat16").folder)
    kept = kept_matrices(make_spec(checkpoint), checkpoint, target=get_format("q8_0"))
    formats = {each.source.name: each.format.name for each in kept}
    assert formats["model.layers.0.mlp.gate.weight"] == "f32"
