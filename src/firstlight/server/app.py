"""The ASGI application: endpoints, and what surrounds each request."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from firstlight.errors import FirstlightError
from firstlight.server.api_error import ApiError, api_error_of, error_response
from firstlight.server.body_reading import BodyError, LastResponse
from firstlight.server.chat_completions import chat_completions
from firstlight.server.completions import completions
from firstlight.server.docs_page import docs_page
from firstlight.server.generation_response import CLIENT_LEFT
from firstlight.server.openapi import openapi
from firstlight.server.request_frame import RequestFrame
from firstlight.server.service import Service, call_of, service_of
from firstlight.server.state_endpoints import health, metrics, model, models, ready
from firstlight.server.token_endpoints import detokenize, tokenize

_LATER = ("/v1/responses", "/v1/embeddings", "/v1/audio", "/v1/images", "/v1/moderations")


def create_app(service: Service, origins: Sequence[str] = ()) -> Starlette:
    """The application.

    Args:
        origins: web pages' origins that may use it from a browser (CORS); "*" is any.
    """
    middleware = [Middleware(RequestFrame, service=service)]
    if origins:
        # Outside the frame: a browser asks first (preflight), without a key.
        middleware.insert(
            0,
            Middleware(
                CORSMiddleware,
                allow_origins=list(origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["*"],
            ),
        )
    app = Starlette(
        routes=[
            Route("/v1/models", models, methods=["GET"]),
            Route("/v1/models/{id:path}", model, methods=["GET"]),
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/tokenize", tokenize, methods=["POST"]),
            Route("/detokenize", detokenize, methods=["POST"]),
            Route("/health", health, methods=["GET"]),
            Route("/ready", ready, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
            Route("/openapi.json", openapi, methods=["GET"]),
            Route("/docs", docs_page, methods=["GET"]),
        ],
        middleware=middleware,
        exception_handlers={
            ApiError: _refuse,
            FirstlightError: _refuse,
            HTTPException: _not_found,
            ClientDisconnect: _left,
        },
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    field = "messages" if request.url.path.endswith("/chat/completions") else "prompt"
    shown = api_error_of(error, field)
    call_of(request).error = shown.detail.message
    if isinstance(shown, BodyError):
        return LastResponse(shown, service_of(request).limits)
    return error_response(shown)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        message = f"{request.method} is no method of this path."
        code = "method_not_allowed"
    elif path.startswith(_LATER):
        message, code = "firstlight does not have this endpoint.", "unsupported_endpoint"
    else:
        message, code = "There is nothing at this path. See /docs.", "unknown_endpoint"
    headers = dict(error.headers or {})
    return error_response(ApiError(error.status_code, message, code=code, headers=headers))


async def _left(request: Request, error: Exception) -> Response:
    call_of(request).status = CLIENT_LEFT
    return Response(status_code=CLIENT_LEFT)
