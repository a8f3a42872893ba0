"""Log lines: one a request and one for each change of state, for people or as JSON."""

from __future__ import annotations

import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

from firstlight.checkpoint.files import shown

LOGGER = logging.getLogger("firstlight.server")


def log(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Write a line: what happened, and its circumstances. Fields that are None are left out."""
    if LOGGER.isEnabledFor(level):
        kept = {name: value for name, value in fields.items() if value is not None}
        LOGGER.log(level, "%s", event, extra={"fields": kept})


def start_logging(form: str = "text", stream: TextIO | None = None) -> None:
    """Send log lines to a stream, standard error by default; `form`: "text" or "json"."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    for name in ("firstlight", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO if name == "firstlight" else logging.WARNING)


class TextFormatter(logging.Formatter):
    """`12:34:56 what happened  name=value name=value`, control characters spelt out."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        words = [f"{name}={_word(value)}" for name, value in _fields(record).items()]
        line = f"{clock} {level}{_line(record.getMessage())}" + "".join(f"  {w}" for w in words)
        return line + _trace(self, record)


class JsonFormatter(logging.Formatter):
    """One object a line: time (ISO 8601, UTC), level, event, and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **_fields(record),
        }
        trace = _trace(self, record).strip()
        if trace:
            entry["trace"] = trace
        return msgspec.json.encode(entry, enc_hook=str).decode()


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return "\n" + formatter.formatException(record.exc_info) if record.exc_info else ""


def _word(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    plain = text.isprintable() and text and not set(text) & set(" \"'=")
    return text if plain else shown(text, 200)


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
