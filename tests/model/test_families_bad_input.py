"""Configs that are damaged, hostile, or of models that firstlight does not have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.errors import CheckpointError, FirstlightError, UnsupportedModelError
from firstlight.model.attention_spec import LatentAttentionSpec
from firstlight.model.families.registry import FAMILIES as REGISTERED
from firstlight.model.families.registry import make_spec, spec_of_config
from firstlight.model.rope import cosines_and_sines
from firstlight.model.spec import ModelSpec
from tests.support.config_files import (
    ConfigFiles,
    Header,
    gguf_config_files,
    tiny_config_files,
)
from tests.support.tiny_models import FAMILIES, TINY_MODELS


def test_an_unknown_family_is_named_with_those_known_and_the_nearest() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        make_spec(ConfigFiles({"model_type": "qwen4"}))
    for family in REGISTERED:
        assert family.model_types[0] in caught.value.reason
    assert "'qwen4'" in caught.value.reason
    assert "nearest is 'qwen" in caught.value.reason
    assert "CONTRIBUTING.md" in caught.value.remedy


def test_an_unknown_architecture_of_a_gguf_file() -> None:
    with pytest.raises(UnsupportedModelError, match="nearest is 'gemma3'"):
        make_spec(gguf_config_files("gemma3n"))


@pytest.mark.parametrize(
    ("architecture", "family"), [("deepseek32", "deepseek_v32"), ("deepseek4", "deepseek_v4")]
)
def test_a_family_that_is_not_read_from_gguf_files(architecture: str, family: str) -> None:
    """The gguf package knows neither name: it goes no further than deepseek2."""
    assert architecture not in gguf.MODEL_ARCH_NAMES.values()
    with pytest.raises(UnsupportedModelError, match=f"is family {family}.* GGUF") as caught:
        make_spec(gguf_config_files(architecture))
    assert "safetensors" in caught.value.remedy


def test_a_config_that_asks_for_code_of_its_own_is_refused() -> None:
    config = {
        "model_type": "mystery",
        "auto_map": {"AutoModelForCausalLM": "modeling_mystery.MysteryForCausalLM"},
    }
    with pytest.raises(UnsupportedModelError, match="asks to run code from its own repository"):
        make_spec(ConfigFiles(config))


def test_auto_map_alone_does_not_hinder_a_known_family() -> None:
    """Phi-3's published configs carry it from before transformers knew the family."""
    files = tiny_config_files("phi3")
    with_code = files.changed(auto_map={"AutoConfig": "configuration_phi3.Phi3Config"})
    assert make_spec(with_code) == make_spec(files)


@pytest.mark.parametrize("kind", [None, 3, ["llama"], {}])
def test_a_config_without_a_usable_model_type(kind: Any) -> None:
    with pytest.raises(CheckpointError, match="model_type"):
        make_spec(ConfigFiles({"model_type": kind}))


def test_a_hostile_model_type_is_shown_cut_and_escaped() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        make_spec(ConfigFiles({"model_type": "\x1b[2J" + "a" * 100_000}))
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


# Where every layer has experts.
_WIDTHS = dict.fromkeys(("deepseek_v4", "qwen2_moe", "qwen3_moe"), "moe_intermediate_size")


def _key(family: str, key: str) -> str:
    return _WIDTHS.get(family, key) if key == "intermediate_size" else key


@pytest.mark.parametrize("key", _REQUIRED)
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gemma3"])
def test_a_size_that_is_missing(family: str, key: str) -> None:
    key = _key(family, key)
    with pytest.raises(CheckpointError, match=f"'{key}' in the config is missing"):
        make_spec(tiny_config_files(family).without(key))


