"""Requests made from our own OpenAPI page by schemathesis: right ones, wrong ones, strange ones."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from firstlight.server.openapi import description
from tests.server.conftest import MODEL
from tests.support.http_server import Running

_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


_LONG = ("max_tokens", "max_completion_tokens", "n")

schema = schemathesis.openapi.from_dict(description())


def tame(body: dict[str, Any], path: str) -> None:
    """Change what is right in a body, so that it is answered in an instant: a model that exists,
    few tokens, few choices. What is wrong stays so."""
    if isinstance(body.get("model"), str):
        body["model"] = MODEL
    for name in _LONG:
        if type(body.get(name)) is int and 2 < body[name] <= (128 if name == "n" else 1 << 30):
            body[name] = 2
    if path.startswith("/v1/"):
        if not any(body.get(name) is not None for name in _LONG[:2]):
            body["max_tokens"] = 2
        if body.get("prompt") == "":
            body["prompt"] = "x"


@pytest.mark.filterwarnings("ignore")
@schema.parametrize()
@settings(max_examples=10, suppress_health_check=list(HealthCheck), deadline=None)
def test_what_the_page_promises(case: Any, server: Running) -> None:
    if isinstance(case.body, dict):
        tame(case.body, case.path)
    case.call_and_validate(base_url=server.url, checks=_CHECKS, timeout=30)
