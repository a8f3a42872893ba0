"""What a client is told when its request cannot be answered, in the shape of OpenAI's errors."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from firstlight.errors import FirstlightError, RequestError, TokenizerError
from firstlight.server.token_streams import OverloadedError

INVALID_REQUEST = "invalid_request_error"
RATE_LIMIT = "rate_limit_error"
SERVER = "server_error"

_NAMED = re.compile(r"[a-z_]+(\[[^\]]*\]|\.\w+)*")


class ErrorDetail(msgspec.Struct, frozen=True):
    """What OpenAI's clients read of an error.

    Attributes:
        param: the field at fault, as `messages[0].role`.
        code: one word that a program may compare with.
    """

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer whose status is 400 or more."""

    error: ErrorDetail


class ApiError(Exception):
    """A request that is refused, or fails.

    Args:
        status: of the HTTP response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.detail = ErrorDetail(message, kind, param, code)
        self.headers = dict(headers or {})


def bad_request(param: str | None, message: str, code: str | None = None) -> ApiError:
    """400, naming the field."""
    return ApiError(400, message, INVALID_REQUEST, param, code)


def unsupported(param: str, remedy: str = "Leave it out") -> ApiError:
    """400 for a field that firstlight knows and cannot do."""
    return bad_request(param, f"{param} is not supported. {remedy}.", "unsupported_parameter")


def api_error_of(error: BaseException, prompt_field: str = "prompt") -> ApiError:
    """How an exception is told to a client.

    Args:
        prompt_field: what the request calls its prompt.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OverloadedError):
        headers = {"retry-after": str(max(1, round(error.retry_after)))}
        message = f"{error.reason}. {error.remedy}."
        if error.draining:
            return ApiError(503, message, SERVER, None, "draining", headers)
        return ApiError(429, message, RATE_LIMIT, None, "overloaded", headers)
    if isinstance(error, RequestError):
        named = _NAMED.match(error.subject)
        param = named.group() if named else None
        param = prompt_field if param == "prompt" else param
        return bad_request(param, f"{error.subject} {error.reason}. {error.remedy}.")
    if isinstance(error, TokenizerError):
        return bad_request(prompt_field, str(error))
    if isinstance(error, FirstlightError):
        return ApiError(500, str(error), SERVER)
    return ApiError(500, "The server failed. Its log says why.", SERVER, None, "internal_error")


def error_bytes(error: ApiError) -> bytes:
    """The body of the response."""
    return msgspec.json.encode(ErrorBody(error.detail))


def error_response(error: ApiError) -> Response:
    """The response as a whole."""
    return Response(error_bytes(error), error.status, error.headers, "application/json")
