"""Generations on the tiny model of `tiny_engine`, whose tokens are pieces of text."""

from __future__ import annotations

from firstlight.engine.engine import Engine
from firstlight.engine.parameters import SamplingParameters, StopConditions
from firstlight.generation import Generation
from tests.support.tiny_engine import (
    SEEDED,
    VOCABULARY,
    PieceTokenizer,
    prompt_of,
    tiny_engine,
)

# Letters, syllables, and halves of characters of two, three and four bytes.
_WORDS = ("the", "of", "and", "ing", "er", "ab", "bc", "abc", "ba", "aa", "\n", "é", "ñ", "ß")
PIECES = [
    *(letter.encode() for letter in "abcdefghijklmnopqrstuvw "),
    *(word.encode() for word in _WORDS),
    *(b"\xe5", b"\xa5\xbd", b"\xf0\x9f", b"\x98\x80", b"\xc3", b"\xa9", b"\xff"),
]
PIECES += [f" w{index}".encode() for index in range(VOCABULARY - len(PIECES))]
TOKENIZER = PieceTokenizer(PIECES)
LONG = StopConditions(max_tokens=30)


def generation(
    engine: Engine | None = None,
    prompt: list[int] | None = None,
    sampling: SamplingParameters = SEEDED,
    stop: StopConditions = LONG,
    log_probabilities: int | None = None,
    tokenizer: PieceTokenizer | None = TOKENIZER,
) -> Generation:
    return Generation(
        engine or tiny_engine(),
        tokenizer,
        prompt_of(6) if prompt is None else prompt,
        sampling,
        stop,
        log_probabilities,
    )
