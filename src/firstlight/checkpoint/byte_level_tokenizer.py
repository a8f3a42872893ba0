"""Byte-level byte-pair encoding from the vocabulary and merges that a GGUF file carries.

The text is cut into words by regular expressions, each word's bytes are written in an alphabet of
256 printable characters, and neighbours are joined in the order of the merges (Radford et al.
2019, "Language Models are Unsupervised Multitask Learners", section 2.2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

from firstlight.checkpoint.files import read_limited, shown
from firstlight.checkpoint.gguf_metadata import (
    CONTROL,
    CONVERT_AGAIN,
    USER_DEFINED,
    TokenizerMetadata,
)
from firstlight.checkpoint.huggingface_tokenizer import (
    HuggingFaceTokenizer,
    byte_alphabet,
    library_errors,
)
from firstlight.checkpoint.quick_library import WORTH_KEEPING, QuickLibrary, quick_library
from firstlight.checkpoint.word_patterns import WORD_PATTERNS

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

_VERSION = 1
"""Of what `byte_level_library` makes of the same metadata; raised when that changes."""


def byte_level_tokenizer(metadata: TokenizerMetadata, header_end: int = 0) -> HuggingFaceTokenizer:
    """The tokenizer of kind `gpt2` that a GGUF file describes.

    Args:
        header_end: where the file's metadata end; 0: keep no quick form of the tokenizer.

    Raises:
        TokenizerError: its vocabulary or merges are damaged, or its words are cut in a way that
            firstlight does not know.
    """
    cuts = word_patterns(metadata)

    def build() -> LibraryTokenizer:
        return byte_level_library(metadata)

    library: LibraryTokenizer | QuickLibrary
    if len(metadata.tokens) < WORTH_KEEPING or not header_end:
        library = build()
    else:
        header = read_limited(metadata.path, header_end, truncate=True)
        key = (hashlib.sha256(header).hexdigest(), cuts, _VERSION)
        library = quick_library(key, byte_alphabet(), build)
    beginning = metadata.token_id("bos")
    end = metadata.token_id("eos")
    return HuggingFaceTokenizer(
        library,
        metadata.path,
        beginning_id=beginning,
        end_ids=metadata.end_ids,
        chat_template=metadata.chat_template(
            {
                name: library.id_to_token(i) or metadata.tokens[i]
                for name, i in metadata.named_ids.items()
            }
        ),
        vocabulary_size=len(metadata.tokens),
        in_front=beginning if metadata.flag("add_bos_token", False) else None,
        behind=end if metadata.flag("add_eos_token", False) else None,
    )


def byte_level_library(metadata: TokenizerMetadata) -> LibraryTokenizer:
    """The tokenizer as the library runs it, without what it puts before and behind a text.

    Raises:
        TokenizerError: as `byte_level_tokenizer`.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    cuts = word_patterns(metadata)
    special = {*metadata.ids_of_type(CONTROL), *metadata.named_ids.values()}
    added = sorted(special.union(metadata.ids_of_type(USER_DEFINED)))
    tokens = list(metadata.tokens)
    vocabulary = _vocabulary(tokens, set(added))
    merges = _merges(metadata)
    with library_errors(metadata.path, CONVERT_AGAIN):
        library = Tokenizer(models.BPE(vocabulary, merges))
        library.pre_tokenizer = pre_tokenizers.Sequence(
            [
                *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cuts),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        library.decoder = decoders.ByteLevel()
        library.add_tokens(
            [AddedToken(tokens[i], special=i in special, normalized=False) for i in added]
        )
    return library


def word_patterns(metadata: TokenizerMetadata) -> tuple[str, ...]:
    """How the file's words are cut; files older than the key were made for GPT-2's way."""
    name = metadata.text("tokenizer.ggml.pre") or "default"
    patterns = WORD_PATTERNS.get(name)
    if patterns is None:
        raise metadata.bad(
            f"cuts words in a way called {shown(name)} (tokenizer.ggml.pre); firstlight knows "
            f"{', '.join(sorted(WORD_PATTERNS))}",
            "Use the model's Hugging Face directory with its tokenizer.json instead",
        )
    return patterns


def _vocabulary(tokens: Sequence[str], added: Container[int]) -> dict[str, int]:
    """Ids by spelling. Added tokens are spelled as they are, all others in the byte alphabet."""
    alphabet = byte_alphabet()
    letters = frozenset(alphabet)
    vocabulary = {}
    for token_id, token in enumerate(tokens):
        if token_id not in added and not letters.issuperset(token):
            token = "".join(alphabet[byte] for byte in token.encode())
        vocabulary[token] = token_id
    return vocabulary


def _merges(metadata: TokenizerMetadata) -> list[tuple[str, str]]:
    merges = []
    for number, merge in enumerate(metadata.strings("merges")):
        left, separator, right = merge.partition(" ")
        if not (left and separator and right) or " " in right:
            raise metadata.bad(
                f"has merge {number} {shown(merge)}, where two parts and a space belong"
            )
        merges.append((left, right))
    return merges
