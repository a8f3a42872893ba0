"""A client of OpenAI's completions API that takes times; it knows nothing of which server it is.

The API is described at https://platform.openai.com/docs/api-reference; of its streams, lines that
begin with "data: " count (server-sent events, WHATWG HTML, section 9.2).
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from firstlight.benchmark.load import Record
from firstlight.benchmark.prompts import Prompt
from firstlight.errors import RequestError

if TYPE_CHECKING:
    import httpx2


@dataclass
class CompletionsClient:
    """Sends prompts to one server.

    Args:
        url: of the API, with or without "/v1" at its end.
        model: its name there.
        prompts: request i sends prompt i.
        max_tokens: tokens of an answer.
        chat: use /chat/completions, with the prompt as a user's message.
        ignore_end: ask the server to go on past end tokens (`ignore_eos`, which firstlight, vLLM
            and llama.cpp know), so that every answer has the same length.
        api_key: sent as a bearer token where not empty.
        timeout: seconds without any byte after which a request counts as failed.
    """

    url: str
    model: str
    prompts: list[Prompt]
    max_tokens: int
    chat: bool = False
    ignore_end: bool = True
    api_key: str = ""
    timeout: float = 600.0
    _client: httpx2.AsyncClient | None = field(default=None, repr=False)

    async def __aenter__(self) -> CompletionsClient:
        import httpx2

        headers = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx2.AsyncClient(
            base_url=api_base(self.url),
            headers=headers,
            timeout=httpx2.Timeout(self.timeout, connect=30.0),
            limits=limits,
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def models(self) -> list[str]:
        """Names of the models that the server offers.

        Raises:
            RequestError: it cannot be reached, or does not speak this API.
        """
        import httpx2

        assert self._client is not None
        try:
            answer = await self._client.get("models")
            answer.raise_for_status()
            return [str(each["id"]) for each in answer.json()["data"]]
        except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
            raise RequestError(
                self.url,
                f"does not list its models ({type(error).__name__}: {error})",
                "Start the server first, and give the address of its API",
            ) from None

    async def send(self, number: int, record: Record) -> None:
        """Send a prompt, and note when pieces of the answer come.

        Raises:
            RuntimeError: the server answered with an error.
        """
        assert self._client is not None
        path = "chat/completions" if self.chat else "completions"
        async with self._client.stream("POST", path, json=self._body(number)) as answer:
            if answer.status_code != 200:
                text = (await answer.aread()).decode(errors="replace")
                raise RuntimeError(f"status {answer.status_code}: {_message(text)}")
            async for event in _events(answer.aiter_bytes()):
                self._take(event, record)
        if not record.output_tokens:  # a server without usage: a piece is a token, about
            record.output_tokens = len(record.tokens_at)

    def _body(self, number: int) -> dict[str, Any]:
        prompt = self.prompts[number]
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.chat:
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        if self.ignore_end:
            body["ignore_eos"] = True
        return body

    @staticmethod
    def _take(event: dict[str, Any], record: Record) -> None:
        now = time.monotonic()
        if "error" in event:
            raise RuntimeError(_message(json.dumps(event)))
        usage = event.get("usage")
        if isinstance(usage, dict):
            record.prompt_tokens = int(usage.get("prompt_tokens") or 0)
            record.output_tokens = int(usage.get("completion_tokens") or 0)
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            if choice.get("text") or delta.get("content") or delta.get("reasoning_content"):
                record.tokens_at.append(now)


def api_base(url: str) -> str:
    """The API's address, ending in "/v1/".

    Raises:
        RequestError: it is no http or https address.
    """
    if not url.startswith(("http://", "https://")):
        raise RequestError(
            f"url {url!r}", "is no http address", "Give one such as http://127.0.0.1:8000/v1"
        )
    base = url.rstrip("/")
    return f"{base}/" if base.endswith("/v1") else f"{base}/v1/"


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events, up to its end."""
    held = b""
    async for chunk in chunks:
        *lines, held = (held + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                yield json.loads(data)


def _message(text: str) -> str:
    """What an error's body says, or the body itself, in brief."""
    try:
        error = json.loads(text)["error"]
        found = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        found = text
    return str(found)[:300]