@pytest.mark.parametrize("value", ["48", 48.0, True, [48], {"a": 1}, -1, 0, 1 << 40, 10**400])
@pytest.mark.parametrize("key", [*_REQUIRED, "num_key_value_heads", "max_position_embeddings"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_size_of_the_wrong_type_or_out_of_range(family: str, key: str, value: Any) -> None:
    key = _key(family, key)
    with pytest.raises(CheckpointError, match=f"'{key}' in the config is") as caught:
        make_spec(tiny_config_files(family).changed(**{key: value}))
    assert len(str(caught.value)) < 400


_WRONG = (
    ("llama", {"num_key_value_heads": 4}, "does not divide 6 heads"),
    ("llama", {"num_attention_heads": 7, "head_dim": None}, "not a multiple of 7 heads"),
    ("llama", {"head_dim": 7}, "turns 7 of 7 values of a head"),
    ("llama", {"rms_norm_eps": 0.0}, "'rms_norm_eps'"),
    ("llama", {"rms_norm_eps": "tiny"}, "not a number"),
    ("llama", {"attention_bias": 1}, "not true or false"),
    ("llama", {"hidden_act": 5}, "not a string"),
    ("llama", {"rope_parameters": []}, "not an object"),
    ("llama", {"rope_scaling": "linear"}, "not an object"),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, "'factor' in the config is missing"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": -2}}, "'factor'"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 1e9}}, "'factor'"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "'low_freq_factor'"),
    (
        "llama",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8,
                "low_freq_factor": 4,
                "high_freq_factor": 4,
            }
        },
        "not above low_freq_factor",
    ),
    ("llama", {"rope_parameters": {"rope_theta": 1}}, "'rope_theta'"),
    ("phi3-long", {"rope_scaling": {"short_factor": [1, 2]}}, "'short_factor' in the config has"),
    ("phi3-long", {"rope_scaling": {"long_factor": [1, 2, "x"]}}, r"'long_factor\[2\]'"),
    ("phi3-long", {"rope_scaling": {"long_factor": None}}, "'long_factor' in the config is mis"),
    ("phi3", {"partial_rotary_factor": 3.0, "rope_parameters": None}, "'partial_rotary_factor'"),
    ("gemma2", {"layer_types": ["full_attention"]}, "has 1 entries, not 3"),
    ("gemma2", {"layer_types": [1, 2, 3]}, "not a list of strings"),
    ("gemma2", {"sliding_window": None}, "'sliding_window' in the config is missing"),
    ("gemma3", {"sliding_window_pattern": 0, "layer_types": None}, "'sliding_window_pattern'"),
    ("qwen2", {"layer_types": ["sliding_attention"] * 2, "sliding_window": 8}, "forbids"),
    ("smollm3", {"no_rope_layers": [1, 0]}, "'no_rope_layers'"),
    ("smollm3", {"no_rope_layers": [1, 0, 2, 1, 1]}, "zeros and ones"),
    ("smollm3", {"layer_types": ["sliding_attention"] * 5, "sliding_window": 8}, "forbids"),
    ("granite", {"logits_scaling": 0}, "'logits_scaling'"),
)


@pytest.mark.parametrize(("name", "changes", "words"), _WRONG)
def test_a_value_that_makes_no_sense(name: str, changes: dict[str, Any], words: str) -> None:
    files = tiny_config_files(name)
    if "rope_scaling" in changes and name == "phi3-long":
        merged = {**files.config["rope_parameters"], **changes["rope_scaling"]}
        changes = {"rope_parameters": merged}
    with pytest.raises(CheckpointError, match=words):
        make_spec(files.changed(**changes))


_UNSUPPORTED = (
    ("llama", {"hidden_act": "xielu"}, "'hidden_act' in the config is 'xielu'"),
    ("gemma3", {"hidden_activation": "quick_gelu"}, "'hidden_activation'"),
    ("llama", {"quantization_config": {"quant_method": "fp8"}}, "method 'fp8'"),
    ("qwen3", {"quantization_config": {"quant_method": "aqlm"}}, "method 'aqlm'"),
    ("qwen3", {"quantization_config": {"quant_method": "gptq", "bits": 3}}, "with 3 bits"),
    ("gemma2", {"use_bidirectional_attention": True}, "'use_bidirectional_attention'"),
    ("gemma3", {"use_bidirectional_attention": True}, "'use_bidirectional_attention'"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "'attn_logit_softcapping'"),
    ("gemma2", {"layer_types": ["chunked_attention"] * 3}, "the type 'chunked_attention'"),
    ("llama", {"rope_scaling": {"rope_type": "proportional"}}, "'proportional', not one of"),
    ("llama", {"partial_rotary_factor": 0.5}, "'partial_rotary_factor' in the config is 0.5"),
    ("phi3", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "neither 'longrope'"),
)


@pytest.mark.parametrize(("name", "changes", "words"), _UNSUPPORTED)
def test_a_variant_that_firstlight_does_not_have(
    name: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=words) as caught:
        make_spec(tiny_config_files(name).changed(**changes))
    assert caught.value.subject == "model"


