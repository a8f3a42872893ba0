"""SentencePiece's byte-pair encoding from a list of pieces with scores, as GGUF files carry it.

Two neighbouring pieces may be joined where the result is a piece too. The pair with the best
result is joined first, then the next best, until none is left (Sennrich et al. 2016,
arXiv:1508.07909, section 3.2; Kudo and Richardson 2018, arXiv:1808.06226, section 3.1).

A file of scores leaves open which pair goes first when two pairs have the same result. This
follows the tokenizer that transformers builds from the same file, whose list of merges is sorted
by score, then length of the left part, then length of the right part; then the leftmost is first.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from firstlight.checkpoint.added_tokens import AddedTokens
from firstlight.checkpoint.piece_table import PieceTable
from firstlight.checkpoint.text_stream import ByteErrors
from firstlight.checkpoint.tokenizer import Tokenizer, without_lone_surrogates

if TYPE_CHECKING:
    from firstlight.checkpoint.chat_template import ChatTemplate

SPACE = "▁"
"""SentencePiece's mark for a space, U+2581."""

SpacePrefix = Literal["never", "at start", "each part"]
"""Where a space is put that the text does not have.

"at start": before a text that does not start with one. "each part": before each stretch between
special tokens, whatever it starts with.
"""

LONGEST_PIECE = (1 << 16) - 1
"""Characters. The order of merges packs two lengths into 32 bits; real pieces have under 100."""

_BYTE_PIECE = re.compile(rb"<0x([0-9A-Fa-f]{2})>")
_LONGEST_WORD_KEPT = 64
_MOST_KEPT = 1 << 17


@dataclass(frozen=True)
class PieceVocabulary:
    """The data of a piece tokenizer.

    Attributes:
        table: the pieces, spaces written as U+2581.
        ranks: uint32 [pieces], which piece is made first: 0 before 1. Equal where scores are.
        never_made: ids that no text is joined into: control tokens.
        beginning_id, end_id, unknown_id: the tokens of that meaning.
        added_ids: tokens taken whole wherever they occur, by text.
        special_ids: those of them, and others, that are no part of the text.
    """

    table: PieceTable
    ranks: Sequence[int]
    never_made: frozenset[int]
    beginning_id: int | None
    end_id: int | None
    unknown_id: int | None
    added_ids: Mapping[str, int]
    special_ids: frozenset[int]


