"""Under which terms a checkpoint is published, as far as its files say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from firstlight.checkpoint.files import read_limited
from firstlight.errors import CheckpointError

_LONGEST = 200
_READ_BYTES = 1 << 20
_KEY = re.compile(r"(license|license_name|license_link)\s*:\s*(.*)")
_FILE_NAME = re.compile(r"(licen[cs]e|copying)([-_. ].*)?", re.IGNORECASE)


def licence_of_folder(folder: Path) -> str | None:
    """From the front matter of README.md, else the first line of a licence file, else None.

    A file that cannot be read counts as absent: the licence is shown, nothing depends on it.
    """
    return _from_readme(folder / "README.md") or _from_licence_file(folder)


def licence_of_gguf(metadata: Mapping[str, Any]) -> str | None:
    """From the keys general.license, general.license.name and general.license.link."""
    keys = ("general.license", "general.license.name", "general.license.link")
    texts = [metadata.get(key) for key in keys]
    return _described(*[text if isinstance(text, str) else "" for text in texts])


def _described(licence: str, name: str, link: str) -> str | None:
    """One line: "other" is replaced by the licence's own name, a link follows in brackets."""
    licence, name, link = _one_line(licence), _one_line(name), _one_line(link)
    if name and licence.lower() in ("", "other", "unknown"):
        licence = name
    if not licence:
        return link or None
    return f"{licence} ({link})" if link else licence


def _from_readme(path: Path) -> str | None:
    """Hugging Face model cards begin with YAML between two lines of three hyphens.

    Only three scalar keys matter, which need no YAML parser; of a list the first item is taken.
    """
    lines = _lines(path)
    if not lines or lines[0].rstrip() != "---":
        return None
    values: dict[str, str] = {}
    for number, line in enumerate(lines[1:], 1):
        if line.rstrip() in ("---", "..."):
            return _described(
                *(values.get(f"license{part}", "") for part in ("", "_name", "_link"))
            )
        match = _KEY.fullmatch(line.rstrip())
        if match is None:
            continue
        value = match[2]
        if not value and number + 1 < len(lines) and lines[number + 1].lstrip().startswith("- "):
            value = lines[number + 1].lstrip()[2:]
        values.setdefault(match[1], _scalar(value))
    return None


def _scalar(text: str) -> str:
    """A plain or quoted YAML scalar, without a comment; the first item of a list in brackets."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].rstrip("]").split(",")[0].strip()
    if len(text) > 1 and text[0] in "\"'" and text[0] in text[1:]:
        return text[1 : text.index(text[0], 1)]
    return "" if text.startswith(("#", ">", "|")) else text.split(" #")[0].strip()


def _from_licence_file(folder: Path) -> str | None:
    try:
        paths = sorted(path for path in folder.iterdir() if _FILE_NAME.fullmatch(path.name))
    except OSError:
        return None
    for path in paths:
        first = next((text for line in _lines(path) if (text := _one_line(line))), "")
        if first:
            return f"{_one_line(path.name)}: {first}"
    return None


def _lines(path: Path) -> list[str]:
    try:
        raw = read_limited(path, _READ_BYTES, truncate=True)
    except CheckpointError:
        return []
    return raw.decode("utf-8-sig", "replace").splitlines()


def _one_line(text: str) -> str:
    """Fit to be printed: no control characters, single spaces, at most 200 characters."""
    cleaned = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * _LONGEST]).split())
    cleaned = cleaned.lstrip("#*= ")
    return cleaned if len(cleaned) <= _LONGEST else cleaned[: _LONGEST - 1] + "…"
