"""A tokenizer of pieces with scores (`checkpoint/piece_tokenizer.py`) for the `tokenizers` library:
byte-pair encoding with a list of merges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from firstlight.checkpoint.piece_tokenizer import SPACE, PieceVocabulary, SpacePrefix

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def piece_library(vocabulary: PieceVocabulary, space_prefix: SpacePrefix) -> Tokenizer:
    """The same tokenizer: pieces are joined in the same order, which the merges spell out."""
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as LibraryTokenizer

    pieces = [vocabulary.table[i].decode("utf-8", "replace") for i in range(len(vocabulary.table))]
    ids = {piece: token_id for token_id, piece in reversed(list(enumerate(pieces)))}
    unknown = vocabulary.unknown_id
    library = LibraryTokenizer(
        models.BPE(
            ids,
            _merges(vocabulary, ids),
            unk_token=None if unknown is None else pieces[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    if space_prefix == "each part":
        steps = [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
        library.normalizer = normalizers.Sequence(steps)
    elif space_prefix == "at start":
        library.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "first", split=False)
    else:
        library.normalizer = normalizers.Replace(" ", SPACE)
    strip = [] if space_prefix == "never" else [decoders.Strip(" ", 1, 0)]
    library.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    special = {pieces[i] for i in vocabulary.special_ids}
    library.add_tokens(
        [
            AddedToken(text, special=text in special, normalized=False)
            for text, _ in sorted(vocabulary.added_ids.items(), key=lambda each: each[1])
        ]
    )
    return library


def _merges(vocabulary: PieceVocabulary, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, the first to be joined in front: by the rank of what
    they make, then the longer left part, then the longer right one."""
    never = vocabulary.never_made
    ranked = []
    for piece, token_id in ids.items():
        if token_id in never:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                rank = vocabulary.ranks[token_id]
                ranked.append((rank, -len(left), -len(right), token_id, left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]
