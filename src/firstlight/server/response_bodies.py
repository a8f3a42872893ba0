"""What clients are answered: OpenAI's objects, as data that msgspec writes as JSON."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType


class PromptTokenDetails(msgspec.Struct):
    """`cached_tokens`: tokens of the prompt whose state was there already."""

    cached_tokens: int = 0


class CompletionTokenDetails(msgspec.Struct):
    """`reasoning_tokens`: tokens before the end of the model's thoughts."""

    reasoning_tokens: int = 0


class Usage(msgspec.Struct):
    """Tokens of a request; a prompt counts once, however many choices go on from it."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokenDetails | None = None
    completion_tokens_details: CompletionTokenDetails | None = None


class TopLogprob(msgspec.Struct):
    """A token and its log probability. `bytes`: those of the token, where `token` may lack some."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct):
    """The same of a token that was chosen, with the likeliest in its place."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """One entry a token."""

    content: list[TokenLogprob]


class ChatMessage(msgspec.Struct):
    """An answer; `reasoning_content` is what stood between <think> and </think>."""

    content: str
    role: str = "assistant"
    refusal: str | None = None
    reasoning_content: str | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    finish_reason: str
    logprobs: ChatLogprobs | None = None


class ChatCompletion(msgspec.Struct, kw_only=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(msgspec.Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct, kw_only=True):
    """`usage`: absent unless asked for, and then null in all chunks but the last."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET


class TextLogprobs(msgspec.Struct):
    """One entry a token in each list. The first token of an echoed prompt has no log
    probability. `text_offset`: characters of the text before the token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(msgspec.Struct):
    text: str
    index: int
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None


class Completion(msgspec.Struct, kw_only=True):
    """The answer of /v1/completions, and each chunk of its stream."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | UnsetType | None = UNSET


class Model(msgspec.Struct, kw_only=True):
    """A model that is served. `context_length`: longest sequence, in tokens."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "firstlight"
    context_length: int


class ModelList(msgspec.Struct, kw_only=True):
    object: str = "list"
    data: list[Model]


class Tokens(msgspec.Struct):
    """The answer of /tokenize. `max_model_len`: the model's context, in tokens."""

    tokens: list[int]
    count: int
    max_model_len: int


class Text(msgspec.Struct):
    """The answer of /detokenize."""

    prompt: str


class Health(msgspec.Struct):
    """`replicas`: the state of each, by name."""

    status: str
    replicas: dict[str, str]
