"""A tokenizer from the files of a Hugging Face directory.

Which file says what, and which one wins, follows transformers 5.23 (`AutoTokenizer`): the file
tokenizer.json holds the whole tokenizer, its additions at the start and end of a text included;
tokenizer_config.json names the special tokens and may add tokens and chat templates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firstlight.checkpoint.chat_template import ChatTemplate
from firstlight.checkpoint.files import exists, read_limited, refuse_lfs_pointer, shown
from firstlight.checkpoint.json_file import read_json_object
from firstlight.checkpoint.tokenizer import Tokenizer
from firstlight.errors import CheckpointError, TokenizerError

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as LibraryTokenizer

    from firstlight.checkpoint.quick_library import QuickLibrary

_VERSION = 1
"""Of what `_build` makes of the same files; raised when that changes."""

_FILE_BYTES_OF_A_TOKEN = 30
"""With its merge, at least; so a smaller file has a vocabulary not worth keeping anew."""

LARGEST_TOKENIZER = 512 << 20
"""Bytes. A vocabulary of 262,144 with its merges has 33 MB."""

LARGEST_TEMPLATE = 4 << 20

DOWNLOAD_AGAIN = "Download the tokenizer's files again, all from one revision of the model"

_USUAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
                "mask_token")  # fmt: skip
_END_NAMES = ("eos_token", "eot_token", "eom_token")


@dataclass(frozen=True)
class FolderSettings:
    """What the small files beside the vocabulary say.

    Attributes:
        named: special tokens by name ("bos_token" ...), the usual names first.
        extra_special: special tokens without a name.
        added: tokens by id, with the properties that the `tokenizers` library gives them.
        adds_beginning, adds_end: whether a text gets these tokens, where only this file says so.
        chat_template: the publisher's, if any.
    """

    named: Mapping[str, str]
    extra_special: tuple[str, ...] = ()
    added: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    adds_beginning: bool = False
    adds_end: bool = False
    chat_template: ChatTemplate | None = None


def load_tokenizer_folder(folder: Path) -> Tokenizer:
    """The tokenizer in a directory: tokenizer.json, or in want of it tokenizer.model.

    Raises:
        TokenizerError: there is neither, or a file is damaged.
    """
    library = folder / "tokenizer.json"
    model = folder / "tokenizer.model"
    if exists(library):
        return _from_library_file(library, read_settings(folder))
    if exists(model):
        from firstlight.checkpoint.sentencepiece_tokenizer import SentencePieceTokenizer

        return SentencePieceTokenizer(read_file(model), model, read_settings(folder))
    raise TokenizerError(
        folder,
        "holds no tokenizer: neither tokenizer.json nor tokenizer.model",
        "Download tokenizer.json from the model's repository; where it has none, save the "
        "tokenizer with transformers' `AutoTokenizer.from_pretrained(...).save_pretrained(...)`, "
        "which writes one",
    )


def read_file(path: Path, limit: int = LARGEST_TOKENIZER) -> bytes:
    """The whole file; TokenizerError if it cannot be read or is no more than a pointer."""
    try:
        data = read_limited(path, limit)
        refuse_lfs_pointer(path, data[:64])
    except CheckpointError as error:
        raise TokenizerError(error.subject, error.reason, error.remedy) from None
    return data


def _from_library_file(path: Path, settings: FolderSettings) -> Tokenizer:
    from firstlight.checkpoint.huggingface_tokenizer import (
        HuggingFaceTokenizer,
        byte_alphabet,
        library_errors,
    )
    from firstlight.checkpoint.quick_library import WORTH_KEEPING, quick_library

    data = read_file(path)

    def build() -> LibraryTokenizer:
        return _build(data, settings)

    with library_errors(path, DOWNLOAD_AGAIN):
        if len(data) < _FILE_BYTES_OF_A_TOKEN * WORTH_KEEPING:
            library: LibraryTokenizer | QuickLibrary = build()
        else:
            digest = hashlib.sha256(data).hexdigest()
            said = (settings.named, settings.extra_special, settings.added)
            library = quick_library((digest, said, _VERSION), byte_alphabet(), build)
        ids = {name: library.token_to_id(text) for name, text in settings.named.items()}
    return HuggingFaceTokenizer(
        library,
        path,
        beginning_id=ids.get("bos_token"),
        end_ids=end_ids(ids),
        chat_template=settings.chat_template,
    )


def _build(data: bytes, settings: FolderSettings) -> LibraryTokenizer:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as LibraryTokenizer

    library = LibraryTokenizer.from_buffer(data)
    present = library.get_added_tokens_decoder()
    known = {repr(token) for token in present.values()}
    wanted = [_added_token(entry) for _, entry in sorted(settings.added.items())]
    tokens = [token for token in wanted if repr(token) not in known]
    names = {token.content for token in [*present.values(), *wanted]}
    special = dict.fromkeys([*settings.named.values(), *settings.extra_special])
    tokens += [AddedToken(text, special=True) for text in special if text not in names]
    library.add_tokens(tokens)
    library.no_truncation()
    library.no_padding()
    return library


def end_ids(ids: Mapping[str, int | None]) -> frozenset[int]:
    """Of ids by name, those that end a text or a turn."""
    found = (ids.get(name) for name in _END_NAMES)
    return frozenset(token_id for token_id in found if token_id is not None)


def _added_token(entry: Mapping[str, Any]) -> AddedToken:
    from tokenizers import AddedToken

    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    flags = {name: bool(entry[name]) for name in names if name in entry}
    return AddedToken(entry["content"], **flags)


def read_settings(folder: Path) -> FolderSettings:
    """What tokenizer_config.json, special_tokens_map.json, added_tokens.json and the files of
    chat templates say; TokenizerError where it makes no sense."""
    path = folder / "tokenizer_config.json"
    config = _read_json(path)
    if "added_tokens_decoder" not in config:  # before transformers 4.34 in files of their own
        config |= _read_json(folder / "special_tokens_map.json")
    named = {name: _content(config.get(name), name, path) for name in _USUAL_NAMES}
    for name, value in config.items():
        if name.endswith("_token") and isinstance(value, str | dict):
            named.setdefault(name, _content(value, name, path))
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        named |= {str(name): _content(value, str(name), path) for name, value in extra.items()}
        extra = []
    if not isinstance(extra, list):
        raise _bad(path, "extra_special_tokens", extra)
    texts = [_content(value, "extra_special_tokens", path) for value in extra]
    present = {name: text for name, text in named.items() if text}
    return FolderSettings(
        named=present,
        extra_special=tuple(text for text in texts if text),
        added=_added(folder, config, present),
        adds_beginning=config.get("add_bos_token") is True,
        adds_end=config.get("add_eos_token") is True,
        chat_template=_chat_template(folder, config, present),
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not exists(path):
        return {}
    try:
        return read_json_object(path)
    except CheckpointError as error:
        raise TokenizerError(error.subject, error.reason, error.remedy) from None


def _bad(path: Path, key: str, value: object) -> TokenizerError:
    return TokenizerError(path, f"has {key} {shown(value)}, which makes no sense", DOWNLOAD_AGAIN)


def _content(value: object, key: str, path: Path) -> str | None:
    """The text of a token that is given as text or as an object with its properties."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is None or isinstance(value, str):
        return value
    raise _bad(path, key, value)


