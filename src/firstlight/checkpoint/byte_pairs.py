"""Joining the bytes of a word by the merges of a vocabulary, from tables that need no building.

The algorithm is byte-pair encoding as Radford et al. 2019 ("Language Models are Unsupervised
Multitask Learners", section 2.2) apply it: of all neighbours the pair whose merge was learned first
is joined, the leftmost where it occurs more than once, until none is left that has a merge.
"""

from __future__ import annotations

import json
import sys
import zlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firstlight.checkpoint.piece_table import CorruptTable, PieceTable

_MAGIC = f"firstlight byte pairs 1 {sys.byteorder}\n".encode()
_NO_RANK = 1 << 32
_MOST_REMEMBERED = 1 << 16
"""Words and pairs whose result is kept."""


@dataclass(frozen=True, eq=False)
class BytePairs:
    """A vocabulary and its merges.

    Attributes:
        table: tokens by id, spelled in the byte alphabet; an id without a token has b"".
        letters: the id of each of the 256 bytes.
        pairs: uint64 [merges], ascending: left id << 32 | right id.
        ranks: uint32 [merges], the order in which they were learned.
        joined: uint32 [merges], the id that each makes.
        whole_words: take a word that is a token as it is, whatever the merges say (which the
            `tokenizers` library calls ignore_merges).
        about: what else belongs to the tokenizer, as JSON.
    """

    table: PieceTable
    letters: tuple[int, ...]
    pairs: memoryview[int]
    ranks: memoryview[int]
    joined: memoryview[int]
    whole_words: bool
    about: Mapping[str, Any]
    _words: dict[bytes, list[int]] = field(default_factory=dict, repr=False)
    _known: dict[int, tuple[int, int]] = field(default_factory=dict, repr=False)

    def encode(self, word: bytes, spelling: Sequence[str]) -> list[int]:
        """The ids of a word's bytes; `spelling` is the byte alphabet."""
        ids = self._words.get(word)
        if ids is None:
            ids = self._encode(word, spelling)
            if len(self._words) < _MOST_REMEMBERED:
                self._words[word] = ids
        return ids

    def _encode(self, word: bytes, spelling: Sequence[str]) -> list[int]:
        if self.whole_words:
            whole = self.table.find("".join(spelling[byte] for byte in word).encode())
            if whole >= 0:
                return [whole]
        ids = [self.letters[byte] for byte in word]
        merges = [self._merge(*pair) for pair in pairwise(ids)]
        while merges:
            rank, joined = best = min(merges)  # two merges of one rank are the same merge
            if rank == _NO_RANK:
                break
            place = merges.index(best)
            ids[place : place + 2] = [joined]
            del merges[place]
            if place:
                merges[place - 1] = self._merge(ids[place - 1], joined)
            if place < len(merges):
                merges[place] = self._merge(joined, ids[place + 1])
        return ids

    def _merge(self, left: int, right: int) -> tuple[int, int]:
        """(rank, the id it makes) of a pair; the rank is _NO_RANK where there is no merge."""
        pair = left << 32 | right
        found = self._known.get(pair)
        if found is None:
            place = bisect_left(self.pairs, pair)
            found = (_NO_RANK, 0)
            if place < len(self.pairs) and self.pairs[place] == pair:
                found = (self.ranks[place], self.joined[place])
            if len(self._known) < _MOST_REMEMBERED:
                self._known[pair] = found
        return found

    @classmethod
    def build(
        cls,
        vocabulary: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        letters: Sequence[int],
        whole_words: bool,
        about: Mapping[str, Any],
    ) -> BytePairs:
        """From ids by token, and merges in the order in which they were learned."""
        pieces = [b""] * (max(vocabulary.values()) + 1)
        for token, token_id in vocabulary.items():
            pieces[token_id] = token.encode()
        rows = np.array(
            [
                (vocabulary[left] << 32 | vocabulary[right], vocabulary[left + right])
                for left, right in merges
            ],
            np.uint64,
        ).reshape(-1, 2)
        order = np.argsort(rows[:, 0])
        return cls(
            PieceTable.build(pieces),
            tuple(letters),
            _view(rows[order, 0]),
            _view(order.astype(np.uint32)),
            _view(rows[order, 1].astype(np.uint32)),
            whole_words,
            about,
        )

    def to_bytes(self) -> bytes:
        """What `from_bytes` reads: a header, a CRC-32 of all that follows it, and the arrays."""
        table = self.table.to_bytes()
        header = json.dumps(
            {
                "letters": self.letters,
                "merges": len(self.pairs),
                "whole_words": self.whole_words,
                "about": self.about,
            }
        ).encode()
        body = b"".join([header, b"\n", self.pairs, self.ranks, self.joined, table])
        return _MAGIC + zlib.crc32(body).to_bytes(4, "little") + body

    @classmethod
    def from_bytes(cls, data: bytes) -> BytePairs:
        """The tables that `to_bytes` wrote; CorruptTable if a bit of them has changed."""
        start = len(_MAGIC) + 4
        view = memoryview(data)
        checksum = int.from_bytes(data[start - 4 : start], "little")
        if not data.startswith(_MAGIC) or zlib.crc32(view[start:]) != checksum:
            raise CorruptTable("not tables of byte pairs, or not all of them")
        end = data.index(b"\n", start) + 1
        header = json.loads(data[start:end])
        count = header["merges"]
        ranks, joined, table = (end + size * count for size in (8, 12, 16))
        return cls(
            PieceTable.from_bytes(data[table:]),
            tuple(header["letters"]),
            view[end:ranks].cast("Q"),
            view[ranks:joined].cast("I"),
            view[joined:table].cast("I"),
            header["whole_words"],
            header["about"],
        )


def _view(array: NDArray[Any]) -> memoryview[int]:
    """For one element at a time, several times faster than the array itself."""
    return memoryview(np.ascontiguousarray(array))  # type: ignore[arg-type]
