"""Tokenizers from GGUF files: tiny vocabularies, with transformers reading the same file."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from firstlight.checkpoint import gguf_tokenizer
from firstlight.checkpoint.checkpoint import open_checkpoint
from firstlight.checkpoint.tokenizer import Tokenizer
from firstlight.checkpoint.tokenizer_loading import load_tokenizer
from firstlight.checkpoint.word_patterns import WORD_PATTERNS
from firstlight.errors import FirstlightError, TokenizerError
from tests.support.texts import all_texts
from tests.support.tiny_tokenizers import (
    CONTROL,
    CORPUS,
    NORMAL,
    USER_DEFINED,
    Vocabulary,
    byte_level_library,
    byte_level_vocabulary,
    piece_vocabulary,
    sentencepiece_model,
    write_gguf,
)

TEXTS = list(all_texts().values())
EXTRA = (
    *((text, CONTROL) for text in ("<pad>", "<mask>", "<bos>", "<eos>")),  # any Gemma has these
    ("<|im_start|>", CONTROL),
    ("<|im_end|>", CONTROL),
    ("<think>", USER_DEFINED),
    ("   ", USER_DEFINED),
)


def load(path: Path) -> Tokenizer:
    return load_tokenizer(open_checkpoint(path))


def transformers_tokenizer(path: Path) -> Any:
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def random_texts(count: int, seed: int) -> list[str]:
    """Bits of all texts, put together and repeated, so that merges compete with each other."""
    choose = random.Random(seed)
    source = "".join([*CORPUS, *TEXTS, "ab " * 50])
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(choose.randint(1, 8)):
            start = choose.randrange(len(source))
            part = source[start : start + choose.randint(1, 6)]
            parts.append(part * choose.choice([1, 1, 2, 5]))
        texts.append("".join(parts))
    return texts


def assert_same(ours: Tokenizer, oracle: Any, texts: list[str]) -> None:
    for text in texts:
        ids = oracle.encode(text)
        assert ours.encode(text) == ids, text[:80]
        plain = oracle.encode(text, add_special_tokens=False)
        assert ours.encode(text, add_special=False) == plain, text[:80]
        for skip in (True, False):
            decoded = oracle.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip_special=skip) == decoded, text[:80]


class TestPieces:
    @pytest.mark.parametrize("architecture", ["llama", "gemma3", "phi3"])
    def test_agrees_with_transformers(self, architecture: str, tmp_path: Path) -> None:
        vocabulary = piece_vocabulary(sentencepiece_model(), EXTRA)
        path = write_gguf(tmp_path / "tiny.gguf", vocabulary, architecture)
        assert_same(load(path), transformers_tokenizer(path), TEXTS + random_texts(500, 1))

    def test_agrees_where_scores_are_equal(self, tmp_path: Path) -> None:
        """Then the lengths of the parts decide, and at last the order in the vocabulary."""
        vocabulary = piece_vocabulary(sentencepiece_model(), EXTRA)
        assert vocabulary.scores is not None
        vocabulary.scores = [float(round(score / 40)) for score in vocabulary.scores]
        path = write_gguf(tmp_path / "tiny.gguf", vocabulary)
        assert_same(load(path), transformers_tokenizer(path), TEXTS + random_texts(500, 2))

    def test_agrees_with_sentencepiece_on_ordinary_text(self, tmp_path: Path) -> None:
        model = sentencepiece_model()
        ours = load(write_gguf(tmp_path / "tiny.gguf", piece_vocabulary(model)))
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        for line in filter(None, CORPUS):
            if not line.startswith(" "):
                ids = ours.encode(line, add_special=False)
                assert ids == processor.encode(line)
                assert ours.decode(ids) == processor.decode(ids) == line

    def test_pieces_of_several_words(self, tmp_path: Path) -> None:
        """Then words must not be cut at every space."""
        model = sentencepiece_model(split_by_whitespace=False, max_sentencepiece_length=24)
        vocabulary = piece_vocabulary(model, EXTRA)
        assert any("▁" in str(token)[1:].lstrip("▁") for token in vocabulary.tokens)
        path = write_gguf(tmp_path / "tiny.gguf", vocabulary)
        assert_same(load(path), transformers_tokenizer(path), TEXTS + random_texts(500, 3))

    @pytest.mark.parametrize("adds_space", [True, False])
    def test_space_in_front(self, adds_space: bool, tmp_path: Path) -> None:
        """transformers 5.23 ignores the file's add_space_prefix; sentencepiece is the oracle."""
        model = sentencepiece_model(add_dummy_prefix=adds_space)
        vocabulary = piece_vocabulary(model)
        vocabulary.keys["add_space_prefix"] = adds_space
        ours = load(write_gguf(tmp_path / "tiny.gguf", vocabulary))
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        for text in ("hello", "the lighthouse", "中文", "x"):
            ids = ours.encode(text, add_special=False)
            assert ids == processor.encode(text)
            assert ours.decode(ids) == text
            continued = ours.decode(ids, continues=True)
            assert continued == (" " + text if adds_space else text)

    @pytest.mark.parametrize("beginning", [True, False, None])
    @pytest.mark.parametrize("end", [True, False, None])
    def test_added_at_both_ends(
        self, beginning: bool | None, end: bool | None, tmp_path: Path
    ) -> None:
        vocabulary = piece_vocabulary(sentencepiece_model())
        flags = {"add_bos_token": beginning, "add_eos_token": end}
        vocabulary.keys |= {key: value for key, value in flags.items() if value is not None}
        path = write_gguf(tmp_path / "tiny.gguf", vocabulary)
        assert_same(load(path), transformers_tokenizer(path), ["", "hello", "<s>hi</s>"])

    def test_characters_without_pieces_and_no_byte_pieces(self, tmp_path: Path) -> None:
        model = sentencepiece_model(byte_fallback=False)
        vocabulary = piece_vocabulary(model)
        ours = load(write_gguf(tmp_path / "tiny.gguf", vocabulary))
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        for text in ("the 𝒳𝒴 of 𝒵", "𝒳", "a𝒳b"):
            assert ours.encode(text, add_special=False) == processor.encode(text)

    def test_control_tokens_are_never_made_of_text(self, tmp_path: Path) -> None:
        ours = load(
            write_gguf(tmp_path / "tiny.gguf", piece_vocabulary(sentencepiece_model(), EXTRA))
        )
        text = "<|im_start|>a<s></s><think>"
        ids = ours.encode(text, add_special=False, parse_special=False)
        assert not ours.special_ids.intersection(ids)
        assert ours.decode(ids) == text

    def test_ends(self, tmp_path: Path) -> None:
        vocabulary = piece_vocabulary(sentencepiece_model(), EXTRA)
        vocabulary.keys["eot_token_id"] = len(vocabulary.tokens) - 3
        ours = load(write_gguf(tmp_path / "tiny.gguf", vocabulary))
        assert ours.end_ids == {2, len(vocabulary.tokens) - 3}
        assert ours.beginning_id == 1

    def test_bytes_that_are_not_unicode(self, tmp_path: Path) -> None:
        vocabulary = piece_vocabulary(sentencepiece_model())
        vocabulary.tokens[400] = b"\xff\xfe"
        ours = load(write_gguf(tmp_path / "tiny.gguf", vocabulary))
        assert ours.token_bytes(400) == b"\xff\xfe"
        assert ours.decode([400]) == "\ufffd\ufffd"
        assert 400 not in ours.encode("\udcff\udcfe ÿþ")


