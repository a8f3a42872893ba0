"""The API's description (OpenAPI 3.1), made from the types that requests are checked with."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from firstlight import __version__
from firstlight.server.api_error import ErrorBody
from firstlight.server.body_reading import json_response
from firstlight.server.request_bodies import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    TokenizeBody,
)
from firstlight.server.response_bodies import (
    ChatChunk,
    ChatCompletion,
    Completion,
    Health,
    Model,
    ModelList,
    Text,
    Tokens,
)

_PREFIX = "#/components/schemas/"
_ERRORS = {
    "400": "The body is no JSON, or a field is wrong; `param` names it.",
    "401": "A key is needed.",
    "404": "There is no such model.",
    "408": "The body did not come in time.",
    "413": "The body is too long.",
    "415": "The body is not sent as JSON.",
    "429": "The key's rate limit is reached, or the queue is full; see Retry-After.",
    "500": "The server failed.",
    "503": "The model is being loaded, or the server is about to stop; see Retry-After.",
}
# Path, summary, body, answer, event of a stream.
_POSTS: tuple[tuple[str, str, type, type, type | None], ...] = (
    ("/v1/chat/completions", "Answer a conversation", ChatBody, ChatCompletion, ChatChunk),
    ("/v1/completions", "Continue one prompt or several", CompletionBody, Completion, Completion),
    ("/tokenize", "The token ids of a text or a conversation", TokenizeBody, Tokens, None),
    ("/detokenize", "The text of token ids", DetokenizeBody, Text, None),
)
_GETS: tuple[tuple[str, str, type | None, dict[str, str]], ...] = (
    ("/v1/models", "The models that are ready", ModelList, {}),
    ("/v1/models/{id}", "One model", Model, {"404": _ERRORS["404"], "503": _ERRORS["503"]}),
    ("/health", "Whether the server answers", Health, {}),
    ("/ready", "Whether every model can be asked", Health, {}),
    ("/metrics", "What Prometheus collects", None, {}),
)
_PUBLIC = frozenset({"/health", "/ready"})


@cache
def description() -> dict[str, Any]:
    """The document. No model, key or address of this server is in it."""
    types = [ErrorBody, ChatChunk, *(each for post in _POSTS for each in post[2:4])]
    types += [get[2] for get in _GETS if get[2] is not None]
    _, schemas = msgspec.json.schema_components(
        list(dict.fromkeys(types)), ref_template=_PREFIX + "{name}"
    )
    paths: dict[str, Any] = {get[0]: {"get": _get(*get)} for get in _GETS}
    paths |= {post[0]: {"post": _post(*post[1:])} for post in _POSTS}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "firstlight",
            "version": __version__,
            "description": "Open-weight language models behind OpenAI's API.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _get(path: str, summary: str, answer: type | None, errors: dict[str, str]) -> dict[str, Any]:
    content: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
    if answer is not None:
        content = _json(answer)
    described: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": "Done.", "content": content}, **_errors(errors)},
    }
    if path == "/ready":
        described["responses"]["503"] = {"description": "Not yet, or no more.", "content": content}
    if path in _PUBLIC:
        described["security"] = []
    else:
        described["responses"] |= _errors({"401": _ERRORS["401"]})
    if path.endswith("{id}"):
        described["parameters"] = [
            {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    return described


def _post(summary: str, body: type, answer: type, event: type | None) -> dict[str, Any]:
    content = _json(answer)
    if event is not None:
        text = f"A {event.__name__} as JSON; in the last event [DONE]."
        data = {"type": "string", "description": text}
        # As OpenAPI 3.2 describes a stream of events: by one of them.
        one = {"type": "object", "properties": {"data": data}, "required": ["data"]}
        content["text/event-stream"] = {"schema": one}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": _json(body)},
        "responses": {"200": {"description": "Done.", "content": content}, **_errors(_ERRORS)},
    }


def _json(kind: type) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _PREFIX + kind.__name__}}}


def _errors(texts: dict[str, str]) -> dict[str, Any]:
    return {
        status: {"description": text, "content": _json(ErrorBody)} for status, text in texts.items()
    }


async def openapi(request: Request) -> Response:
    """The document as JSON."""
    return json_response(description())


def fields_of(name: str) -> list[tuple[str, str, bool]]:
    """Name, type and whether it is required, of each field of a schema."""
    schema = description()["components"]["schemas"][name]
    required = schema.get("required", ())
    return [
        (field, _type(properties), field in required)
        for field, properties in schema["properties"].items()
    ]


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).removeprefix(_PREFIX)
    if "anyOf" in schema:
        parts = [_type(each) for each in schema["anyOf"]]
        return " or ".join(dict.fromkeys(part for part in parts if part != "null"))
    if "enum" in schema:
        return ", ".join(msgspec.json.encode(value).decode() for value in schema["enum"])
    kind = str(schema.get("type", "anything"))
    if kind == "array" and schema.get("items"):
        return f"list of {_type(schema['items'])}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None and most is not None:
        return f"{kind}, {least:g} to {most:g}"
    return kind
