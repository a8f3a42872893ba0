"""Which family a checkpoint belongs to, and from there its spec."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Protocol

from firstlight.checkpoint.config import asks_for_code
from firstlight.checkpoint.quantization import quantization_of
from firstlight.errors import CheckpointError, UnsupportedModelError
from firstlight.model.families.config import Config, shown
from firstlight.model.families.gguf import config_from_metadata
from firstlight.model.families.gguf_published import published_config, same_model
from firstlight.model.families.names import HUGGING_FACE
from firstlight.model.families.parts import Parts
from firstlight.model.spec import ModelSpec
from firstlight.model.tensor_files import TensorFiles
from firstlight.model.weights import check_sources


class ModelFiles(TensorFiles, Protocol):
    """A checkpoint, as far as a family needs it."""

    @property
    def kind(self) -> str: ...

    @property
    def config(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Family:
    """One family, read from its own module `families/<name>.py` when it is needed.

    Attributes:
        model_types: values of `model_type` in config.json.
        architectures: values of `general.architecture` in GGUF files.
        experts: its layers have mixtures of experts. Where another family has the same
            architecture, this one has the files with experts.
        gating: what GGUF files of it have as `expert_gating_func`, where another family has the
            same architecture; None: any.
        quantization: a method of quantisation that published checkpoints of it are stored in and
            that its tensors' names give away; others are refused.
        stacked: its experts are published in one tensor of all.
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    experts: bool = False
    quantization: str | None = None
    gating: int | None = None
    stacked: bool = False

    def spec(self, parts: Parts) -> ModelSpec:
        """The family's own function from config and tensor names to a spec."""
        module = import_module(f"firstlight.model.families.{self.name}")
        build: Callable[[Parts], ModelSpec] = module.spec
        return build(parts)


FAMILIES = (
    Family("deepseek_v2", ("deepseek_v2",), ("deepseek2",), experts=True),
    Family("deepseek_v3", ("deepseek_v3", "kimi_k2"), ("deepseek2",), experts=True, gating=2),
    Family("deepseek_v32", ("deepseek_v32",), (), experts=True),
    Family("deepseek_v4", ("deepseek_v4",), (), experts=True),
    Family("gemma2", ("gemma2",), ("gemma2",)),
    Family("gemma3", ("gemma3_text", "gemma3"), ("gemma3",)),
    Family("glm4_moe", ("glm4_moe",), ("glm4moe",), experts=True),
    Family("gpt_oss", ("gpt_oss",), ("gpt-oss",), experts=True, quantization="mxfp4", stacked=True),
    Family("granite", ("granite",), ("granite",)),
    Family("llama", ("llama",), ("llama",)),
    Family("mistral", ("mistral",), ()),
    Family("mixtral", ("mixtral",), ("llama",), experts=True),
    Family("olmo2", ("olmo2",), ("olmo2",)),
    Family("olmoe", ("olmoe",), ("olmoe",), experts=True),
    Family("phi3", ("phi3",), ("phi3",)),
    Family("qwen2", ("qwen2",), ("qwen2",)),
    Family("qwen2_moe", ("qwen2_moe",), ("qwen2moe",), experts=True),
    Family("qwen3", ("qwen3",), ("qwen3",)),
    Family("qwen3_moe", ("qwen3_moe",), ("qwen3moe",), experts=True),
    Family("smollm3", ("smollm3",), ("smollm3",)),
)


# What newer converters call families in GGUF files that are read from safetensors alone: the
# layouts of these files have no description or reader yet that ours could be compared with.
_PUBLISHED_ONLY = {"deepseek32": "deepseek_v32", "deepseek4": "deepseek_v4"}


def find_family(files: ModelFiles) -> Family:
    """The family that knows this checkpoint.

    Raises:
        CheckpointError: the config does not say what kind of model it is.
        UnsupportedModelError: no family knows it; the message names those that are known, the
            nearest, and whether the checkpoint asks to run code of its own.
    """
    gguf = files.kind == "gguf"
    key = "general.architecture" if gguf else "model_type"
    name = files.config.get(key)
    if not isinstance(name, str):
        raise CheckpointError(
            files.location,
            f"the config has no {key!r}, so the model's family is unknown",
            "Check that this is a language model's own directory or file",
        )
    count = files.config.get(f"{name}.expert_count") if gguf else None
    has_experts = isinstance(count, int) and count > 0
    gating = files.config.get(f"{name}.expert_gating_func")
    known: dict[str, Family] = {}
    for family in FAMILIES:
        for kind in family.architectures if gguf else family.model_types:
            if kind not in known or (
                family.experts == has_experts and family.gating in (None, gating)
            ):
                known[kind] = family
    if name in known:
        return known[name]
    if gguf and name in _PUBLISHED_ONLY:
        raise UnsupportedModelError(
            files.location,
            f"its architecture {shown(name)} is family {_PUBLISHED_ONLY[name]}, which firstlight "
            "does not read from GGUF files",
            "Use the model as DeepSeek published it, in safetensors: `--weights int4` makes it "
            "small on loading, `firstlight convert` once and for all",
        )
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    reason = f"its family {shown(name)} is not one that firstlight knows: {', '.join(known)}"
    if nearest:
        reason += f"; the nearest is {nearest[0]!r}"
    code = asks_for_code(files.config)
    if code is not None:
        reason += (
            f"; its config asks to run code from its own repository ({shown(code)}, in auto_map), "
            "which firstlight never does"
        )
    raise UnsupportedModelError(
        files.location,
        reason,
        "Convert it to a family above, or add one: CONTRIBUTING.md shows how, in a short file",
    )