def _added(
    folder: Path, config: Mapping[str, Any], named: Mapping[str, str]
) -> dict[int, dict[str, Any]]:
    added = {}
    entries = config.get("added_tokens_decoder")
    path = folder / "tokenizer_config.json"
    if entries is None:
        path = folder / "added_tokens.json"
        special = set(named.values())
        entries = {
            str(token_id): {"content": text, "special": text in special}
            for text, token_id in _read_json(path).items()
        }
    for number, entry in entries.items() if isinstance(entries, dict) else [("", entries)]:
        text = entry.get("content") if isinstance(entry, dict) else None
        if not (number.isdecimal() and len(number) < 10 and isinstance(text, str) and text):
            raise _bad(path, f"added token {shown(number)}", entry)
        added[int(number)] = {"normalized": not entry.get("special", False), **entry}
    return added


def _chat_template(
    folder: Path, config: Mapping[str, Any], named: Mapping[str, str]
) -> ChatTemplate | None:
    """Files of their own win over tokenizer_config.json, as in transformers."""
    sources: dict[str, str] = {}
    path = folder / "chat_template.jinja"
    if exists(path):
        sources["default"] = _read_text(path)
    more = folder / "additional_chat_templates"
    for file in sorted(more.glob("*.jinja")) if more.is_dir() else ():
        sources[file.name.removesuffix(".jinja")] = _read_text(file)
    if not sources:
        path = folder / "tokenizer_config.json"
        value = config.get("chat_template")
        if value is None:
            path = folder / "chat_template.json"
            value = _read_json(path).get("chat_template")
        listed = value if isinstance(value, list) else [{"name": "default", "template": value}]
        for entry in listed if value is not None else ():
            name, source = (
                (entry.get("name"), entry.get("template"))
                if isinstance(entry, dict)
                else (None, None)
            )
            if not isinstance(name, str) or not isinstance(source, str):
                raise _bad(path, "chat_template", value)
            sources[name] = source
    return ChatTemplate(sources, named, path) if sources else None


def _read_text(path: Path) -> str:
    try:
        return read_file(path, LARGEST_TEMPLATE).decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(
            path, f"is not UTF-8 text (byte {error.start})", DOWNLOAD_AGAIN
        ) from None
