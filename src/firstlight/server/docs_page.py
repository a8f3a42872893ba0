"""GET /docs: the API's description for people, as one page that loads nothing from elsewhere."""

from __future__ import annotations

from functools import cache
from html import escape

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from firstlight.server.openapi import description, fields_of

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c2330; background: #fff }
code { font-family: ui-monospace, monospace; font-size: .9em }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #8885; padding-bottom: .3rem }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0;
  border-bottom: 1px solid #8883 }
summary { cursor: pointer; margin: .5rem 0 }
@media (prefers-color-scheme: dark) { body { color: #dde3ee; background: #14181f } }
"""
# Nothing in the page runs or is fetched, and a browser is told so.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


async def docs_page(request: Request) -> Response:
    """The page."""
    return HTMLResponse(_page(), headers={"content-security-policy": _POLICY})


@cache
def _page() -> str:
    described = description()
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'><title>firstlight</title>",
        f"<style>{_STYLE}</style><h1>firstlight {escape(described['info']['version'])}</h1>",
        f"<p>{escape(described['info']['description'])} The same as data: ",
        "<a href='openapi.json'>openapi.json</a>.</p>",
    ]
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(operation['summary'])}.</p>")
            body = operation.get("requestBody")
            if body is not None:
                parts.append("<h3>Body</h3>" + _table(_name(body["content"])))
            parts.append("<h3>Answers</h3><table>")
            for status, answer in operation["responses"].items():
                name = _name(answer["content"])
                parts.append(
                    f"<tr><td><code>{status}</code><td>{escape(answer['description'])}"
                    f"<td><code>{escape(name)}</code>"
                )
            parts.append("</table>")
    parts.append("<h2>Objects</h2>")
    for name in sorted(described["components"]["schemas"]):
        parts.append(
            f"<details id='{escape(name)}'><summary><code>{escape(name)}</code></summary>"
            f"{_table(name)}</details>"
        )
    return "".join(parts)


def _name(content: dict[str, dict[str, dict[str, str]]]) -> str:
    schema = next(iter(content.values()))["schema"]
    return schema["$ref"].rpartition("/")[2] if "$ref" in schema else "text"


def _table(name: str) -> str:
    rows = [
        f"<tr><td><code>{escape(field)}</code><td>{escape(kind)}"
        f"<td>{'required' if required else ''}"
        for field, kind, required in fields_of(name)
    ]
    return f"<table>{''.join(rows)}</table>"