# The words that each of these models' own tokenizer.json cuts.
SPLITS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
}
# Names for which transformers 5.23 takes the same patterns.
KNOWN_TO_TRANSFORMERS = ["default", "gpt-2", "llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o"]


class TestByteLevel:
    @pytest.mark.parametrize("pre", KNOWN_TO_TRANSFORMERS)
    def test_agrees_with_transformers(self, pre: str, tmp_path: Path) -> None:
        vocabulary = byte_level_vocabulary(byte_level_library(), pre)
        path = write_gguf(tmp_path / "tiny.gguf", vocabulary)
        assert_same(load(path), transformers_tokenizer(path), TEXTS + random_texts(200, 4))

    @pytest.mark.parametrize("pre", SPLITS)
    def test_agrees_with_the_tokenizer_it_was_made_from(self, pre: str, tmp_path: Path) -> None:
        library = byte_level_library(words=SPLITS[pre])
        ours = load(write_gguf(tmp_path / "tiny.gguf", byte_level_vocabulary(library, pre)))
        for text in TEXTS + random_texts(200, 5):
            ids = library.encode(text).ids
            assert ours.encode(text) == ids
            assert ours.decode(ids) == library.decode(ids)
            assert ours.decode(ids, skip_special=False) == text

    @pytest.mark.parametrize("pre", WORD_PATTERNS)
    def test_every_way_to_cut_words_loses_nothing(self, pre: str, tmp_path: Path) -> None:
        vocabulary = byte_level_vocabulary(byte_level_library(), pre)
        ours = load(write_gguf(tmp_path / "tiny.gguf", vocabulary))
        for text in TEXTS:
            assert ours.decode(ours.encode(text), skip_special=False) == text

    def test_special_tokens_beyond_the_byte_alphabet(self, tmp_path: Path) -> None:
        """DeepSeek writes its special tokens with U+FF5C and U+2581; transformers 5.23 gives them
        new ids past the end of the vocabulary, so the tokenizer.json kind is the oracle."""
        library = tokenizers.Tokenizer.from_str(byte_level_library().to_str())
        names = ["<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜end▁of▁sentence｜>"]
        library.add_special_tokens(names)
        vocabulary = byte_level_vocabulary(library, "gpt-2")
        vocabulary.keys["bos_token_id"] = library.token_to_id(names[0])
        vocabulary.keys["add_bos_token"] = True
        ours = load(write_gguf(tmp_path / "tiny.gguf", vocabulary))
        text = "<｜User｜>hello<｜end▁of▁sentence｜><｜User"
        ids = library.encode(text).ids
        assert ours.encode(text) == [ours.beginning_id, *ids]
        assert ours.encode(text, add_special=False) == ids
        assert ours.decode(ids) == library.decode(ids) == "hello<｜User"
        assert ours.vocabulary_size == library.get_vocab_size()

    def test_special_tokens_can_be_left_unparsed(self, tmp_path: Path) -> None:
        vocabulary = byte_level_vocabulary(byte_level_library(), None)
        ours = load(write_gguf(tmp_path / "tiny.gguf", vocabulary))
        text = "<|im_start|>x<think>"
        ids = ours.encode(text, parse_special=False)
        assert not ours.special_ids.intersection(ids)
        assert ours.decode(ids) == text
        assert len(ours.encode(text)) == 3


