"""A tokenizer from the metadata of a GGUF file."""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING

import numpy as np

from firstlight.checkpoint.files import read_limited
from firstlight.checkpoint.gguf_metadata import CONTROL, USER_DEFINED, TokenizerMetadata
from firstlight.checkpoint.piece_table import CorruptTable, PieceTable
from firstlight.checkpoint.tokenizer import Tokenizer
from firstlight.errors import FirstlightError

if TYPE_CHECKING:
    from firstlight.checkpoint.checkpoint import Checkpoint
    from firstlight.checkpoint.piece_tokenizer import PieceVocabulary, SpacePrefix

_GEMMA = ("gemma", "gemma2", "gemma3", "gemma3n")
_WORTH_KEEPING = 1 << 16
"""Pieces. A smaller table is built in less time than it takes to look for one."""


def load_gguf_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer that a GGUF file describes.

    Raises:
        TokenizerError: it is missing, damaged, or of a kind that firstlight does not know.
    """
    metadata = TokenizerMetadata(checkpoint.config, checkpoint.files[0])
    header_end = min(
        (info.offset for info in checkpoint.tensors.values() if info.file == metadata.path),
        default=0,
    )
    if metadata.kind == "gpt2":
        from firstlight.checkpoint.byte_level_tokenizer import byte_level_tokenizer

        return byte_level_tokenizer(metadata, header_end)
    return _piece_tokenizer(metadata, header_end)


def _piece_tokenizer(metadata: TokenizerMetadata, header_end: int) -> Tokenizer:
    from firstlight.checkpoint.piece_tokenizer import PieceTokenizer

    vocabulary, space_prefix = piece_vocabulary(metadata, header_end)
    table = vocabulary.table
    names = {name: table[i].decode("utf-8", "replace") for name, i in metadata.named_ids.items()}
    return PieceTokenizer(
        vocabulary,
        space_prefix=space_prefix,
        adds_beginning=metadata.flag("add_bos_token", True),
        adds_end=metadata.flag("add_eos_token", False),
        end_ids=metadata.end_ids,
        chat_template=metadata.chat_template(names),
    )


def piece_vocabulary(
    metadata: TokenizerMetadata, header_end: int = 0
) -> tuple[PieceVocabulary, SpacePrefix]:
    """The pieces of a file of kind `llama`, and where a space is put that the text does not have.

    Args:
        header_end: where the file's metadata end; 0: keep no table of the pieces.

    Raises:
        TokenizerError: they are missing or damaged.
    """
    from firstlight.checkpoint.piece_tokenizer import PieceVocabulary

    architecture = metadata.text("general.architecture")
    is_gemma = architecture in _GEMMA
    table = _piece_table(metadata, is_gemma, header_end)
    if is_gemma:
        # The scores do not tell in which order Gemma's pieces were learned; their order does.
        ranks = np.arange(len(table), dtype=np.uint32)
    else:
        ranks = np.unique(-metadata.scores, return_inverse=True)[1].astype(np.uint32)
    control = metadata.ids_of_type(CONTROL)
    added = control + metadata.ids_of_type(USER_DEFINED) + list(metadata.named_ids.values())
    added_ids = {table[i].decode("utf-8", "replace"): i for i in added}
    if is_gemma:  # its runs of spaces are called user-defined and yet joined like all others
        added_ids = {text: i for text, i in added_ids.items() if text.strip("▁")}
    space_prefix: SpacePrefix = "each part" if architecture == "phi3" else "at start"
    if is_gemma or not metadata.flag("add_space_prefix", True):
        space_prefix = "never"
    vocabulary = PieceVocabulary(
        table=table,
        ranks=memoryview(ranks),  # type: ignore[arg-type]
        never_made=frozenset(control),
        beginning_id=metadata.token_id("bos"),
        end_id=metadata.token_id("eos"),
        unknown_id=metadata.token_id("unknown"),
        added_ids=added_ids,
        special_ids=frozenset(control).union(metadata.named_ids.values()),
    )
    return vocabulary, space_prefix


def _piece_table(metadata: TokenizerMetadata, is_gemma: bool, header_end: int) -> PieceTable:
    """The table of all pieces, from the cache if a large one was built before."""
    count = len(metadata.tokens)
    if count < _WORTH_KEEPING or not header_end:
        return _build_table(metadata, is_gemma)
    from firstlight.host.cache import cache_directory, write_atomically

    header = read_limited(metadata.path, header_end, truncate=True)
    kept = cache_directory() / "tokenizers" / f"{hashlib.sha256(header).hexdigest()[:32]}.pieces"
    try:
        table = PieceTable.from_bytes(kept.read_bytes())
        if len(table) == count:
            return table
    except (OSError, CorruptTable):
        pass
    table = _build_table(metadata, is_gemma)
    with contextlib.suppress(FirstlightError):  # then the next start is slower, nothing else
        write_atomically(kept, lambda output: output.write(table.to_bytes()))
    return table


def _build_table(metadata: TokenizerMetadata, is_gemma: bool) -> PieceTable:
    from firstlight.checkpoint.piece_tokenizer import LONGEST_PIECE

    pieces = metadata.tokens.raw()
    if is_gemma:
        # Runs of spaces are spelled with spaces, all other spaces with U+2581.
        for i, piece in enumerate(pieces):
            if b" " in piece and not (text := piece.decode("utf-8", "replace")).strip():
                pieces[i] = ("▁" * len(text)).encode()
    longest = max(map(len, pieces))
    if longest > LONGEST_PIECE:
        raise metadata.bad(f"has a token of {longest:,} bytes; real ones have under 1,000")
    return PieceTable.build(pieces)
