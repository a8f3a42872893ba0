"""Tokenizers of Hugging Face directories: transformers' AutoTokenizer reads the same directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, processors
from transformers import AutoTokenizer

from firstlight.checkpoint.huggingface_tokenizer import library_errors
from firstlight.checkpoint.tokenizer import Tokenizer
from firstlight.checkpoint.tokenizer_folder import load_tokenizer_folder
from firstlight.errors import FirstlightError, RequestError, TokenizerError
from tests.support.texts import all_texts
from tests.support.tiny_tokenizers import (
    CORPUS,
    byte_level_library,
    piece_library,
    sentencepiece_model,
    write_folder,
    write_library_folder,
)

TEXTS = list(all_texts().values())


def assert_same(ours: Tokenizer, oracle: Any, texts: list[str]) -> None:
    for text in texts:
        ids = oracle.encode(text)
        assert ours.encode(text) == ids, text[:80]
        assert ours.encode(text, add_special=False) == oracle.encode(text, add_special_tokens=False)
        for skip in (True, False):
            decoded = oracle.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip_special=skip) == decoded, text[:80]
    assert ours.vocabulary_size == len(oracle)
    assert ours.beginning_id == oracle.bos_token_id
    assert ours.end_ids == ({oracle.eos_token_id} if oracle.eos_token else set())


def with_beginning(library: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer.from_str(library.to_str())
    token_id = library.token_to_id("<|endoftext|>")
    library.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", token_id)]
            ),
        ]
    )
    return library


ADDED = {
    "703": {"content": "<think>", "special": False, "normalized": False},
    "704": {"content": "<|new|>", "special": True, "normalized": False},
    "705": {"content": "<wide>", "special": False, "lstrip": True, "rstrip": True},
}
NAMED = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
CONFIGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "named tokens": NAMED,
    "named tokens as objects": {
        name: {"__type": "AddedToken", "content": text, "special": True}
        for name, text in NAMED.items()
    },
    "a flag that tokenizer.json overrules": {**NAMED, "add_bos_token": True},
    "added tokens": {**NAMED, "added_tokens_decoder": ADDED},
    "extra special tokens": {**NAMED, "additional_special_tokens": ["<think>", "<|extra|>"]},
    "a named token that is new": {**NAMED, "pad_token": "<|padding|>"},
    "no such token": {"eos_token": None, "bos_token": "<|im_start|>"},
}


class TestLibraryFile:
    @pytest.mark.parametrize("name", CONFIGS)
    @pytest.mark.parametrize("adds_beginning", [True, False])
    def test_agrees_with_transformers(
        self, name: str, adds_beginning: bool, tmp_path: Path
    ) -> None:
        library = byte_level_library()
        if adds_beginning:
            library = with_beginning(library)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **CONFIGS[name]}
        write_library_folder(tmp_path, library, **config)
        texts = [*TEXTS, "<think> a <|new|> b <wide> c<|extra|><|padding|>"]
        assert_same(load_tokenizer_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path), texts)

    def test_pieces_agree_with_the_library(self, tmp_path: Path) -> None:
        """transformers 5.23 replaces this kind's normalizer; the file itself is the oracle."""
        library = piece_library()
        config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        ours = load_tokenizer_folder(write_library_folder(tmp_path, library, **config))
        for text in TEXTS:
            ids = library.encode(text).ids
            assert ours.encode(text) == ids
            assert ours.decode(ids) == library.decode(ids)
            assert ours.decode(ids, False) == library.decode(ids, skip_special_tokens=False)
        assert (ours.beginning_id, ours.end_ids) == (1, {2})

    def test_named_tokens_of_older_files(self, tmp_path: Path) -> None:
        write_library_folder(tmp_path, byte_level_library())
        (tmp_path / "special_tokens_map.json").write_text(
            json.dumps({"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>"})
        )
        assert_same(
            load_tokenizer_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path), TEXTS[:4]
        )

    def test_special_tokens_can_be_left_unparsed(self, tmp_path: Path) -> None:
        ours = load_tokenizer_folder(write_library_folder(tmp_path, byte_level_library()))
        text = "<|im_start|>x<|im_end|><think>"
        ids = ours.encode(text, parse_special=False)
        assert not ours.special_ids.intersection(ids)
        assert ours.decode(ids) == text
        assert len(ours.encode(text)) == 4  # and the next call parses them again

    def test_lone_surrogates(self, tmp_path: Path) -> None:
        ours = load_tokenizer_folder(write_library_folder(tmp_path, byte_level_library()))
        assert ours.decode(ours.encode("a\ud83d b\udc00")) == "a\ufffd b\ufffd"
        assert ours.decode(ours.encode("\ud83d\ude00")) == "😀"

    def test_ids_without_tokens_have_no_text(self, tmp_path: Path) -> None:
        ours = load_tokenizer_folder(write_library_folder(tmp_path, byte_level_library()))
        for token_id in (-1, ours.vocabulary_size, 1 << 40):
            assert ours.token_bytes(token_id) == b""
            assert ours.decode([token_id]) == ""

    def test_truncation_and_padding_in_the_file_do_not_apply(self, tmp_path: Path) -> None:
        library = tokenizers.Tokenizer.from_str(byte_level_library().to_str())
        library.enable_truncation(3)
        library.enable_padding(length=50)
        ours = load_tokenizer_folder(write_library_folder(tmp_path, library))
        assert ours.decode(ours.encode("a longer text than that")) == "a longer text than that"