def make_spec(files: ModelFiles, *, predictor: bool = False) -> ModelSpec:
    """The checkpoint's spec, with every tensor it needs checked against the headers.

    Args:
        predictor: with what predicts further tokens, if the checkpoint has it.

    Raises:
        CheckpointError: the config or the tensors are wrong or contradict each other.
        UnsupportedModelError: the family, or a variant within it, is not known.
    """
    spec = spec_of_config(files)
    if not predictor:
        spec = replace(spec, predictor=None)
    check_sources(spec, files)
    return spec


def spec_of_config(files: ModelFiles) -> ModelSpec:
    """What the config says the model is, whether or not the tensors are there; as `make_spec` with
    its predictor."""
    family = find_family(files)
    if files.kind == "gguf":
        config = config_from_metadata(files.config, files, family.experts)
        return family.spec(Parts(config, files, gguf=True))
    return family.spec(_parts(family, Config(files.location, files.config), files))


def published_spec(files: ModelFiles, spec: ModelSpec, *, apart: bool = False) -> ModelSpec:
    """The same model with its tensors named and laid out as Hugging Face models are published:
    experts one by one, but for families that publish them stacked. `spec` itself where the files
    have that layout.

    Args:
        apart: experts one by one in every family.

    Raises:
        UnsupportedModelError: the family publishes it in no layout that has the same parts.
    """
    family = find_family(files)
    stacks = [source for source in spec.sources() if source.stack is not None]
    as_published = bool(stacks) == (family.stacked and not apart)
    # In two tensors, codes and scales, it has a name of its own.
    if files.kind != "gguf" and as_published and not any(each.scales for each in stacks):
        return spec
    named = _Unnamed(files.location)
    config: Config | None = Config(files.location, files.config)
    if files.kind == "gguf":
        config = config_as_published(files, spec)
    published = None if config is None else family.spec(Parts(config, named, apart=apart))
    if published is None or not same_model(spec, published):
        raise UnsupportedModelError(
            files.location,
            f"its numbers or tensors do not correspond to those that family {family.name} is "
            "published with",
            "Use it as it is; `--weights` converts it while it is loaded",
        )
    return published


def config_as_published(files: ModelFiles, spec: ModelSpec) -> Config | None:
    """What config.json would say of a GGUF file's model; None where it has no words for it."""
    config = config_from_metadata(files.config, files, find_family(files).experts)
    values = published_config(config, spec)
    return None if values is None else Config(files.location, values)


@dataclass(frozen=True)
class _Unnamed:
    """Files of which only the place is known: families then name tensors as published."""

    location: object
    tensors: Mapping[str, Any] = field(default_factory=dict)

    def _nothing(self, *_: object) -> Any:
        raise NotImplementedError

    format_of = weight = rows = integers = release = _nothing


def _parts(family: Family, config: Config, files: TensorFiles) -> Parts:
    _check_quantisation(config, family)
    text = config.section("text_config")
    if text is None:
        return Parts(config, files)
    # A text model inside a larger one: its tensors stand under a prefix, in one of two orders.
    _check_quantisation(text, family)
    if text.text("model_type", family.name) not in (family.name, *family.model_types):
        raise text.unsupported("model_type")
    if "model.language_model.embed_tokens.weight" in files.tensors:
        inside, head = "model.language_model.", "lm_head"
    else:
        inside, head = "language_model.model.", "language_model.lm_head"
    names = {role: name.replace("model.", inside, 1) for role, name in HUGGING_FACE.items()}
    tied = config.values.get("tie_word_embeddings", True)
    return Parts(
        text.with_defaults({"tie_word_embeddings": tied}), files, renamed={**names, "head": head}
    )


def _check_quantisation(config: Config, family: Family) -> None:
    """Whether weights are quantised in a way that the family's layout, or the checkpoint itself,
    can be read in."""
    declared = config.section("quantization_config")
    method = None if declared is None else declared.values.get("quant_method")
    if family.quantization is None or method != family.quantization:
        quantization_of(config.values, config.subject)
