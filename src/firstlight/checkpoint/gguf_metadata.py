"""The tokenizer's part of a GGUF file's metadata.

Source of the keys: docs/gguf.md of https://github.com/ggml-org/ggml ("Tokenizer"); of the types of
tokens: `llama_token_type` in llama.cpp's include/llama.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.checkpoint.chat_template import ChatTemplate
from firstlight.checkpoint.files import shown
from firstlight.checkpoint.gguf_values import StringArray
from firstlight.errors import TokenizerError

KINDS = ("gpt2", "llama")

CONTROL, USER_DEFINED = 3, 4
"""Types of tokens: those that steer the model, and those that are text but always taken whole."""

CONVERT_AGAIN = "Convert the model to GGUF again with a current llama.cpp"

_PREFIX = "tokenizer.ggml."
_NONE = (-1, (1 << 32) - 1)


@dataclass(frozen=True)
class TokenizerMetadata:
    """The tokenizer's part of a GGUF file's metadata, each value checked when it is asked for."""

    values: Mapping[str, Any]
    path: Path

    def bad(self, reason: str, remedy: str = CONVERT_AGAIN) -> TokenizerError:
        return TokenizerError(self.path, reason, remedy)

    @cached_property
    def kind(self) -> str:
        kind = self.values.get(_PREFIX + "model")
        if kind is None:
            raise self.bad("holds no tokenizer: it has no key tokenizer.ggml.model")
        if not isinstance(kind, str) or kind not in KINDS:
            raise self.bad(
                f"has a tokenizer of kind {shown(kind)}; firstlight knows {', '.join(KINDS)}",
                "Use the model's Hugging Face directory with its tokenizer.json instead",
            )
        return kind

    @cached_property
    def tokens(self) -> StringArray:
        return self.strings("tokens")

    def strings(self, name: str) -> StringArray:
        """The array tokenizer.ggml.NAME, which must not be empty."""
        strings = self.values.get(_PREFIX + name)
        if not isinstance(strings, StringArray) or not len(strings):
            raise self.bad(f"has no {_PREFIX}{name}, or not as an array of strings")
        return strings

    @cached_property
    def types(self) -> NDArray[np.int32]:
        """int32 [tokens]; 1, an ordinary token, where the file does not say."""
        types = self.values.get(_PREFIX + "token_type")
        if types is None:
            return np.ones(len(self.tokens), np.int32)
        return self._numbers("token_type", "iu").astype(np.int32)

    @cached_property
    def scores(self) -> NDArray[np.float32]:
        """float32 [tokens], all finite."""
        scores = self._numbers("scores", "f").astype(np.float32)
        if not np.isfinite(scores).all():
            raise self.bad("has tokenizer.ggml.scores that are not finite numbers")
        return scores

    def _numbers(self, name: str, kinds: str) -> NDArray[Any]:
        numbers = self.values.get(_PREFIX + name)
        if not isinstance(numbers, np.ndarray) or numbers.dtype.kind not in kinds:
            raise self.bad(f"has no {_PREFIX}{name}, or not as an array of numbers")
        if len(numbers) != len(self.tokens):
            raise self.bad(f"has {len(numbers):,} {_PREFIX}{name} for {len(self.tokens):,} tokens")
        return numbers

    def token_id(self, name: str) -> int | None:
        """The id that the key tokenizer.ggml.NAME_token_id gives, if any."""
        key = f"{_PREFIX}{name}_token_id"
        value = self.values.get(key)
        if value is None or (type(value) is int and value in _NONE):
            return None
        if type(value) is not int or not 0 <= value < len(self.tokens):
            raise self.bad(f"has {key} {shown(value)} and {len(self.tokens):,} tokens")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(_PREFIX + name, default)
        if not isinstance(value, bool):
            raise self.bad(f"has {_PREFIX}{name} {shown(value)}, where true or false belongs")
        return value

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.bad(f"has {key} {shown(value)}, where text belongs")
        return value

    @cached_property
    def named_ids(self) -> dict[str, int]:
        """Ids by the names that chat templates use."""
        named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown"}
        found = {name: self.token_id(key) for name, key in named.items()}
        found["pad_token"] = self.token_id("padding")
        return {name: token_id for name, token_id in found.items() if token_id is not None}

    @cached_property
    def end_ids(self) -> frozenset[int]:
        ids = (self.token_id(name) for name in ("eos", "eot", "eom"))
        return frozenset(token_id for token_id in ids if token_id is not None)

    def ids_of_type(self, kind: int) -> list[int]:
        ids: list[int] = np.flatnonzero(self.types == kind).tolist()
        return ids

    def chat_template(self, named_tokens: Mapping[str, str]) -> ChatTemplate | None:
        """The chat template; `named_tokens` are the texts of `named_ids`."""
        source = self.text("tokenizer.chat_template")
        sources = {} if source is None else {"default": source}
        extra = self.values.get("tokenizer.chat_templates")
        for name in extra if isinstance(extra, StringArray) else ():
            source = self.text(f"tokenizer.chat_template.{name}")
            if source is not None:
                sources[name] = source
        return ChatTemplate(sources, dict(named_tokens), self.path) if sources else None