class PieceTokenizer(Tokenizer):
    """Encodes by joining pieces; a character without a piece becomes one token a UTF-8 byte."""

    _byte_errors: ByteErrors = "firstlight-replace-each-byte"

    def __init__(
        self,
        vocabulary: PieceVocabulary,
        *,
        space_prefix: SpacePrefix,
        adds_beginning: bool,
        adds_end: bool,
        end_ids: frozenset[int],
        chat_template: ChatTemplate | None = None,
    ) -> None:
        self.vocabulary_size = len(vocabulary.table)
        self.beginning_id = vocabulary.beginning_id
        self.end_ids = end_ids
        self.special_ids = vocabulary.special_ids
        self.chat_template = chat_template
        self._vocabulary = vocabulary
        self._space_prefix = space_prefix
        self._leading_space = "keep" if space_prefix == "never" else "drop one"
        beginning = vocabulary.beginning_id if adds_beginning else None
        end = vocabulary.end_id if adds_end else None
        self._in_front = [] if beginning is None else [beginning]
        self._behind = [] if end is None else [end]
        # No merge reaches across the start of a space, unless a piece holds just these characters.
        joiners = re.escape(vocabulary.table.joiners)
        self._word_starts = re.compile(f"(?<=[^{SPACE}{joiners}])(?={SPACE})")
        self._words: dict[str, list[int]] = {}
        self._symbols: dict[str, tuple[str, ...]] = {}
        self._orders: dict[tuple[str, str], int] = {}
        self._bytes: dict[int, bytes] = {}

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        text = without_lone_surrogates(text)
        ids = list(self._in_front) if add_special else []
        matcher = self._all_added if parse_special else self._ordinary_added
        at_start = True
        for part in matcher.split(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                part = part.replace(" ", SPACE)
                prefixed = self._space_prefix == "each part" or (
                    self._space_prefix == "at start" and at_start and part[0] != SPACE
                )
                for word in self._word_starts.split(SPACE + part if prefixed else part):
                    ids += self._encode_word(word)
            at_start = False
        return ids + self._behind if add_special else ids

    def token_bytes(self, token_id: int) -> bytes:
        data = self._bytes.get(token_id)
        if data is None:
            if not 0 <= token_id < self.vocabulary_size:
                return b""
            piece = self._vocabulary.table[token_id]
            byte = _BYTE_PIECE.fullmatch(piece)
            data = bytes.fromhex(byte[1].decode()) if byte else piece.replace(SPACE.encode(), b" ")
            self._bytes[token_id] = data
        return data

    @cached_property
    def _all_added(self) -> AddedTokens:
        return AddedTokens(self._vocabulary.added_ids)

    @cached_property
    def _ordinary_added(self) -> AddedTokens:
        special = self.special_ids
        return AddedTokens(
            {t: i for t, i in self._vocabulary.added_ids.items() if i not in special}
        )

    def _find(self, piece: str) -> int:
        token_id = self._vocabulary.table.find(piece.encode())
        return -1 if token_id in self._vocabulary.never_made else token_id

    def _encode_word(self, word: str) -> list[int]:
        ids = self._words.get(word)
        if ids is not None:
            return ids
        ids = []
        unknown = self._vocabulary.unknown_id
        was_unknown = False
        for piece in self._join(self._split(word)):
            token_id = self._find(piece) if piece else -1
            if token_id >= 0:
                ids.append(token_id)
            elif unknown is not None and not was_unknown:  # a run of unknown pieces is one token
                ids.append(unknown)
            was_unknown = token_id < 0
        if len(word) <= _LONGEST_WORD_KEPT:
            _make_room(self._words)
            self._words[word] = ids
        return ids

    def _split(self, word: str) -> list[str]:
        """Characters, or the byte pieces of those that are no pieces; "" for what has neither."""
        symbols: list[str] = []
        for character in word:
            known = self._symbols.get(character)
            if known is None:
                known = (character,)
                if self._find(character) < 0:
                    known = tuple(f"<0x{byte:02X}>" for byte in character.encode())
                    if any(self._find(piece) < 0 for piece in known):
                        known = ("",)
                _make_room(self._symbols)
                self._symbols[character] = known
            symbols += known
        return symbols

    def _join(self, symbols: list[str]) -> list[str]:
        """The pieces that are left when no two neighbours can be joined any more.

        A heap holds the possible joins, as order * 2**32 + position of the left part; an entry
        whose parts have changed since is skipped when its turn comes.
        """
        count = len(symbols)
        after = list(range(1, count + 1))
        before = list(range(-1, count - 1))
        order = self._order
        heap = [
            joined << 32 | position
            for position in range(count - 1)
            if (joined := order(symbols[position], symbols[position + 1])) >= 0
        ]
        heapq.heapify(heap)
        while heap:
            entry = heapq.heappop(heap)
            left = entry & 0xFFFFFFFF
            right = after[left]
            if right >= count or not symbols[left]:
                continue
            if order(symbols[left], symbols[right]) != entry >> 32:
                continue
            piece = symbols[left] = symbols[left] + symbols[right]
            symbols[right] = ""
            following = after[left] = after[right]
            if following < count:
                before[following] = left
                joined = order(piece, symbols[following])
                if joined >= 0:
                    heapq.heappush(heap, joined << 32 | left)
            preceding = before[left]
            if preceding >= 0:
                joined = order(symbols[preceding], piece)
                if joined >= 0:
                    heapq.heappush(heap, joined << 32 | preceding)
        return [symbols[position] for position in _chain(after)]

    def _order(self, left: str, right: str) -> int:
        """When to join these two: the smaller the earlier; -1 never."""
        order = self._orders.get((left, right))
        if order is None:
            token_id = self._find(left + right) if left and right else -1
            if token_id < 0:
                order = -1
            else:
                order = self._vocabulary.ranks[token_id]
                order = order << 16 | LONGEST_PIECE - len(left)
                order = order << 16 | LONGEST_PIECE - len(right)
                order = order << 32 | token_id
            _make_room(self._orders)
            self._orders[left, right] = order
        return order


def _chain(after: list[int]) -> list[int]:
    positions = []
    position = 0
    while position < len(after):
        positions.append(position)
        position = after[position]
    return positions


def _make_room(
    kept: dict[str, list[int]] | dict[str, tuple[str, ...]] | dict[tuple[str, str], int],
) -> None:
    """Forgets everything once there is too much; what is in use is soon there again."""
    if len(kept) >= _MOST_KEPT:
        kept.clear()
