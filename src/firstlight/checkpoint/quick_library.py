"""A byte-level tokenizer of the `tokenizers` library, ready some milliseconds after start.

The library builds dictionaries of all tokens and merges before it encodes anything: a quarter of a
second for 152,000 tokens, after as long in preparing them. Here it keeps to what it alone does well
(added tokens, normalisation, cutting words), with a vocabulary of the 256 bytes, and `BytePairs`
joins the bytes of each word from tables that are kept in a file. The ids are the same. Since that
is slower by the word, the whole library is loaded after all once there is much text.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from firstlight.checkpoint.byte_pairs import BytePairs
from firstlight.checkpoint.piece_table import CorruptTable
from firstlight.errors import FirstlightError

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as LibraryTokenizer

WORTH_KEEPING = 1 << 16
"""Tokens. A smaller vocabulary is built in less time than it takes to look for its tables."""

MOST_BYTES = 1 << 18
"""Of text in all, and of one word, after which the whole library is faster."""
LONGEST_WORD = 256

_BYTES = 256
_UNUSUAL = (
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
)
"""Properties of the library's model that no byte-level vocabulary needs."""

_CONSTANT = ("ByteLevel", "TemplateProcessing")


class Encoding(NamedTuple):
    """As the library's, as far as it is needed."""

    ids: list[int]


class QuickLibrary:
    """Does what is used of a `tokenizers.Tokenizer`. Encode from one thread at a time."""

    def __init__(
        self, pairs: BytePairs, alphabet: list[str], load: Callable[[], LibraryTokenizer]
    ) -> None:
        """`load` builds the whole library."""
        from tokenizers import Tokenizer

        about = pairs.about
        self._pairs = pairs
        self._alphabet = alphabet
        self._load = load
        self._whole: LibraryTokenizer | None = None
        self._bytes_left = MOST_BYTES
        self._library = Tokenizer.from_str(about["cutting"])
        self._added = {text: int(token_id) for text, token_id in about["added"].items()}
        self._texts = {token_id: text for text, token_id in self._added.items()}
        small = self._library.get_added_tokens_decoder()
        self._ids = {own: self._added[token.content] for own, token in small.items()}
        self._tokens = {self._ids[own]: token for own, token in small.items()}
        self.decoder = self._library.decoder
        self.encode_special_tokens = False

    def no_truncation(self) -> None:
        """It has none."""

    def no_padding(self) -> None:
        """It has none."""

    def get_vocab_size(self) -> int:
        return int(self._pairs.about["vocabulary_size"])

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        return self._tokens

    def id_to_token(self, token_id: int) -> str | None:
        text = self._texts.get(token_id)
        if text is None and token_id < len(self._pairs.table):
            text = self._pairs.table[token_id].decode() or None
        return text

    def token_to_id(self, text: str) -> int | None:
        """Of an added token only."""
        return self._added.get(text)

    def encode(self, text: str, add_special_tokens: bool = True) -> Encoding:
        self._bytes_left -= len(text)
        ids = None if self._whole or self._bytes_left < 0 else self._encode(text)
        if ids is None:
            if self._whole is None:
                self._whole = self._load()
            self._whole.encode_special_tokens = self.encode_special_tokens
            return Encoding(self._whole.encode(text, add_special_tokens=add_special_tokens).ids)
        if add_special_tokens:
            ids = [*self._pairs.about["in_front"], *ids, *self._pairs.about["behind"]]
        return Encoding(ids)

    def _encode(self, text: str) -> list[int] | None:
        """None where a word is too long for this way."""
        self._library.encode_special_tokens = self.encode_special_tokens
        cut = self._library.encode(text, add_special_tokens=False)
        pairs, alphabet, own = self._pairs, self._alphabet, self._ids
        ids: list[int] = []
        for _, group in groupby(zip(cut.word_ids, cut.ids, strict=True), lambda each: each[0]):
            letters = [letter for _, letter in group]
            if letters[0] >= _BYTES:
                ids += [own[letter] for letter in letters]
            elif len(letters) > LONGEST_WORD:
                return None
            else:
                ids += pairs.encode(bytes(letters), alphabet)
        return ids


def quick_library(
    key: object, alphabet: list[str], load: Callable[[], LibraryTokenizer]
) -> LibraryTokenizer | QuickLibrary:
    """The library's tokenizer, in its quick form if that was kept at an earlier start; else
    built, and kept for the next if it is one of those that have such a form.

    Args:
        key: its `repr` stands for all that `load` makes of the tokenizer.
        alphabet: the character of each byte.
    """
    import tokenizers

    from firstlight.host.cache import cache_directory, write_atomically

    text = repr((tokenizers.__version__, key))
    name = f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.pairs"
    kept = cache_directory() / "tokenizers" / name
    with contextlib.suppress(OSError, CorruptTable):
        return QuickLibrary(BytePairs.from_bytes(kept.read_bytes()), alphabet, load)
    library = load()
    pairs = byte_pairs(library, alphabet)
    if pairs is not None:
        data = pairs.to_bytes()
        with contextlib.suppress(FirstlightError):  # then the next start is slower, nothing else
            write_atomically(kept, lambda output: output.write(data))
    return library


def byte_pairs(library: LibraryTokenizer, alphabet: list[str]) -> BytePairs | None:
    """The quick form of a tokenizer; None where its ids could come out otherwise."""
    whole: dict[str, Any] = json.loads(library.to_str())
    model = whole["model"]
    if model.get("type") != "BPE" or any(model.get(name) for name in _UNUSUAL):
        return None
    vocabulary: dict[str, int] = model["vocab"]
    letters = [vocabulary[letter] for letter in alphabet if letter in vocabulary]
    texts = [token["content"] for token in whole["added_tokens"]]
    if (
        len(letters) < len(alphabet)
        or not _ends_in_bytes(whole["pre_tokenizer"])
        or not _is_constant(whole["post_processor"])
        or not set(texts).isdisjoint(alphabet)
    ):
        return None
    cutting = {letter: byte for byte, letter in enumerate(alphabet)}
    plain = {**model, "vocab": cutting, "merges": [], "ignore_merges": False}
    small = {**whole, "model": plain, "post_processor": None, "truncation": None, "padding": None}
    bare = library.encode("a", add_special_tokens=False).ids
    full = library.encode("a", add_special_tokens=True).ids
    places = [i for i in range(len(full)) if full[i : i + len(bare)] == bare]
    if len(places) != 1:
        return None
    about = {
        "cutting": json.dumps(small),
        "added": {text: library.token_to_id(text) for text in texts},
        "vocabulary_size": library.get_vocab_size(),
        "in_front": full[: places[0]],
        "behind": full[places[0] + len(bare) :],
    }
    whole_words = bool(model.get("ignore_merges"))
    return BytePairs.build(vocabulary, model["merges"], letters, whole_words, about)


def _ends_in_bytes(step: dict[str, Any] | None) -> bool:
    """Whether every word comes out spelled in the byte alphabet."""
    if step is not None and step["type"] == "Sequence":
        steps = step["pretokenizers"]
        return bool(steps) and _ends_in_bytes(steps[-1])
    return step is not None and step["type"] == "ByteLevel"


def _is_constant(step: dict[str, Any] | None) -> bool:
    """Whether every text gets the same tokens around it."""
    if step is not None and step["type"] == "Sequence":
        return all(map(_is_constant, step["processors"]))
    return step is None or step["type"] in _CONSTANT
