"""What clients may ask: the bodies of requests, as data that is checked while it is read.

Fields that are not listed are accepted and ignored, as OpenAI's API does; of those in the last
group of each body the field is known and what it asks for is not (`refuse_unsupported`).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from firstlight.server.api_error import ApiError, bad_request, unsupported

MOST_CHOICES = 128
MOST_ALTERNATIVES = 20
_LARGEST_TOKEN = (1 << 31) - 1

TokenId = Annotated[int, Meta(ge=0, le=_LARGEST_TOKEN)]
StopString = Annotated[str, Meta(min_length=1, max_length=1000)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
TokenCount = Annotated[int, Meta(ge=0, le=_LARGEST_TOKEN)]
Count = Annotated[int, Meta(ge=1, le=_LARGEST_TOKEN)]


class StreamOptions(msgspec.Struct):
    """`include_usage`: end the stream with a chunk that has the request's usage and no choice."""

    include_usage: bool | None = None


class SamplingFields(msgspec.Struct, kw_only=True):
    """How tokens are chosen and when the text ends; common to both kinds of generation.

    What is not given comes from the model's own generation config, and without one is as OpenAI's
    API has it. `top_k`, `min_p`, `repetition_penalty`, `ignore_eos` and `priority` are our own.
    """

    model: str
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=_LARGEST_TOKEN)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.001, le=1000)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[TokenId, Bias] | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=16)] | None = None
    ignore_eos: bool | None = None
    n: Annotated[int, Meta(ge=1, le=MOST_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Annotated[int, Meta(ge=-100, le=100)] | None = None
    user: str | None = None


class ContentPart(msgspec.Struct):
    """A part of a message; only those of type "text" can be read."""

    type: str
    text: str | None = None


class Message(msgspec.Struct, omit_defaults=True):
    """One turn of a conversation. `reasoning_content` is what the model thought before an answer
    of its own."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None
    audio: Any = None


class ChatBody(SamplingFields, kw_only=True):
    """The body of /v1/chat/completions. `chat_template_kwargs` are handed to the template."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MOST_ALTERNATIVES)] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    modalities: list[str] | None = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None


class CompletionBody(SamplingFields, kw_only=True):
    """The body of /v1/completions. A prompt is text or token ids, or a list of either."""

    prompt: str | list[str | TokenId | list[TokenId]]
    max_tokens: TokenCount | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MOST_ALTERNATIVES)] | None = None

    best_of: Annotated[int, Meta(ge=1, le=MOST_CHOICES)] | None = None
    suffix: str | None = None
    response_format: dict[str, Any] | None = None


class TokenizeBody(msgspec.Struct, kw_only=True):
    """The body of /tokenize: a text, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True


class DetokenizeBody(msgspec.Struct, kw_only=True):
    """The body of /detokenize."""

    tokens: list[TokenId]
    model: str | None = None
    skip_special_tokens: bool = False


Body = TypeVar("Body", bound=msgspec.Struct)

_PLACE = re.compile(r" - at (?:`key` in )?`\$([^`]*)`$")
_MISSING = re.compile(r"Object missing required field `([^`]*)`")


def read_body(data: bytes, kind: type[Body]) -> Body:
    """The body as data.

    Raises:
        ApiError: 400, naming the field that is wrong.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _wrong_field(str(error)) from None
    except msgspec.DecodeError as error:
        raise bad_request(None, f"The body is no JSON: {error}.", "invalid_json") from None
    except UnicodeDecodeError:
        raise bad_request(None, "The body is not in UTF-8.", "invalid_json") from None
    except RecursionError:
        raise bad_request(None, "The body is nested too deeply.", "invalid_json") from None


def _wrong_field(message: str) -> ApiError:
    place = _PLACE.search(message)
    param = place.group(1).lstrip(".") if place else ""
    reason = (message[: place.start()] if place else message).replace(" | null`", "`")
    missing = _MISSING.match(reason)
    if missing:
        name = missing.group(1)
        param = f"{param}.{name}" if param else name
        return bad_request(param, f"{param} is missing. It is required.", "missing_required_field")
    if not param:
        return bad_request(None, f"The body is wrong: {reason}.", "invalid_type")
    wrong_type = ", got " in reason
    reason = reason[0].lower() + reason[1:]
    return bad_request(
        param, f"{param} is wrong: {reason}.", "invalid_type" if wrong_type else "invalid_value"
    )


def refuse_unsupported(body: ChatBody | CompletionBody) -> None:
    """ApiError where the body asks for what does not exist yet, or contradicts itself."""
    if body.stream_options is not None and not body.stream:
        raise bad_request("stream_options", "stream_options is for streams only: set stream.")
    form = body.response_format
    if form is not None and form.get("type") != "text":
        raise unsupported("response_format", 'Only {"type": "text"} is')
    if isinstance(body, CompletionBody):
        _refuse_in_completion(body)
    else:
        _refuse_in_chat(body)


def _refuse_in_completion(body: CompletionBody) -> None:
    if body.suffix:
        raise unsupported("suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise unsupported("best_of", "Leave it out, or choose among n choices yourself")
    if body.echo and body.stream and body.logprobs is not None:
        raise bad_request(
            "echo",
            "echo with logprobs is not supported in a stream. Leave out one of the three.",
            "unsupported_parameter",
        )


def _refuse_in_chat(body: ChatBody) -> None:
    for name in ("tools", "functions", "audio", "prediction", "web_search_options"):
        if getattr(body, name):
            raise unsupported(name)
    for name in ("tool_choice", "function_call"):
        if getattr(body, name) not in (None, "none", "auto"):
            raise unsupported(name)
    if body.modalities is not None and body.modalities != ["text"]:
        raise unsupported("modalities", 'Only ["text"] is')
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise bad_request(
            "max_tokens", "max_tokens and max_completion_tokens are the same: give one of them."
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs", "top_logprobs needs logprobs: set it to true.")


def plain_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates expect them: content is one text.

    Raises:
        ApiError: a message has parts that are no text, or calls tools.
    """
    return [_plain_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _plain_message(message: Message, place: str) -> dict[str, Any]:
    if message.role in ("tool", "function"):
        raise unsupported(f"{place}.role", "Tools come later: give the result as a user's message")
    for name in ("tool_calls", "function_call", "audio"):
        if getattr(message, name):
            raise unsupported(f"{place}.{name}")
    content = message.content
    if isinstance(content, list):
        content = "\n".join(_text(part, f"{place}.content[{i}]") for i, part in enumerate(content))
    if content is None and message.role != "assistant":
        raise bad_request(f"{place}.content", f"{place}.content is missing. It is required.")
    plain: dict[str, Any] = {
        # What OpenAI calls the developer's message is the system message of every template.
        "role": "system" if message.role == "developer" else message.role,
        "content": content or "",
    }
    if message.name is not None:
        plain["name"] = message.name
    if message.reasoning_content is not None:
        plain["reasoning_content"] = message.reasoning_content
    return plain


def _text(part: ContentPart, place: str) -> str:
    if part.type != "text":
        raise unsupported(f"{place}.type", 'Only "text" is: this server reads no other input')
    if part.text is None:
        raise bad_request(f"{place}.text", f"{place}.text is missing. It is required.")
    return part.text