def broken(vocabulary: Vocabulary, **changes: Any) -> Vocabulary:
    keys = vocabulary.keys | changes.pop("keys", {})
    return replace(vocabulary, keys=keys, **changes)


PIECES = piece_vocabulary(sentencepiece_model())
BYTE_LEVEL = byte_level_vocabulary(byte_level_library(), "gpt-2")
DAMAGES = {
    "unknown kind": (broken(PIECES, kind="rwkv"), "'rwkv'.*gpt2, llama"),
    "unknown words": (broken(BYTE_LEVEL, pre="klingon"), "'klingon'.*llama-bpe.*qwen2"),
    "an id beyond the vocabulary": (
        broken(PIECES, keys={"bos_token_id": 12345}),
        "bos_token_id 12345 and 700 tokens",
    ),
    "scores missing": (broken(PIECES, scores=None), "no tokenizer.ggml.scores"),
    "too few scores": (broken(PIECES, scores=[0.0] * 5), "5 tokenizer.ggml.scores for 700"),
    "scores without a value": (broken(PIECES, scores=[float("nan")] * 700), "not finite"),
    "too few types": (broken(PIECES, types=[NORMAL] * 3), "3 tokenizer.ggml.token_type for 700"),
    "no tokens": (broken(PIECES, tokens=[], types=[], scores=[]), "no tokenizer.ggml.tokens"),
    "merges missing": (broken(BYTE_LEVEL, merges=None), "no tokenizer.ggml.merges"),
    "a merge of one part": (broken(BYTE_LEVEL, merges=["ab"]), "merge 0 'ab'"),
    "a merge of three parts": (broken(BYTE_LEVEL, merges=["a b c"]), "merge 0 'a b c'"),
    "a merge of unknown parts": (broken(BYTE_LEVEL, merges=["qqq zzz"]), "out of vocabulary"),
    "a flag that is none": (broken(PIECES, keys={"add_bos_token": 7}), "add_bos_token 7"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(damage: str, tmp_path: Path) -> None:
    vocabulary, message = DAMAGES[damage]
    path = write_gguf(tmp_path / "damaged.gguf", vocabulary)
    with pytest.raises(TokenizerError, match=message) as caught:
        load(path)
    assert caught.value.subject == str(path)


ARRAYS = st.sampled_from([np.arange(9, dtype=np.int32), np.zeros(3, np.float32)])
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | ARRAYS


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), kind=st.sampled_from(["llama", "gpt2"]))
def test_any_metadata_load_or_are_refused_by_our_own_error(
    data: st.DataObject, kind: str, tmp_path: Path
) -> None:
    vocabulary = PIECES if kind == "llama" else BYTE_LEVEL
    checkpoint = open_checkpoint(write_gguf(tmp_path / "tiny.gguf", vocabulary))
    keys = [key for key in checkpoint.config if key.startswith("tokenizer.")]
    keys += ["tokenizer.ggml.add_bos_token", "tokenizer.chat_template", "general.architecture"]
    changed = data.draw(st.dictionaries(st.sampled_from(keys), VALUES, min_size=1, max_size=3))
    try:
        load_tokenizer(replace(checkpoint, config={**checkpoint.config, **changed})).encode("a <s>")
    except FirstlightError as error:
        assert isinstance(error, TokenizerError)


