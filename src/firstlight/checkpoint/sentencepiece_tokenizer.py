"""A tokenizer that the `sentencepiece` library runs, from a file tokenizer.model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from firstlight.checkpoint.added_tokens import AddedTokens
from firstlight.checkpoint.files import shown
from firstlight.checkpoint.text_stream import ByteErrors
from firstlight.checkpoint.tokenizer import Tokenizer, without_lone_surrogates
from firstlight.checkpoint.tokenizer_folder import DOWNLOAD_AGAIN, FolderSettings, end_ids
from firstlight.errors import TokenizerError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# Protocol Buffers merge a field that occurs twice, the later value winning ("Encoding", section
# "Last One Wins"). So this, at the end of a ModelProto, sets normalizer_spec.add_dummy_prefix to
# false (field 3, which holds a field 3, in sentencepiece_model.proto) and changes nothing else.
_NO_PREFIX = b"\x1a\x02\x18\x00"

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class SentencePieceTokenizer(Tokenizer):
    """Runs a `SentencePieceProcessor`; special and added tokens are found before it, and decoding
    is our own, so that it can be streamed.

    The space that a model puts before a text is put only where the text begins, not after special
    tokens. A text that begins with a space gets another, as SentencePiece has it (transformers
    leaves it at one).
    """

    _byte_errors: ByteErrors = "firstlight-replace-each-byte"

    def __init__(self, model: bytes, subject: object, settings: FolderSettings) -> None:
        """`model` is a ModelProto; TokenizerError, naming `subject`, if it is damaged."""
        self._model = model
        self._subject = subject
        processor = self._processor = self._load(model)
        pieces = range(processor.vocab_size())
        added = {entry["content"]: token_id for token_id, entry in settings.added.items()}
        special = {
            entry["content"] for entry in settings.added.values() if entry.get("special", False)
        }
        special.update(settings.named.values(), settings.extra_special)
        for token_id in pieces:
            if processor.is_control(token_id) or processor.is_unknown(token_id):
                text = processor.id_to_piece(token_id)
                added.setdefault(text, token_id)
                special.add(text)
        for text in special:
            if processor.piece_to_id(text) != processor.unk_id():
                added.setdefault(text, processor.piece_to_id(text))
        self.vocabulary_size = max([len(pieces), *(token_id + 1 for token_id in added.values())])
        self.special_ids = frozenset(added[text] for text in special if text in added)
        named = {name: added.get(text) for name, text in settings.named.items()}
        named.setdefault("bos_token", _present(processor.bos_id()))
        named.setdefault("eos_token", _present(processor.eos_id()))
        self.beginning_id = named["bos_token"]
        self.end_ids = end_ids(named)
        self.chat_template = settings.chat_template
        self._added_text: dict[int, str] = {token_id: text for text, token_id in added.items()}
        self._all_added = AddedTokens(added)
        self._ordinary_added = AddedTokens(
            {text: token_id for text, token_id in added.items() if text not in special}
        )
        beginning = self.beginning_id if settings.adds_beginning else None
        end = named["eos_token"] if settings.adds_end else None
        self._in_front = [] if beginning is None else [beginning]
        self._behind = [] if end is None else [end]
        self._leading_space = "drop one" if self._adds_space else "keep"

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        matcher = self._all_added if parse_special else self._ordinary_added
        ids = list(self._in_front) if add_special else []
        processor = self._processor
        for part in matcher.split(without_lone_surrogates(text)):
            if isinstance(part, int):
                ids.append(part)
            else:
                with self._library_errors("Report this text with the model's name"):
                    ids += processor.encode(part)
            processor = self._without_prefix
        return ids + self._behind if add_special else ids

    def token_bytes(self, token_id: int) -> bytes:
        text = self._added_text.get(token_id)
        if text is not None:
            return text.encode()
        if not 0 <= token_id < self._processor.vocab_size():
            return b""
        piece: str = self._processor.id_to_piece(token_id)
        byte = _BYTE_PIECE.fullmatch(piece) if self._processor.is_byte(token_id) else None
        data: bytes = bytes.fromhex(byte[1]) if byte else piece.replace("▁", " ").encode()
        return data

    @cached_property
    def _adds_space(self) -> bool:
        return bool(self._processor.normalize("a").startswith("▁"))

    @cached_property
    def _without_prefix(self) -> SentencePieceProcessor:
        return self._load(self._model + _NO_PREFIX) if self._adds_space else self._processor

    def _load(self, model: bytes) -> SentencePieceProcessor:
        from sentencepiece import SentencePieceProcessor

        if not model:  # which the library takes for a request to load nothing
            raise TokenizerError(self._subject, "is empty", DOWNLOAD_AGAIN)
        with self._library_errors(DOWNLOAD_AGAIN):
            return SentencePieceProcessor(model_proto=model)

    @contextmanager
    def _library_errors(self, remedy: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError, OSError) as error:
            reason = f"the sentencepiece library refuses it: {shown(str(error), 200)}"
            raise TokenizerError(self._subject, reason, remedy) from None


def _present(token_id: int) -> int | None:
    return token_id if token_id >= 0 else None
