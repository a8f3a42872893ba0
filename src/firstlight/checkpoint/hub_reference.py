"""How a model on a hub is named."""

from __future__ import annotations

import re
from dataclasses import dataclass

from firstlight.checkpoint.hub_selection import is_safe_name

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*(/[A-Za-z0-9][A-Za-z0-9._+-]*)*")


@dataclass(frozen=True)
class HubReference:
    """A model on a hub.

    Attributes:
        repository: "ORG/NAME".
        revision: branch, tag or commit.
        file: the GGUF file to use; empty for the repository's own choice.
    """

    repository: str
    revision: str = "main"
    file: str = ""

    def __str__(self) -> str:
        name = f"{self.repository}/{self.file}" if self.file else self.repository
        return name if self.revision == "main" else f"{name}@{self.revision}"


def parse_reference(text: str) -> HubReference | None:
    """Read ORG/NAME[/FILE.gguf][@REVISION]; None if the text is not of that form."""
    name, separator, revision = text.partition("@")
    if separator and (not _REVISION.fullmatch(revision) or ".." in revision):
        return None
    organisation, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    for part in (organisation, repository):
        if not _PART.fullmatch(part) or ".." in part or "--" in part or len(part) > 96:
            return None
    if repository.lower().endswith((".gguf", ".git")):
        return None
    if rest != repository and not (file.lower().endswith(".gguf") and is_safe_name(file)):
        return None
    return HubReference(f"{organisation}/{repository}", revision or "main", file)
