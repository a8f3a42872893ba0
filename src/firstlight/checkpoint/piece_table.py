"""A vocabulary of a quarter of a million pieces, ready to use a few milliseconds after start.

A dictionary of that many strings takes a tenth of a second to build, each time. This table is a
handful of arrays: it can be written to a file and read back as it is.
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MAGIC = f"firstlight piece table 1 {sys.byteorder}\n".encode()


class CorruptTable(ValueError):
    """The bytes are not those of a table, or not all of them."""


@dataclass(frozen=True, eq=False)
class PieceTable:
    """Pieces by id and ids by piece.

    A hash table without collisions to resolve: piece i is `pieces[ends[i]:ends[i + 1]]`, and
    `members[starts[b]:starts[b + 1]]` are the ids of the pieces whose CRC-32 begins with the bits
    b, the highest id first.

    Attributes:
        pieces: all pieces, one after the other.
        ends: uint32 [pieces + 1], where each piece begins and, after the last, ends.
        starts: uint32 [buckets + 1], where each bucket begins in `members`.
        members: uint32 [pieces], ids by bucket.
        joiners: the characters that stand right before U+2581 (a space) inside some piece.
    """

    pieces: bytes
    ends: memoryview[int]
    starts: memoryview[int]
    members: memoryview[int]
    joiners: str

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, piece_id: int) -> bytes:
        return self.pieces[self.ends[piece_id] : self.ends[piece_id + 1]]

    def find(self, piece: bytes) -> int:
        """The id of a piece, the highest if several are equal; -1 if there is none."""
        buckets = len(self.starts) - 1
        bucket = zlib.crc32(piece) * buckets >> 32
        pieces, ends = self.pieces, self.ends
        for member in self.members[self.starts[bucket] : self.starts[bucket + 1]]:
            if pieces[ends[member] : ends[member + 1]] == piece:
                return member
        return -1

    @classmethod
    def build(cls, pieces: Sequence[bytes]) -> PieceTable:
        """The table of these pieces, ids in their order (0.1 s for 262,144 pieces)."""
        count = len(pieces)
        ends = np.zeros(count + 1, np.uint32)
        np.cumsum(np.fromiter(map(len, pieces), np.uint32, count), out=ends[1:])
        buckets = 1 << max(count, 1).bit_length()
        hashes = np.fromiter(map(zlib.crc32, pieces), np.uint64, count)
        of_piece = (hashes * np.uint64(buckets) >> np.uint64(32)).astype(np.int64)
        members = (count - 1 - np.argsort(of_piece[::-1], kind="stable")).astype(np.uint32)
        starts = np.zeros(buckets + 1, np.uint32)
        np.cumsum(np.bincount(of_piece, minlength=buckets), out=starts[1:])
        joiners = _joiners(pieces)
        return cls(b"".join(pieces), _view(ends), _view(starts), _view(members), joiners)

    def to_bytes(self) -> bytes:
        """What `from_bytes` reads: a header, a CRC-32 of all that follows it, and the arrays."""
        counts = len(self.ends), len(self.starts), len(self.members)
        header = json.dumps({"counts": counts, "joiners": self.joiners}).encode()
        body = b"".join([header, b"\n", self.ends, self.starts, self.members, self.pieces])
        return _MAGIC + zlib.crc32(body).to_bytes(4, "little") + body

    @classmethod
    def from_bytes(cls, data: bytes) -> PieceTable:
        """The table that `to_bytes` wrote; CorruptTable if a bit of it has changed."""
        start = len(_MAGIC) + 4
        checksum = int.from_bytes(data[start - 4 : start], "little")
        body = memoryview(data)[start:]
        if not data.startswith(_MAGIC) or not body or zlib.crc32(body) != checksum:
            raise CorruptTable("not a table, or not all of it")
        header_end = data.index(b"\n", start) + 1
        header = json.loads(data[start:header_end])
        arrays = []
        position = header_end
        for count in header["counts"]:
            arrays.append(memoryview(data)[position : position + 4 * count].cast("I"))
            position += 4 * count
        return cls(data[position:], arrays[0], arrays[1], arrays[2], header["joiners"])


def _view(array: NDArray[np.uint32]) -> memoryview[int]:
    """For one element at a time, several times faster than the array itself."""
    return memoryview(array)  # type: ignore[arg-type]


def _joiners(pieces: Sequence[bytes]) -> str:
    between = "\udcff"  # how the byte FF is decoded, which no piece in UTF-8 has
    text = b"\xff".join(pieces).decode("utf-8", "surrogateescape")
    return "".join(sorted(set(re.findall(f"([^▁{between}])▁", text, re.DOTALL))))