class TestSentencePieceFile:
    def folder(self, tmp_path: Path, model: bytes, **config: Any) -> Path:
        (tmp_path / "tokenizer.model").write_bytes(model)
        return write_folder(tmp_path, **config)

    @pytest.mark.parametrize("kind", ["bpe", "unigram"])
    def test_agrees_with_sentencepiece(self, kind: str, tmp_path: Path) -> None:
        model = sentencepiece_model(500, kind)
        ours = load_tokenizer_folder(self.folder(tmp_path, model))
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        for text in [*CORPUS, *TEXTS]:
            ids = ours.encode(text, parse_special=False)
            assert ids == processor.encode(text)
            assert ours.decode(ids) == processor.decode(ids)
        assert ours.vocabulary_size == processor.vocab_size()
        assert ours.beginning_id == processor.bos_id()
        assert ours.end_ids == {processor.eos_id()}

    def test_agrees_with_transformers(self, tmp_path: Path) -> None:
        pytest.importorskip("google.protobuf", reason="transformers needs it to read the file")
        config = {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
        }
        folder = self.folder(tmp_path, sentencepiece_model(), **config)
        texts = [text for text in [*CORPUS, *TEXTS] if not text.startswith((" ", "▁"))]
        assert_same(load_tokenizer_folder(folder), AutoTokenizer.from_pretrained(folder), texts)

    def test_special_and_added_tokens(self, tmp_path: Path) -> None:
        model = sentencepiece_model()
        added = {
            "700": {"content": "<|im_end|>", "special": True},
            "701": {"content": "<think>", "special": False},
        }
        config = {
            "add_bos_token": True,
            "add_eos_token": True,
            "eos_token": "<|im_end|>",
            "added_tokens_decoder": added,
        }
        ours = load_tokenizer_folder(self.folder(tmp_path, model, **config))
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        ids = ours.encode("the<think>se</s><|im_end|>")
        the, se = processor.encode("the"), processor.piece_to_id("se")
        assert ids == [1, *the, 701, se, 2, 700, 700]
        assert ours.decode(ids) == "the<think>se"
        assert ours.decode(ids, skip_special=False).endswith("</s><|im_end|><|im_end|>")
        assert ours.end_ids == {700}
        assert ours.vocabulary_size == 702

    def test_added_tokens_of_older_files(self, tmp_path: Path) -> None:
        folder = self.folder(tmp_path, sentencepiece_model(), eos_token="<|im_end|>")
        (folder / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 700, "<x>": 701}))
        ours = load_tokenizer_folder(folder)
        assert ours.encode("<x><|im_end|>") == [701, 700]
        assert ours.special_ids == {0, 1, 2, 700}


