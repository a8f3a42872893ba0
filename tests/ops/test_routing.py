"""Routing as transformers' routers do it, in every kind that published models have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.deepseek_v2.modeling_deepseek_v2 import (
    DeepseekV2Config,
    DeepseekV2TopkRouter,
)
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Config,
    DeepseekV3TopkRouter,
)
from transformers.models.deepseek_v4.modeling_deepseek_v4 import (
    DeepseekV4Config,
    DeepseekV4HashRouter,
    DeepseekV4TopKRouter,
)
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssConfig, GptOssTopKRouter
from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralTopKRouter
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeConfig, Qwen2MoeTopKRouter

from firstlight.backends.numpy.backend import NumpyBackend
from firstlight.formats.base import Floats
from firstlight.ops import Routing

EXPERTS, TOP_K, ROWS, HIDDEN, VOCABULARY = 24, 5, 200, 32, 50
_SIZES = {"hidden_size": HIDDEN, "num_experts_per_tok": TOP_K}
_GROUPED = {"n_group": 6, "topk_group": 2}

CASES: dict[str, tuple[Any, Any, Routing]] = {
    "mixtral": (
        MixtralTopKRouter,
        MixtralConfig(num_local_experts=EXPERTS, **_SIZES),
        Routing(TOP_K, renormalised=True),
    ),
    "qwen2_moe": (
        Qwen2MoeTopKRouter,
        Qwen2MoeConfig(num_experts=EXPERTS, **_SIZES),
        Routing(TOP_K),
    ),
    "gpt_oss": (
        GptOssTopKRouter,
        GptOssConfig(num_local_experts=EXPERTS, **_SIZES),
        Routing(TOP_K, renormalised=True),
    ),
    "deepseek_v2, greedy": (
        DeepseekV2TopkRouter,
        DeepseekV2Config(
            n_routed_experts=EXPERTS, topk_method="greedy", routed_scaling_factor=1.5, **_SIZES
        ),
        Routing(TOP_K, scale=1.5),
    ),
    "deepseek_v2, groups": (
        DeepseekV2TopkRouter,
        DeepseekV2Config(
            n_routed_experts=EXPERTS,
            topk_method="group_limited_greedy",
            routed_scaling_factor=16.0,
            **_SIZES,
            **_GROUPED,
        ),
        Routing(TOP_K, "softmax", 6, 2, "largest", scale=16.0),
    ),
    "deepseek_v3": (
        DeepseekV3TopkRouter,
        DeepseekV3Config(
            n_routed_experts=EXPERTS,
            norm_topk_prob=True,
            routed_scaling_factor=2.5,
            **_SIZES,
            **_GROUPED,
        ),
        Routing(TOP_K, "sigmoid", 6, 2, "two_largest", renormalised=True, scale=2.5),
    ),
    "deepseek_v4": (
        DeepseekV4TopKRouter,
        DeepseekV4Config(n_routed_experts=EXPERTS, routed_scaling_factor=1.5, **_SIZES),
        Routing(TOP_K, "sqrt_softplus", renormalised=True, scale=1.5),
    ),
    "deepseek_v4, by a table": (
        DeepseekV4HashRouter,
        DeepseekV4Config(
            n_routed_experts=EXPERTS,
            routed_scaling_factor=1.5,
            vocab_size=VOCABULARY,
            **_SIZES,
        ),
        Routing(TOP_K, "sqrt_softplus", renormalised=True, scale=1.5),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_of_transformers(name: str) -> None:
    router_class, config, routing = CASES[name]
    generator = torch.Generator().manual_seed(7)
    router = router_class(config)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        for buffer_name, buffer in router.named_buffers():
            if buffer_name == "tid2eid":
                table = [torch.randperm(EXPERTS, generator=generator)[:TOP_K] for _ in buffer]
                buffer.copy_(torch.stack(table))
            else:
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
        x = torch.randn((ROWS, HIDDEN), generator=generator)
        tokens = torch.arange(ROWS) % VOCABULARY
        given = (x, tokens) if hasattr(router, "tid2eid") else (x,)
        logits, weights, indices = router(*given)
        logits = logits if logits.ndim == 2 else logits.reshape(ROWS, EXPERTS)
    expected = np.zeros((ROWS, EXPERTS), np.float32)
    np.put_along_axis(expected, indices.numpy(), weights.numpy(), axis=1)
    correction = getattr(router, "e_score_correction_bias", None)
    found = NumpyBackend().route(
        np.ascontiguousarray(logits.numpy()),
        routing,
        None if correction is None else correction.numpy(),
        router.tid2eid[tokens].numpy().astype(np.int32) if hasattr(router, "tid2eid") else None,
    )
    assert (found != 0).sum(axis=1).tolist() == [TOP_K] * ROWS
    assert np.abs(found - expected).max() < 2e-6 * routing.scale


def _route(logits: list[list[float]], routing: Routing, **more: Any) -> Floats:
    found: Floats = NumpyBackend().route(np.array(logits, np.float32), routing, **more)
    return found


def test_of_equal_scores_the_lower_index_wins() -> None:
    assert np.flatnonzero(_route([[1.0, 2.0, 2.0, 2.0]], Routing(2))).tolist() == [1, 2]
    assert np.flatnonzero(_route([[0.0] * 8], Routing(3, "sigmoid"))).tolist() == [0, 1, 2]
    grouped = Routing(2, "sigmoid", 4, 2, "two_largest")
    assert np.flatnonzero(_route([[0.0] * 8], grouped)).tolist() == [0, 1]


def test_a_correction_decides_the_choice_and_not_the_weight() -> None:
    correction = np.array([0.0, 5.0, 0.0], np.float32)
    (found,) = _route([[3.0, -3.0, 0.0]], Routing(1, "sigmoid"), correction=correction)
    assert found[1] == pytest.approx(1 / (1 + np.exp(3)), rel=1e-6)
    assert found[0] == found[2] == 0


def test_only_groups_that_are_kept_are_chosen_from() -> None:
    """The best expert stands in a group whose two largest are less than another group's."""
    logits = [[9.0, -9.0, 2.0, 2.0]]
    found = _route(logits, Routing(1, "sigmoid", 2, 1, "two_largest"))
    assert np.flatnonzero(found).tolist() == [2]
    assert np.flatnonzero(_route(logits, Routing(1, "sigmoid", 2, 1, "largest"))).tolist() == [0]


def test_an_expert_that_a_table_names_twice_counts_twice() -> None:
    chosen = np.array([[2, 2]], np.int32)
    (found,) = _route([[0.0, 1.0, 2.0]], Routing(2, renormalised=True), chosen=chosen)
    assert found.tolist() == [0.0, 0.0, 1.0]


def test_huge_logits_stay_finite() -> None:
    for score in ("softmax", "sigmoid", "sqrt_softplus"):
        found = _route([[1e30, -1e30, 0.0, 88.0]], Routing(2, score, renormalised=True))
        assert np.isfinite(found).all()
        assert found.sum() == pytest.approx(1.0)
