"""A tokenizer that the `tokenizers` library runs, as tokenizer.json describes it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from firstlight.checkpoint.files import shown
from firstlight.checkpoint.text_stream import ByteErrors, LeadingSpace
from firstlight.checkpoint.tokenizer import Tokenizer, without_lone_surrogates
from firstlight.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

    from firstlight.checkpoint.chat_template import ChatTemplate
    from firstlight.checkpoint.quick_library import QuickLibrary

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_METASPACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary.

    Bytes that print as themselves in Latin-1 do; the others take the characters from U+0100 on,
    in order. Source: `bytes_to_unicode` in GPT-2's encoder.py (Radford et al. 2019).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    codes = {byte: byte for byte in printable}
    codes |= {byte: 0x100 + place for place, byte in enumerate(others)}
    return [chr(codes[byte]) for byte in range(256)]


_BYTE_OF = {character: byte for byte, character in enumerate(byte_alphabet())}


@contextmanager
def library_errors(subject: object, remedy: str) -> Iterator[None]:
    """Turns whatever the library raises, panics of its Rust code included, into TokenizerError."""
    try:
        yield
    except (TokenizerError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        # A panic derives from BaseException and its class can be imported from nowhere.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = shown(str(error), 200)
        raise TokenizerError(
            subject, f"the tokenizers library refuses it: {reason}", remedy
        ) from None


class HuggingFaceTokenizer(Tokenizer):
    """Runs a `tokenizers.Tokenizer`; decoding is our own, so that it can be streamed."""

    def __init__(
        self,
        library: LibraryTokenizer | QuickLibrary,
        subject: object,
        *,
        beginning_id: int | None,
        end_ids: frozenset[int],
        chat_template: ChatTemplate | None = None,
        vocabulary_size: int = 0,
        in_front: int | None = None,
        behind: int | None = None,
    ) -> None:
        """`subject` is the file, for messages; `vocabulary_size` is raised to the ids in use;
        `in_front` and `behind` are added besides what the library's post-processor adds.

        Raises:
            TokenizerError: its decoder is not one that firstlight can stream.
        """
        library.no_truncation()
        library.no_padding()
        self._library = library
        self._subject = subject
        self._lock = threading.Lock()
        self._bytes: dict[int, bytes] = {}
        added = library.get_added_tokens_decoder()
        self.vocabulary_size = max(
            vocabulary_size, library.get_vocab_size(), max(added, default=-1) + 1
        )
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.beginning_id = beginning_id
        self.end_ids = end_ids
        self.chat_template = chat_template
        self._in_front = [] if in_front is None else [in_front]
        self._behind = [] if behind is None else [behind]
        self._is_byte_level, self._byte_errors, self._leading_space = _decoding(library, subject)

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        text = without_lone_surrogates(text)
        # The lock: whether special tokens are parsed is a property of the library's object.
        with self._lock, library_errors(self._subject, "Report this text with the model's name"):
            self._library.encode_special_tokens = not parse_special
            ids: list[int] = self._library.encode(text, add_special_tokens=add_special).ids
        return [*self._in_front, *ids, *self._behind] if add_special else ids

    def token_bytes(self, token_id: int) -> bytes:
        data = self._bytes.get(token_id)
        if data is None:
            in_range = 0 <= token_id < self.vocabulary_size
            token = self._library.id_to_token(token_id) if in_range else None
            if token is None:
                return b""
            data = self._bytes[token_id] = self._decoded(token)
        return data

    def _decoded(self, token: str) -> bytes:
        if self._is_byte_level:
            codes = [_BYTE_OF.get(character, -1) for character in token]
            return token.encode() if -1 in codes else bytes(codes)
        byte = _BYTE_TOKEN.fullmatch(token)
        return bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()


def _decoding(
    library: LibraryTokenizer | QuickLibrary, subject: object
) -> tuple[bool, ByteErrors, LeadingSpace]:
    """Whether tokens are spelled in the byte alphabet; and how their bytes become text."""
    decoder: dict[str, Any] = (
        {} if library.decoder is None else json.loads(library.decoder.__getstate__())
    )
    steps = decoder.get("decoders", [decoder])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return True, "replace", "keep"
    if kinds[-1:] == ["Metaspace"] and kinds[:-1] in ([], ["ByteFallback"]):
        keeps = steps[-1].get("prepend_scheme") == "never"
        if steps[-1].get("replacement") == "▁":
            space: LeadingSpace = "keep" if keeps else "drop in first token"
            return False, "firstlight-replace-each-byte", space
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and steps[0] == _METASPACE:
        strips = [step for step in steps[3:] if step.get("content") == " "]
        amounts = [(step.get("start"), step.get("stop")) for step in strips]
        if len(strips) == len(steps) - 3 and amounts in ([], [(1, 0)]):
            return False, "firstlight-replace-each-byte", "drop one" if amounts else "keep"
    chain = shown(" + ".join(map(str, kinds)) or "no step")
    raise TokenizerError(
        subject,
        f"decodes by {chain}, which firstlight does not know; it knows byte-level "
        "and SentencePiece tokenizers",
        "Ask for this kind of tokenizer in an issue, naming the model",
    )
