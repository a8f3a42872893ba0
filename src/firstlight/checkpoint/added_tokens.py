"""Tokens that are looked for in a text before anything else, and always taken whole."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping


class AddedTokens:
    """Finds added tokens: at each place the longest, from left to right, none overlapping.

    This is how the `tokenizers` library, SentencePiece (user-defined symbols) and llama.cpp find
    them. Works through thousands of tokens without a compiled automaton: a search for the first
    characters, then one dictionary look-up for each length that occurs after them.
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        """`ids` are the tokens' ids by text; an empty text is ignored."""
        self._ids = {text: token_id for text, token_id in ids.items() if text}
        lengths: defaultdict[str, set[int]] = defaultdict(set)
        for text in self._ids:
            lengths[text[:2]].add(len(text))
        self._lengths = {start: sorted(of, reverse=True) for start, of in lengths.items()}
        first = "".join(re.escape(character) for character in sorted({t[0] for t in self._ids}))
        self._first = re.compile(f"[{first}]") if first else None

    def split(self, text: str) -> Iterator[str | int]:
        """The parts of `text` in order: an id for each added token, a str for what lies between."""
        start = position = 0
        while self._first is not None:
            candidate = self._first.search(text, position)
            if candidate is None:
                break
            position = candidate.start()
            found = self._longest_at(text, position)
            if found is None:
                position += 1
                continue
            if start < position:
                yield text[start:position]
            yield self._ids[found]
            start = position = position + len(found)
        if start < len(text):
            yield text[start:]

    def _longest_at(self, text: str, position: int) -> str | None:
        pair = text[position : position + 2]
        for length in self._lengths.get(pair, ()):
            candidate = text[position : position + length]
            if candidate in self._ids:
                return candidate
        single = pair[0]
        return single if single in self._ids else None
