"""The order of merges, in small random vocabularies where everything competes with everything."""

from __future__ import annotations

import numpy as np
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers
from transformers.tokenization_utils_base import generate_merges

from firstlight.checkpoint.piece_table import PieceTable
from firstlight.checkpoint.piece_tokenizer import PieceTokenizer, PieceVocabulary

pieces = st.lists(st.text("ab▁", min_size=2, max_size=5), min_size=1, max_size=25, unique=True)


def tokenizer_of(tokens: list[str], scores: list[int]) -> PieceTokenizer:
    ranks = np.unique(-np.array(scores), return_inverse=True)[1].astype(np.uint32)
    vocabulary = PieceVocabulary(
        table=PieceTable.build([token.encode() for token in tokens]),
        ranks=ranks.tolist(),
        never_made=frozenset(),
        beginning_id=None,
        end_id=None,
        unknown_id=None,
        added_ids={},
        special_ids=frozenset(),
    )
    return PieceTokenizer(
        vocabulary, space_prefix="never", adds_beginning=False, adds_end=False, end_ids=frozenset()
    )


@settings(max_examples=500, deadline=None)
@given(
    made=pieces,
    scores=st.lists(st.integers(0, 12), min_size=28, max_size=28),
    text=st.text("ab ", max_size=24),
)
# Equal scores. "aa a a" can become "aaa a", with a longer left part, or "aa aa".
@example(["aa", "aaa"], [0] * 28, "aaaa")
# Equal scores and left parts. "b b aa" can become "b baa", with a longer right part, or "bb aa".
@example(["bb", "baa", "aa"], [0, 0, 0, 0, 0, 4] + [0] * 22, "abbaa")
def test_merges_come_in_the_order_of_transformers(
    made: list[str], scores: list[int], text: str
) -> None:
    tokens = ["a", "b", "▁", *made]
    scores = scores[: len(tokens)]
    ids = {token: number for number, token in enumerate(tokens)}
    merges = generate_merges(ids, dict(zip(tokens, map(float, scores), strict=True)))
    oracle = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges, fuse_unk=True))
    oracle.normalizer = normalizers.Replace(" ", "▁")
    assert tokenizer_of(tokens, scores).encode(text) == oracle.encode(text).ids
