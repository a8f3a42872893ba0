"""POST /tokenize and /detokenize."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from firstlight.server.api_error import bad_request
from firstlight.server.body_reading import body_of, json_response
from firstlight.server.request_bodies import DetokenizeBody, TokenizeBody, plain_messages
from firstlight.server.response_bodies import Text, Tokens
from firstlight.server.served_model import ModelText
from firstlight.server.service import call_of, service_of
from firstlight.server.token_streams import ServedModel


async def tokenize(request: Request) -> Response:
    """The token ids of a text or a conversation."""
    service, call = service_of(request), call_of(request)
    service.admit(call.caller)
    body = await body_of(request, TokenizeBody)
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("prompt", "Give either prompt or messages.", "missing_required_field")
    text, served = service.model(body.model)
    call.model = text.name
    ids = await service.in_thread(_ids, body, text, served)
    return json_response(Tokens(ids, len(ids), served.context_length))


def _ids(body: TokenizeBody, text: ModelText, served: ServedModel) -> list[int]:
    if body.messages is not None:
        rendered = text.render(plain_messages(body.messages), body.add_generation_prompt, {})
        return text.encode(rendered, served.context_length, add_special=False)
    return text.encode(body.prompt or "", served.context_length, body.add_special_tokens)


async def detokenize(request: Request) -> Response:
    """The text of token ids. Special tokens are written out unless asked otherwise."""
    service, call = service_of(request), call_of(request)
    service.admit(call.caller)
    body = await body_of(request, DetokenizeBody)
    text, served = service.model(body.model)
    call.model = text.name
    if body.tokens and max(body.tokens) >= served.vocabulary_size:
        raise bad_request(
            "tokens",
            f"tokens holds {max(body.tokens)}, and the vocabulary has ids 0 to "
            f"{served.vocabulary_size - 1}.",
        )
    decode = text.tokenizer.decode
    return json_response(
        Text(await service.in_thread(decode, body.tokens, body.skip_special_tokens))
    )
