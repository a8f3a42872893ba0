"""How a model's publisher means it to be sampled, and which tokens end its text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from firstlight.checkpoint.files import exists, shown
from firstlight.checkpoint.gguf_values import StringArray
from firstlight.checkpoint.json_file import read_json_object
from firstlight.errors import CheckpointError

# Tokens that end a turn of a chat. A GGUF file need not list them among its keys; like llama.cpp,
# they are known by their text. Only tokens that the file marks as control tokens count.
_END_OF_TURN = (
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<turn|>",
    "<|endoftext|>", "<|end_of_text|>", "<|end_of_turn|>", "<|eot|>", "<EOT>", "_<EOT>",
    "<|return|>", "<|call|>", "<｜end▁of▁sentence｜>", "<end_of_utterance>", "[EOT]", "[EOS]",
)  # fmt: skip
_CONTROL = 3
_NO_TOKEN = (-1, (1 << 32) - 1)


@dataclass(frozen=True)
class GenerationDefaults:
    """What applies where a request says nothing. None: the publisher says nothing either.

    Attributes:
        stop_token_ids: tokens that end the text, each once, the main one first.
        stop_strings: texts that end the text.
        do_sample: False asks for the likeliest token each time.
        temperature: divides the logits; 0 means the likeliest token.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together reach this probability, 0 to 1.
        min_p: keep tokens at least this fraction as likely as the likeliest, 0 to 1.
        repetition_penalty: divides positive and multiplies negative logits of tokens seen; 1 is
            none.
        max_new_tokens: how many tokens to generate.
    """

    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None

    def sampling(self, unsaid: float = 0.0) -> dict[str, float | int]:
        """What of the sampling parameters the publisher gives, by the names that a request uses.

        Sampling is on where do_sample says so, or where a temperature stands without a do_sample;
        where it is off the likeliest token is taken, as transformers does.

        Args:
            unsaid: the temperature where the publisher gives none and says nothing of do_sample.
        """
        if self.do_sample is None:
            temperature = unsaid if self.temperature is None else self.temperature
        elif self.do_sample:
            temperature = 1.0 if self.temperature is None else self.temperature
        else:
            temperature = 0.0
        defaults = {
            "temperature": temperature,
            "top_k": self.top_k,
            "top_p": self.top_p or None,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
        }
        return {key: value for key, value in defaults.items() if value is not None}


def generation_of_folder(folder: Path, config: Mapping[str, Any]) -> GenerationDefaults:
    """From generation_config.json, its stop tokens in want of that from config.json.

    Raises:
        CheckpointError: a value has the wrong type or lies out of range.
    """
    path = folder / "generation_config.json"
    values = read_json_object(path) if exists(path) else {}
    remedy = "Correct that value in the file, or remove it"
    stop = values.get("eos_token_id")
    source = path
    if stop is None:
        nested = config.get("text_config")
        stop = config.get("eos_token_id")
        if stop is None and isinstance(nested, Mapping):
            stop = nested.get("eos_token_id")
        source = folder / "config.json"
    ids = stop if isinstance(stop, list) else [] if stop is None else [stop]
    if not all(type(i) is int and -1 <= i < 1 << 31 for i in ids):
        raise CheckpointError(source, f"has eos_token_id {shown(stop)}", remedy)
    strings = values.get("stop_strings") or []
    strings = strings if isinstance(strings, list) else [strings]
    if not all(isinstance(text, str) for text in strings):
        raise CheckpointError(path, f"has stop_strings {shown(strings)}", remedy)
    sample = values.get("do_sample")
    if sample is not None and not isinstance(sample, bool):
        raise CheckpointError(path, f"has do_sample {shown(sample)}", remedy)
    read = _Numbers(values, path, remedy)
    return GenerationDefaults(
        stop_token_ids=tuple(dict.fromkeys(i for i in ids if i >= 0)),  # -1 stands for "none"
        stop_strings=tuple(text for text in strings if text),
        do_sample=sample,
        temperature=read.number("temperature", 0, 1e6),
        top_k=read.top_k("top_k"),
        top_p=read.number("top_p", 0, 1),
        min_p=read.number("min_p", 0, 1),
        repetition_penalty=read.number("repetition_penalty", 1e-6, 1e6),
        max_new_tokens=read.integer("max_new_tokens", 1),
    )


def generation_of_gguf(metadata: Mapping[str, Any], path: Path) -> GenerationDefaults:
    """From the keys tokenizer.ggml.*_token_id and general.sampling.*, and the vocabulary.

    Raises:
        CheckpointError: a value has the wrong type or lies out of range.
    """
    remedy = "Convert the model to GGUF again, or ask its publisher to correct the file"
    tokens = metadata.get("tokenizer.ggml.tokens")
    types = metadata.get("tokenizer.ggml.token_type")
    vocabulary = len(tokens) if isinstance(tokens, StringArray) else 1 << 31
    stop = []
    for name in ("eos", "eot", "eom"):
        key = f"tokenizer.ggml.{name}_token_id"
        value = metadata.get(key)
        if type(value) is int and 0 <= value < vocabulary:
            stop.append(value)
        elif value is not None and not (type(value) is int and value in _NO_TOKEN):
            raise CheckpointError(path, f"has {key} {shown(value)}", remedy)
    if isinstance(tokens, StringArray) and isinstance(types, np.ndarray):
        found = tokens.find(_END_OF_TURN)
        stop += sorted(i for i in found.values() if i < types.size and types[i] == _CONTROL)
    read = _Numbers(metadata, path, remedy, "general.sampling.")
    return GenerationDefaults(
        stop_token_ids=tuple(dict.fromkeys(stop)),
        temperature=read.number("temp", -1e6, 1e6, least=0),
        top_k=read.top_k("top_k"),
        top_p=read.number("top_p", 0, 1),
        min_p=read.number("min_p", 0, 1),
        repetition_penalty=read.number("penalty_repeat", 1e-6, 1e6),
    )


@dataclass(frozen=True)
class _Numbers:
    """Takes optional numbers out of a mapping, each checked."""

    values: Mapping[str, Any]
    path: Path
    remedy: str
    prefix: str = ""

    def number(self, name: str, low: float, high: float, least: float = -math.inf) -> float | None:
        """The number, refused outside low..high, raised to `least`."""
        value = self.values.get(self.prefix + name)
        if value is None:
            return None
        if type(value) not in (int, float) or not low <= value <= high:
            raise self._wrong(name, value, f"a number from {low:g} to {high:g}")
        return max(float(value), least)

    def integer(self, name: str, low: int) -> int | None:
        value = self.values.get(self.prefix + name)
        if value is None:
            return None
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or not low <= value < 1 << 63:
            raise self._wrong(name, value, f"an integer of at least {low}")
        return value

    def top_k(self, name: str) -> int | None:
        """An integer; a negative one means, as 0 does, that all tokens are kept."""
        value = self.integer(name, -(1 << 63))
        return None if value is None else max(value, 0)

    def _wrong(self, name: str, value: object, wanted: str) -> CheckpointError:
        return CheckpointError(
            self.path,
            f"has {self.prefix}{name} {shown(value)}, where {wanted} belongs",
            self.remedy,
        )