class TestCache:
    @pytest.fixture
    def path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(gguf_tokenizer, "_WORTH_KEEPING", 100)
        monkeypatch.setenv("FIRSTLIGHT_CACHE", str(tmp_path / "cache"))
        return write_gguf(tmp_path / "tiny.gguf", PIECES)

    def kept(self, path: Path) -> list[Path]:
        return sorted((path.parent / "cache").rglob("*.*"))

    def test_is_written_once_and_read(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ids = load(path).encode("the lighthouse")
        (file,) = self.kept(path)
        written = file.read_bytes()
        monkeypatch.setattr(gguf_tokenizer, "_build_table", lambda *_: pytest.fail("built again"))
        assert load(path).encode("the lighthouse") == ids
        assert file.read_bytes() == written

    @pytest.mark.parametrize("damage", ["emptied", "cut", "a bit changed", "of another file"])
    def test_damage_is_found_and_repaired(self, path: Path, damage: str) -> None:
        ids = load(path).encode("the lighthouse")
        (file,) = self.kept(path)
        good = file.read_bytes()
        if damage == "emptied":
            bad = b""
        elif damage == "cut":
            bad = good[:-1]
        elif damage == "a bit changed":
            bad = good[:500] + bytes([good[500] ^ 1]) + good[501:]
        else:
            bad = b"anything else" * 100
        file.write_bytes(bad)
        assert load(path).encode("the lighthouse") == ids
        assert file.read_bytes() == good

    def test_another_vocabulary_has_another_entry(self, path: Path) -> None:
        load(path)
        tokens = [*PIECES.tokens[:-1], "other"]
        other = load(write_gguf(path.parent / "other.gguf", replace(PIECES, tokens=tokens)))
        assert len(self.kept(path)) == 2
        assert other.token_bytes(len(tokens) - 1) == b"other"

    def test_a_place_that_cannot_be_written_is_no_error(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        in_the_way = path.parent / "a file"
        in_the_way.touch()
        monkeypatch.setenv("FIRSTLIGHT_CACHE", str(in_the_way / "cache"))
        assert load(path).encode("the lighthouse")