def test_a_text_model_of_another_family_inside_a_multimodal_one() -> None:
    config = {"model_type": "gemma3", "text_config": {"model_type": "mixtral"}}
    with pytest.raises(UnsupportedModelError, match="'model_type' in the config is 'mixtral'"):
        make_spec(ConfigFiles(config))


def test_sliding_layers_do_not_take_parameters_that_are_not_nested() -> None:
    """As in transformers, where a flat `rope_parameters` is not for Gemma 3's sliding layers."""
    files = tiny_config_files("gemma3").changed(rope_parameters={"rope_theta": 5e5})
    sliding, full = make_spec(files).ropes()
    assert (sliding.theta, full.theta) == (10_000.0, 5e5)


_UNSUPPORTED_GGUF = (
    ("qwen2", {"expert_count": 8}, "'qwen2.expert_count' in the config is 8"),
    ("llama", {"attention__head_count": np.array([6, 4], np.int32)}, "differs from layer to layer"),
    ("llama", {"attention__head_count_kv": [2, 1]}, "differs from layer to layer"),
    ("llama", {"feed_forward_length": list(range(10_000))}, "differs from layer to layer"),
    ("llama", {"attention__key_length": 8, "attention__value_length": 16}, "value_length"),
    ("llama", {"attention__causal": False}, "'llama.attention.causal' in the config is False"),
    (
        "llama",
        {"rope__scaling__type": "dynamic"},
        "'llama.rope.scaling.type' in the config is 'dynamic'",
    ),
    ("qwen2", {"rope__scaling__type": "yarn", "rope__scaling__yarn_log_multiplier": 0.1}, "yarn_"),
    ("llama", {"rope__scaling__attn_factor": 1.2}, "attn_factor"),
    ("olmo2", {"attention__sliding_window": 4096}, "OLMo 3"),
    ("granite", {"rope__scaling__finetuned": False}, "no rotary embedding"),
)


@pytest.mark.parametrize(("architecture", "changes", "words"), _UNSUPPORTED_GGUF)
def test_a_gguf_variant_that_firstlight_does_not_have(
    architecture: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        make_spec(gguf_config_files(architecture, **changes))


def test_gguf_values_per_layer_that_are_all_the_same_are_one_value() -> None:
    plain = spec_of_config(gguf_config_files("llama"))
    counts = {"attention__head_count": np.array([6, 6], np.int32), "feed_forward_length": [68, 68]}
    assert spec_of_config(gguf_config_files("llama", **counts)) == plain


@pytest.mark.parametrize("shape", [(1 << 20,), (8, 8), ()])
def test_gguf_rope_factors_of_a_senseless_shape(shape: tuple[int, ...]) -> None:
    files = gguf_config_files("llama")
    files = replace(files, tensors={**files.tensors, "rope_freqs.weight": Header(shape)})
    with pytest.raises(CheckpointError, match="rope_freqs"):
        make_spec(files)


@pytest.mark.parametrize("name", [model.name for model in TINY_MODELS])
def test_every_tensor_is_needed_in_its_shape(name: str) -> None:
    files = tiny_config_files(name)
    needed = {source.name for source in make_spec(files).sources()}
    assert needed == set(files.tensors)
    for tensor in files.tensors:
        fewer = {key: header for key, header in files.tensors.items() if key != tensor}
        with pytest.raises(CheckpointError, match=f"{tensor}' is missing"):
            make_spec(replace(files, tensors=fewer))
        shape = files.tensors[tensor].shape
        fewer_axes = () if shape == (1,) else (shape[:-1],)  # a single value needs none
        for wrong in ((shape[0] + 1, *shape[1:]), (*shape, 1), *fewer_axes):
            other = {**files.tensors, tensor: Header(wrong)}
            with pytest.raises(CheckpointError, match=f"{tensor}' has shape"):
                make_spec(replace(files, tensors=other))


# Fuzzing --------------------------------------------------------------------------------------

_NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([1 << 31, 1 << 63, 10**40]),
    st.floats(allow_nan=True, allow_infinity=True),
)
_SCALARS = st.one_of(st.none(), st.booleans(), _NUMBERS, st.text(max_size=8))
_WORDS = st.sampled_from(
    ["linear", "dynamic", "yarn", "longrope", "llama3", "default", "su", "full_attention"]
)
_VALUES = st.recursive(
    st.one_of(_SCALARS, _WORDS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=6), st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)
