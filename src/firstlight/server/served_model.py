"""What the HTTP side knows of a model: its words, not its weights."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.checkpoint.generation import GenerationDefaults
from firstlight.checkpoint.resolve import resolve_model
from firstlight.checkpoint.text_stream import TextStream
from firstlight.checkpoint.tokenizer import Tokenizer
from firstlight.checkpoint.tokenizer_loading import load_tokenizer
from firstlight.errors import RequestError

THINK, END_THINK = "<think>", "</think>"
_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "name"})


@dataclass(frozen=True, eq=False)
class ModelText:
    """A model's tokenizer, chat template and publisher's defaults.

    Attributes:
        name: what requests call it.
        longest_token: most bytes that a token stands for.
        marker_ids: tokens of <think> and </think>, where the tokenizer has such.
        created: when it was opened, in seconds since 1970.
    """

    name: str
    tokenizer: Tokenizer
    generation: GenerationDefaults
    longest_token: int
    marker_ids: frozenset[int]
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a text."""
        return self.tokenizer.end_ids | frozenset(self.generation.stop_token_ids)

    def encode(self, text: str, context_length: int, add_special: bool = True) -> list[int]:
        """Token ids of a prompt.

        Raises:
            RequestError: the text is too long for the context, whatever its tokens may be. So
                nothing is spent on texts of any length.
        """
        if len(text) > context_length * self.longest_token:
            raise RequestError(
                "prompt",
                f"has {len(text)} characters, and the context holds {context_length} tokens",
                "Shorten it",
            )
        return self.tokenizer.encode(text, add_special)

    def render(
        self, messages: Sequence[Mapping[str, Any]], generate: bool, variables: Mapping[str, Any]
    ) -> str:
        """The prompt of a conversation.

        Args:
            generate: end with what makes the model answer.
            variables: for the template.

        Raises:
            RequestError: the template refuses the conversation; there is no template.
            TokenizerError: the template is at fault.
        """
        template = self.tokenizer.chat_template
        if template is None:
            raise RequestError(
                "messages",
                f"cannot be used: {self.name} is a base model without a chat template",
                "Use /v1/completions, or an instruction-tuned model",
            )
        reserved = sorted(_RESERVED & variables.keys())
        if reserved:
            raise RequestError(
                f"chat_template_kwargs.{reserved[0]}", "cannot be set there", "Leave it out"
            )
        return template.render(messages, generate, **variables)

    def stream(self, prompt_ids: Sequence[int]) -> TextStream:
        """The text that goes on from a prompt; <think> and </think> are written even where they
        are special tokens."""
        special = self.tokenizer.special_ids
        continues = any(token not in special for token in prompt_ids)
        return self.tokenizer.stream(continues=continues, kept_ids=self.marker_ids)


def model_text(name: str, tokenizer: Tokenizer, generation: GenerationDefaults) -> ModelText:
    """What can be known from a tokenizer; looks at each token once."""
    ids = range(tokenizer.vocabulary_size)
    longest = max((len(tokenizer.token_bytes(token)) for token in ids), default=1)
    markers = [tokenizer.encode(text, add_special=False) for text in (THINK, END_THINK)]
    marker_ids = frozenset(ids[0] for ids in markers if len(ids) == 1)
    return ModelText(name, tokenizer, generation, max(1, longest), marker_ids)


def open_model_text(
    name: str, model: str, endpoint: str | None = None, update: bool = False
) -> ModelText:
    """A model's words from its files, fetched if need be; `model` as for `firstlight.load`.

    Raises:
        FirstlightError: it cannot be found or read, or has no tokenizer that works.
    """
    checkpoint = open_checkpoint(resolve_model(model, endpoint=endpoint, update=update))
    return model_text(name, load_tokenizer(checkpoint), checkpoint.generation)
