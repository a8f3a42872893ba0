"""The real Gemma 3 vocabulary: transformers, reading the same file, must agree on every id."""

from __future__ import annotations

import random

import pytest

from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.checkpoint.tokenizer import Tokenizer
from firstlight.checkpoint.tokenizer_loading import load_tokenizer
from tests.support.gemma import gemma_path, transformers_gemma_tokenizer
from tests.support.texts import all_texts

TEXTS = all_texts()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(open_checkpoint(gemma_path()))


@pytest.mark.parametrize("name", TEXTS)
def test_ids_and_text_are_those_of_transformers(tokenizer: Tokenizer, name: str) -> None:
    text = TEXTS[name]
    oracle = transformers_gemma_tokenizer()
    ids = oracle.encode(text)
    assert tokenizer.encode(text) == ids
    assert tokenizer.encode(text, add_special=False) == ids[1:]
    for skip in (True, False):
        assert tokenizer.decode(ids, skip) == oracle.decode(ids, skip_special_tokens=skip)


def test_random_texts_have_the_ids_of_transformers(tokenizer: Tokenizer) -> None:
    """Pieces of the vocabulary put together at random, repeated, and cut by odd characters."""
    oracle = transformers_gemma_tokenizer()
    choose = random.Random(3)
    pieces = sorted(oracle.get_vocab())
    odd = "ab \n\t▁<>é\u200d\u0301😀\u202e\ufffd\x00\ue000中=-_.01"
    for _ in range(3000):
        parts = choose.choices([choose.choice(pieces) for _ in range(4)] + list(odd), k=12)
        text = "".join(parts) * choose.choice([1, 1, 1, 2, 7])
        assert tokenizer.encode(text) == oracle.encode(text), text[:80]


def test_what_the_vocabulary_says_of_itself(tokenizer: Tokenizer) -> None:
    oracle = transformers_gemma_tokenizer()
    assert tokenizer.vocabulary_size == len(oracle)
    assert tokenizer.beginning_id == oracle.bos_token_id
    assert tokenizer.end_ids == {oracle.eos_token_id}
    special = {i for i, token in oracle.added_tokens_decoder.items() if token.special}
    assert tokenizer.special_ids == special


def test_special_tokens_can_be_left_unparsed(tokenizer: Tokenizer) -> None:
    text = "<bos>a<start_of_turn>user\n<end_of_turn><eos>\n\n\n"
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    assert not tokenizer.special_ids.intersection(ids)
    assert tokenizer.decode(ids) == text
    assert ids[-1] == tokenizer.encode("\n\n\n", add_special=False)[0]  # a token, but not special


def test_bytes_of_tokens_join_to_the_text(tokenizer: Tokenizer) -> None:
    for text in TEXTS.values():
        ids = tokenizer.encode(text, add_special=False)
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.replace("▁", " ").encode()