def word_piece() -> bytes:
    library = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    library.decoder = decoders.WordPiece()
    return library.to_str().encode()


LIBRARY = byte_level_library().to_str()
DAMAGES: dict[str, tuple[dict[str, bytes], str, str]] = {
    "no tokenizer at all": ({}, "", "neither tokenizer.json nor tokenizer.model"),
    "not JSON": ({"tokenizer.json": b"{"}, "tokenizer.json", "library refuses it"),
    "empty": ({"tokenizer.json": b""}, "tokenizer.json", "library refuses it"),
    "not UTF-8": ({"tokenizer.json": b'{"a": "\xff"}'}, "tokenizer.json", "library refuses it"),
    "without a model": ({"tokenizer.json": b'{"version":"1.0"}'}, "tokenizer.json", "refuses"),
    "of another version": (
        {"tokenizer.json": LIBRARY.replace('"1.0"', '"9.0"', 1).encode()},
        "tokenizer.json",
        "library refuses it",
    ),
    "cut short": (
        {"tokenizer.json": LIBRARY.encode()[:-100]},
        "tokenizer.json",
        "library refuses it",
    ),
    "a Git LFS pointer": (
        {"tokenizer.json": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"},
        "tokenizer.json",
        "Git LFS pointer",
    ),
    "an unknown decoder": ({"tokenizer.json": word_piece()}, "tokenizer.json", "'WordPiece'"),
    "settings that are no JSON": (
        {"tokenizer.json": LIBRARY.encode(), "tokenizer_config.json": b"]"},
        "tokenizer_config.json",
        "not valid JSON",
    ),
    "a named token that is a number": (
        {"tokenizer.json": LIBRARY.encode(), "tokenizer_config.json": b'{"eos_token": 5}'},
        "tokenizer_config.json",
        "eos_token 5",
    ),
    "an added token without text": (
        {
            "tokenizer.json": LIBRARY.encode(),
            "tokenizer_config.json": b'{"added_tokens_decoder": {"5": {}}}',
        },
        "tokenizer_config.json",
        "added token '5'",
    ),
    "added tokens that are a list": (
        {
            "tokenizer.json": LIBRARY.encode(),
            "tokenizer_config.json": b'{"added_tokens_decoder": [1]}',
        },
        "tokenizer_config.json",
        "added token",
    ),
    "an added token at an endless id": (
        {
            "tokenizer.model": sentencepiece_model(),
            "tokenizer_config.json": b'{"added_tokens_decoder": {"99999999999": {"content":"x"}}}',
        },
        "tokenizer_config.json",
        "added token",
    ),
    "a template that is no text": (
        {"tokenizer.json": LIBRARY.encode(), "tokenizer_config.json": b'{"chat_template": 5}'},
        "tokenizer_config.json",
        "chat_template 5",
    ),
    "a template that is not UTF-8": (
        {"tokenizer.json": LIBRARY.encode(), "chat_template.jinja": b"\xff"},
        "chat_template.jinja",
        "not UTF-8",
    ),
    "a model that is none": (
        {"tokenizer.model": b"not a protocol buffer"},
        "tokenizer.model",
        "sentencepiece library refuses it",
    ),
    "an empty model": ({"tokenizer.model": b""}, "tokenizer.model", "is empty"),
    "a model cut short": (
        {"tokenizer.model": sentencepiece_model()[:-500]},
        "tokenizer.model",
        "refuses it",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(damage: str, tmp_path: Path) -> None:
    files, name, message = DAMAGES[damage]
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer_folder(tmp_path)
    assert caught.value.subject == str(tmp_path / name if name else tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
KEYS = (
    "bos_token", "eos_token", "added_tokens_decoder", "chat_template", "extra_special_tokens",
    "additional_special_tokens", "add_bos_token",
)  # fmt: skip


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(config=st.dictionaries(st.sampled_from(KEYS), json_values))
def test_any_settings_load_or_are_refused_by_our_own_error(
    config: dict[str, Any], tmp_path: Path
) -> None:
    write_library_folder(tmp_path, byte_level_library(), **config)
    try:
        ours = load_tokenizer_folder(tmp_path)
        assert ours.decode(ours.encode("hello", parse_special=False)) == "hello"
    except FirstlightError as error:
        assert isinstance(error, TokenizerError)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_change_to_the_file_loads_or_is_refused(data: st.DataObject, tmp_path: Path) -> None:
    """Replaces values anywhere in tokenizer.json: wrong types, unknown kinds, odd numbers."""
    description = json.loads(piece_library().to_str())
    places: list[tuple[Any, Any]] = []

    def walk(value: Any, depth: int = 0) -> None:
        for key in value if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            if isinstance(value[key], dict | list) and depth < 4 and key not in ("vocab", "merges"):
                walk(value[key], depth + 1)

    walk(description)
    for container, key in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=3)):
        container[key] = data.draw(json_values)
    write_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    try:
        load_tokenizer_folder(tmp_path).encode("the lighthouse <s> \x00")
    except FirstlightError as error:
        assert isinstance(error, TokenizerError)


def test_a_decoder_without_steps_is_refused(tmp_path: Path) -> None:
    description = json.loads(piece_library().to_str())
    description["decoder"] = {"type": "Sequence", "decoders": []}
    write_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(TokenizerError, match="decodes by"):
        load_tokenizer_folder(tmp_path)


def test_a_panic_of_the_library_is_our_error() -> None:
    class PanicException(BaseException):
        pass

    with pytest.raises(TokenizerError, match="library refuses it"), library_errors("x", "y"):
        raise PanicException("index out of bounds")
    with pytest.raises(KeyboardInterrupt), library_errors("x", "y"):
        raise KeyboardInterrupt


class TestChatTemplates:
    def load(self, folder: Path, **config: Any) -> Tokenizer:
        return load_tokenizer_folder(write_library_folder(folder, byte_level_library(), **config))

    MESSAGES = ({"role": "user", "content": "hi"},)

    def test_none(self, tmp_path: Path) -> None:
        assert self.load(tmp_path).chat_template is None

    def test_in_the_settings(self, tmp_path: Path) -> None:
        template = self.load(
            tmp_path, bos_token="<s>", chat_template="{{ bos_token + messages[0].content }}"
        ).chat_template
        assert template is not None
        assert template.render(self.MESSAGES) == "<s>hi"

    def test_several_in_the_settings(self, tmp_path: Path) -> None:
        listed = [
            {"name": "default", "template": "plain"},
            {"name": "tool_use", "template": "tools"},
            {"name": "rag", "template": "documents"},
        ]
        template = self.load(tmp_path, chat_template=listed).chat_template
        assert template is not None
        assert template.render(self.MESSAGES) == "plain"
        assert template.render(self.MESSAGES, tools=[{"name": "f"}]) == "tools"
        assert template.render(self.MESSAGES, name="rag") == "documents"
        with pytest.raises(TokenizerError, match=r"no chat template called 'poem'.*'rag'"):
            template.render(self.MESSAGES, name="poem")

    def test_a_file_of_its_own_wins(self, tmp_path: Path) -> None:
        (tmp_path / "chat_template.jinja").write_text("from the file")
        template = self.load(tmp_path, chat_template="from the settings").chat_template
        assert template is not None
        assert template.render(self.MESSAGES) == "from the file"

    def test_more_files(self, tmp_path: Path) -> None:
        more = tmp_path / "additional_chat_templates"
        more.mkdir()
        (more / "tool_use.jinja").write_text("tools")
        (tmp_path / "chat_template.jinja").write_text("plain")
        template = self.load(tmp_path).chat_template
        assert template is not None
        assert template.render(self.MESSAGES, tools=[{"name": "f"}]) == "tools"

    def test_the_old_file_of_processors(self, tmp_path: Path) -> None:
        (tmp_path / "chat_template.json").write_text('{"chat_template": "old"}')
        template = self.load(tmp_path).chat_template
        assert template is not None
        assert template.render(self.MESSAGES) == "old"

    def test_no_messages(self, tmp_path: Path) -> None:
        template = self.load(tmp_path, chat_template="x").chat_template
        assert template is not None
        with pytest.raises(RequestError, match="empty"):
            template.render([])