_ROPE_KEYS = (
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "attention_factor",
    "truncate",
    "short_factor",
    "long_factor",
    "partial_rotary_factor",
    "full_attention",
    "sliding_attention",
)
_SECTIONS = ("rope_parameters", "rope_scaling", "text_config", "quantization_config")
# So small that a spec of as many layers is made quickly.
_LAYERS = st.one_of(st.integers(0, 8), st.just("2"), st.none())


def test_a_context_beyond_32_bits_with_angles_that_depend_on_it() -> None:
    files = tiny_config_files("llama-dynamic").changed(max_position_embeddings=1 << 31)
    _assert_usable(spec_of_config(files))


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_config_gives_a_usable_spec_or_our_own_error(data: st.DataObject) -> None:
    files = tiny_config_files(data.draw(st.sampled_from([model.name for model in TINY_MODELS])))
    config = dict(files.config)
    keys = st.sampled_from([*config, "rope_scaling", "partial_rotary_factor", "text_config"])
    for key in data.draw(st.lists(keys, min_size=1, max_size=4, unique=True)):
        config[key] = data.draw(_config_value(key))
    for key in data.draw(st.lists(st.sampled_from(list(config)), max_size=2)):
        config.pop(key, None)
    try:
        spec = spec_of_config(replace(files, config=config))
    except FirstlightError:
        return
    _assert_usable(spec)


def _config_value(key: str) -> st.SearchStrategy[Any]:
    if key == "num_hidden_layers":
        return _LAYERS
    if key in _SECTIONS:
        rope = st.dictionaries(
            st.sampled_from(_ROPE_KEYS),
            st.one_of(_WORDS, _NUMBERS, st.lists(_NUMBERS, max_size=5), _VALUES),
            max_size=7,
        )
        return st.one_of(rope, rope, _VALUES)
    return _VALUES


_GGUF_KEYS = (
    "block_count",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "context_length",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.original_context_length",
    "rope.scale_linear",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
    "expert_count",
)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_metadata_gives_a_usable_spec_or_our_own_error(data: st.DataObject) -> None:
    architectures = [name for family in REGISTERED for name in family.architectures]
    architecture = data.draw(st.sampled_from(architectures))
    files = gguf_config_files(architecture)
    changes: dict[str, Any] = {}
    for key in data.draw(st.lists(st.sampled_from(_GGUF_KEYS), min_size=1, max_size=4)):
        array = st.lists(st.integers(0, 4), max_size=4).map(np.array)
        values = _LAYERS if key == "block_count" else st.one_of(_VALUES, array)
        changes[f"{architecture}.{key}"] = data.draw(values)
    factors = data.draw(st.dictionaries(st.sampled_from(_FACTOR_TENSORS), _HEADERS, max_size=2))
    files = replace(files.changed(**changes), tensors={**files.tensors, **factors})
    try:
        spec = spec_of_config(files)
    except FirstlightError:
        return
    _assert_usable(spec)


_FACTOR_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_HEADERS = st.sampled_from([Header((4,)), Header((3,)), Header((2, 2)), Header(())])


def _assert_usable(spec: ModelSpec) -> None:
    """The decoder and the memory plan can work with every number in it."""
    assert spec.layers
    assert 1 <= spec.context_length <= 1 << 52
    positions = np.array([0, 1, 1000], np.int32)
    for rope in spec.ropes():
        assert np.isfinite(cosines_and_sines(rope, positions, positions + 1)).all()
    for layer in spec.layers:
        attention = layer.attention
        if isinstance(attention, LatentAttentionSpec):
            assert attention.heads >= 1
            assert np.isfinite(attention.scale) and attention.scale > 0
            continue
        assert attention.heads % attention.key_value_heads == 0
        assert attention.window is None or attention.window >= 1
        assert np.isfinite(attention.scale) and attention.scale > 0
        assert attention.rope is None or attention.rope.size <= attention.head_size
    for source in spec.sources():
        assert all(size >= 1 for size in source.shape)
        if source.first_row is not None:
            assert source.fused_rows is not None
            assert source.first_row + source.shape[0] <= source.fused_rows
