"""Finding added tokens, against the obvious way of doing it and against the tokenizers library."""

from __future__ import annotations

import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models

from firstlight.checkpoint.added_tokens import AddedTokens

ALPHABET = "ab<]^-\\\n é😀"
texts = st.text(ALPHABET, max_size=30)
vocabularies = st.lists(st.text(ALPHABET, max_size=5), max_size=12, unique=True)


def longest_first(ids: dict[str, int], text: str) -> list[str | int]:
    parts: list[str | int] = []
    plain = ""
    while text:
        found = max(
            (token for token in ids if token and text.startswith(token)), key=len, default=""
        )
        if found:
            parts += [plain, ids[found]] if plain else [ids[found]]
            plain = ""
        else:
            plain += text[0]
        text = text[len(found) or 1 :]
    return [*parts, plain] if plain else parts


@settings(max_examples=500, deadline=None)
@given(vocabularies, texts)
def test_finds_what_looking_for_each_at_each_place_finds(tokens: list[str], text: str) -> None:
    ids = {token: number for number, token in enumerate(tokens)}
    assert list(AddedTokens(ids).split(text)) == longest_first(ids, text)


@settings(max_examples=200, deadline=None)
@given(vocabularies, texts)
def test_finds_what_the_library_finds(tokens: list[str], text: str) -> None:
    library = tokenizers.Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    added = [AddedToken(token, normalized=False) for token in tokens if token]
    library.add_tokens(added)
    ids = {token.content: library.token_to_id(token.content) for token in added}
    parts = [0 if isinstance(part, str) else part for part in AddedTokens(ids).split(text)]
    assert parts == library.encode(text).ids


def test_none() -> None:
    assert list(AddedTokens({}).split("text")) == ["text"]
    assert list(AddedTokens({"": 1}).split("")) == []
