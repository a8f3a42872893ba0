"""Prompts to measure with, all different from their first word on, so that no prefix is shared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from firstlight.errors import RequestError

Prompt = str | list[int]

# Common words, which nearly every tokenizer knows as one token with the space before them.
_WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
    "car",
    "city",
    "community",
    "name",
    "president",
    "team",
    "minute",
    "idea",
    "body",
    "back",
    "parent",
    "face",
    "others",
    "level",
    "office",
    "door",
    "health",
    "person",
    "art",
    "war",
    "history",
    "party",
    "result",
    "change",
    "morning",
    "reason",
    "research",
    "girl",
    "guy",
    "moment",
    "air",
    "teacher",
    "force",
    "education",
]


def word_prompts(count: int, words: int, seed: int = 0) -> list[Prompt]:
    """Prompts of so many common words each, about as many tokens."""
    generator = np.random.default_rng(seed)
    chosen = generator.integers(0, len(_WORDS), (count, words))
    return [" ".join(_WORDS[word] for word in row) for row in chosen]


def token_prompts(
    count: int, tokens: int, vocabulary_size: int, seed: int = 0, avoid: Sequence[int] = ()
) -> list[Prompt]:
    """Prompts of so many random token ids each, none of `avoid` among them."""
    allowed = np.setdiff1d(np.arange(vocabulary_size), np.asarray(avoid, np.int64))
    if not len(allowed):
        raise RequestError("prompt tokens", "every token is to be avoided", "Allow some")
    chosen = np.random.default_rng(seed).choice(allowed, (count, tokens))
    return [[int(token) for token in row] for row in chosen]
