"""What the first rank tells the others, and what they answer, as MessagePack (msgspec) over pipes.

A follower is told what it is by a `Launch`, opens its device and says so with `Opened`. It loads
its part of the model on `Load` and says `Loaded`; `Join` has it meet the others. Then every message
is a call that each rank makes on its decoder, and there are no answers: results meet in the
collective.
"""

from __future__ import annotations

import msgspec

FAILED = 3
"""Exit code of a follower that has said why."""
LEFT_ALONE = 4
"""Exit code of a follower that another rank has failed."""


class Launch(msgspec.Struct, frozen=True, tag="launch"):
    """What a process is to be.

    Attributes:
        device: of this rank.
        exact, tuned: whether activations are not to be rounded, and kernels run as they were tuned.
        folder: where ranks meet; see `Backend.join_ranks`.
        seconds: how long a rank waits for the others.
    """

    rank: int
    ranks: int
    device: str
    exact: bool
    tuned: bool
    folder: str
    seconds: float


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Load this rank's part of a model; as arguments of `loading.load`.

    Attributes:
        path: of the model's files on this machine.
    """

    model: str
    path: str
    weights: str | None
    cache: bool


class Join(msgspec.Struct, frozen=True, tag="join"):
    """All ranks have loaded their parts: meet."""


class NewState(msgspec.Struct, frozen=True, tag="state"):
    """`Decoder.new_state`, in place of the state that there was."""

    pages: tuple[int, ...]
    page_tokens: int
    dtype: str


class Hidden(msgspec.Struct, frozen=True, tag="hidden"):
    """`Decoder.hidden`: the arrays of a `Batch`, int32 in the order of this machine."""

    token_ids: bytes
    positions: bytes
    lengths: bytes
    row_starts: bytes
    page_tables: list[bytes]
    page_tokens: int


class Logits(msgspec.Struct, frozen=True, tag="logits"):
    """`Decoder.logits` of what `Hidden` gave last; int32."""

    wanted: bytes


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """The device works, and has so many bytes of memory available."""

    available: int


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The weights are there."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Parts of a `FirstlightError`, or of what else went wrong; the process ends."""

    kind: str
    subject: str
    reason: str
    remedy: str


ToFollower = Launch | Load | Join | NewState | Hidden | Logits
FromFollower = Opened | Loaded | Failed
