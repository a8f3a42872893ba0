"""Stand-ins: models of a hub of which only the headers were fetched.

A stand-in is a folder like a model's own, whose weights files have their true size and their true
header, and holes where the tensors belong. It can be inspected. It must never be taken for the
model: a note beside the files says what they are, and whoever opens a folder looks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from firstlight.checkpoint.files import exists
from firstlight.checkpoint.json_file import read_json_object
from firstlight.errors import CheckpointError

NOTE = "firstlight-headers-only.json"


@dataclass(frozen=True)
class StandIn:
    """What the note says.

    Attributes:
        model: its name on the hub, with the commit: ORG/NAME[/FILE.gguf]@COMMIT.
        endpoint: the hub's address.
        digests: of the weights files in the folder, by name, as the hub states them: 64
            hexadecimal digits are a SHA-256, 40 a Git object id.
    """

    model: str
    endpoint: str
    digests: Mapping[str, str]

    def refusal(self, location: Path) -> CheckpointError:
        """The error for whoever asks the stand-in at `location` for weights."""
        return CheckpointError(
            location,
            f"holds only headers, which `firstlight inspect` fetched from {self.endpoint}, and no "
            "weights",
            f"Name the model itself: {self.model}",
        )


def stand_in_at(location: Path) -> StandIn | None:
    """What the model at `location`, a folder or a GGUF file, stands in for; None if it is real.

    Raises:
        CheckpointError: the note is damaged.
    """
    note = location / NOTE
    if not exists(note):
        note = location.parent / NOTE
        if location.is_dir() or not exists(note):
            return None
    content = read_json_object(note)
    try:
        return StandIn(
            str(content["model"]),
            str(content["endpoint"]),
            {str(name): str(digest) for name, digest in content["digests"].items()},
        )
    except (KeyError, AttributeError):
        raise CheckpointError(
            note, "is damaged", f"Delete its folder, {note.parent}: it holds no weights"
        ) from None
