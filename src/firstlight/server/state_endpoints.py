"""What the server says of itself: models, health, readiness, metrics."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from firstlight.server.body_reading import json_response
from firstlight.server.metrics import CONTENT_TYPE
from firstlight.server.response_bodies import Health, Model, ModelList
from firstlight.server.served_model import ModelText
from firstlight.server.service import service_of
from firstlight.server.token_streams import ServedModel


async def models(request: Request) -> Response:
    """The models that are ready."""
    service = service_of(request)
    ready = service.source.models()
    listed = [_model(text, ready[name]) for name, text in service.texts.items() if name in ready]
    return json_response(ModelList(data=listed))


async def model(request: Request) -> Response:
    """One model."""
    return json_response(_model(*service_of(request).model(request.path_params["id"])))


def _model(text: ModelText, served: ServedModel) -> Model:
    return Model(id=text.name, created=text.created, context_length=served.context_length)


async def health(request: Request) -> Response:
    """The process answers; replicas may yet be starting."""
    return json_response(Health("ok", _replicas(request)))


async def ready(request: Request) -> Response:
    """200 where every model can be asked, 503 while one loads, and once the server drains."""
    service = service_of(request)
    if service.draining:
        return json_response(Health("draining", _replicas(request)), 503)
    if not service.texts.keys() <= service.source.models().keys():
        return json_response(Health("loading", _replicas(request)), 503)
    if not any(each.state == "ready" for each in service.source.replicas()):
        return json_response(Health("restarting", _replicas(request)), 503)
    return json_response(Health("ready", _replicas(request)))


def _replicas(request: Request) -> dict[str, str]:
    return {each.name: each.state for each in service_of(request).source.replicas()}


async def metrics(request: Request) -> Response:
    """Everything that Prometheus collects."""
    return Response(service_of(request).metrics.text(), headers={"content-type": CONTENT_TYPE})
